"""One trial: a config becomes candidates, or is turned away before it is trained.

prune -> export -> latency gate -> short training -> full training -> quantize -> measure -> score. One training yields
a candidate in every precision; every stage's result is cached under what determines it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from compress.baseline.contexts import Context, Say, Training
from compress.pruning.pruning import Pruned
from compress.stages import pruning
from compress.stages.candidates import Source, make_candidates
from compress.stages.exporting import bind_weights
from compress.stages.finetuning import Trained, Validation, as_earned, finetuned, loaded, shortened
from compress.stages.latency_gate import Gated, gate, gate_untouched
from compress.stages.quantizing import make_files
from compress.stages.train_drops import train_drop
from compress.stages.untrained import Untrained, make_untrained
from compress.values.candidates import Candidate
from compress.values.configs import Config
from compress.values.constraints import Constraint


@dataclass(frozen=True)
class Finished:
    """A config's candidates, one for every precision, and precisions that failed: (scheme, cause)."""

    candidates: tuple[Candidate, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    train_drop: float | None = None
    """Of the metric on train examples, where that was asked for."""


@dataclass(frozen=True)
class _Network:
    """A trained network, and the config as it came about: fewer epochs where it was hopeless after a few."""

    source: Source
    config: Config


@dataclass(frozen=True)
class Furthering:
    """What a network begins with that is trained further."""

    weights: Path
    """The file with the weights that an earlier trial has trained."""
    rungs: tuple[float, ...]
    """Epochs of each training before, the first one first."""


@dataclass(frozen=True)
class TrialPlan:
    """What a trial does beyond its config."""

    further: Furthering | None = None
    """None: it begins with the baseline's weights."""
    precisions: tuple[str, ...] | None = None
    """Those that are made of its network; None: all."""
    reads_train: bool = False
    """Whether the drop of the metric on train examples is read as well."""


def evaluate(
    context: Context,
    number: int,
    config: Config,
    constraints: tuple[Constraint, ...],
    say: Say,
    plan: TrialPlan = TrialPlan(),
) -> Gated | Finished:
    """Run trial ``number``; raises StageError where a stage fails. What is already cached is not computed again."""
    if context.training is None or _is_untouched(config):
        zero = context.baseline.candidate
        source = Source(context.baseline.path, None, zero.macs, zero.parameters, {}, {}, context.baseline.module)
    else:
        made = _network(context, context.training, config, constraints, say, plan.further)
        if isinstance(made, Gated):
            return made
        source, config = made.source, made.config
    say("quantize")
    files, skipped = make_files(context, source.path, config, say, plan.precisions)
    if source.path == context.baseline.path and context.baseline.module is not None:
        say("gate")
        gated = gate_untouched(context, files, constraints)
        if gated is not None:
            return gated
    if source.weights is None and config.finetune.epochs == 0:
        # In float that is the baseline itself.
        files = {variant: path for variant, path in files.items() if variant.scheme != "fp32"}
    say("measure")
    candidates, failed = make_candidates(context, number, config, source, files)
    drop = None
    if plan.reads_train and context.training is not None and source.module is not None:
        say("train")
        drop = train_drop(context, context.training, source.module, source.weights)
    return Finished(tuple(candidates), (*skipped, *failed), drop)


def _is_untouched(config: Config) -> bool:
    """Whether the network stays as it is, so that its file is the baseline's."""
    prune, finetune = config.prune, config.finetune
    cut = prune.ratio or prune.widths or prune.depth or prune.dropped or any(prune.deltas.values())
    return not (cut or prune.sparsity or finetune.epochs or config.precision.qat_epochs)


def _network(
    context: Context, training: Training, config: Config, constraints: tuple[Constraint, ...], say: Say,
    further: Furthering | None,
) -> _Network | Gated:  # fmt: skip
    """Prune, export, pass the gate, fine-tune, and put the trained weights into the exported graph."""
    network = make_untrained(context, training, config.prune, say)
    say("gate")
    gated = gate(context, training, network, constraints, config.precision.int8_operators)
    if gated is not None:
        return gated
    if config.finetune.epochs and config.finetune.distill_weight:
        say("teacher")
        training.teacher.prepare()
    made = _trained(context, training, network, config, constraints, say, further)
    say("export")
    cache, shape, pruned = context.cache, network.shape, made.pruned
    path = bind_weights(
        cache, training, made.module, made.weights, network.template, shape, context.val.first(8)
    )  # fmt: skip
    removed = {name: list(indices) for name, indices in pruned.removed.items()}
    rungs = (*further.rungs, config.finetune.epochs * config.finetune.part) if further else ()
    source = Source(
        path, made.weights, pruned.macs, pruned.parameters, removed, dict(shape.widths), made.module,
        dropped=list(network.origin.dropped), rungs=rungs,
    )  # fmt: skip
    return _Network(source, made.config)


@dataclass(frozen=True)
class _Fitted:
    """A cut network with the weights it ends with, and the config as it came about."""

    pruned: Pruned
    module: nn.Module
    weights: Path | None
    config: Config


def _trained(
    context: Context, training: Training, network: Untrained, config: Config, constraints: tuple[Constraint, ...],
    say: Say, further: Furthering | None,
) -> _Fitted:  # fmt: skip
    """The network with trained weights: from the baseline's, or trained further than an earlier trial has."""
    cache, settings, left = context.cache, config.prune, dict(network.shape.widths)
    origin = network.origin
    if settings.allocation != "global":
        origin = pruning.sparsified(cache, training, context.profile, origin, settings, say)
    say("finetune")
    validation = Validation(context.val, context.metric)

    def train(start: pruning.Origin, pruned: Pruned, epochs: int, after: Trained | None = None) -> Trained:
        part = replace(config.finetune, epochs=epochs, short_share=0.0)
        return finetuned(cache, training, validation, start.key(), pruned, part, say, after)

    if further is not None:
        begun = Trained(loaded(network.pruned.module, further.weights), further.weights)
        done = train(origin, network.pruned, config.finetune.epochs, begun)
        return _Fitted(network.pruned, done.module, done.weights, config)
    start, pruned, epochs = pruning.cut_in_steps(cache, training, origin, left, settings, config.finetune.epochs, train)
    if not (left or origin.dropped or config.finetune.epochs):
        return _Fitted(pruned, pruned.module, origin.weights, config)
    last = replace(config.finetune, epochs=epochs)
    trained, saved = as_earned(context, training, last, constraints, say, partial(train, start, pruned))
    return _Fitted(pruned, trained.module, trained.weights, shortened(config, saved) if saved else config)

"""One trial: a config becomes candidates, or is turned away before it is trained.

prune -> export -> latency gate -> short training -> full training -> quantize -> measure -> score. One training yields
a candidate in every precision; every stage's result is cached under what determines it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from compress.baseline.contexts import Context, Say, Training
from compress.pruning.pruning import Pruned
from compress.stages import pruning
from compress.stages.candidates import Source, make_candidates
from compress.stages.exporting import Shape, bind_weights, make_template
from compress.stages.finetuning import Trained, Validation, as_earned, finetuned, shortened
from compress.stages.latency_gate import Gated, gate
from compress.stages.quantizing import make_files
from compress.values.candidates import Candidate
from compress.values.configs import Config
from compress.values.constraints import Constraint


@dataclass(frozen=True)
class Finished:
    """A config's candidates, one for every precision, and precisions that failed: (scheme, cause)."""

    candidates: tuple[Candidate, ...]
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Network:
    """A trained network, and the config as it came about: fewer epochs where it was hopeless after a few."""

    source: Source
    config: Config


def evaluate(
    context: Context, number: int, config: Config, constraints: tuple[Constraint, ...], say: Say
) -> Gated | Finished:
    """Run trial ``number``; raises StageError where a stage fails. What is already cached is not computed again."""
    if context.training is None:
        zero = context.baseline.candidate
        source = Source(context.baseline.path, None, zero.macs, zero.parameters, {}, {}, None)
    else:
        made = _network(context, context.training, config, constraints, say)
        if isinstance(made, Gated):
            return made
        source, config = made.source, made.config
    say("quantize")
    files, skipped = make_files(context, source.path, config, say)
    if source.weights is None and config.finetune.epochs == 0:
        # In float that is the baseline itself.
        files = {variant: path for variant, path in files.items() if variant.scheme != "fp32"}
    say("measure")
    candidates, failed = make_candidates(context, number, config, source, files)
    return Finished(tuple(candidates), (*skipped, *failed))


def _network(
    context: Context, training: Training, config: Config, constraints: tuple[Constraint, ...], say: Say
) -> _Network | Gated:
    """Prune, export, pass the gate, fine-tune, and put the trained weights into the exported graph."""
    cache, profile, settings = context.cache, context.profile, config.prune
    say("prune")
    origin = pruning.make_origin(cache, training, profile, settings)
    if settings.allocation == "global":  # the widths depend on the weights
        origin = pruning.sparsified(cache, training, profile, origin, settings, say)
    left = pruning.realised_widths(cache, training, profile, context.targets.step, origin, settings)
    # What a network costs does not depend on which channels it keeps.
    cut = pruning.prune_to(cache, training, origin, left, settings.importance)
    say("export")
    shape = Shape(context.baseline.structure, left, origin.dropped, context.targets.limits)
    template = make_template(cache, training, origin.module, cut, shape)
    say("gate")
    gated = gate(context, training, cut, template, left, constraints, origin.dropped, config.precision.int8_operators)
    if gated is not None:
        return gated
    if settings.allocation != "global":
        origin = pruning.sparsified(cache, training, profile, origin, settings, say)
    if config.finetune.epochs and config.finetune.distill_weight:
        say("teacher")
        training.teacher.prepare()
    say("finetune")
    validation = Validation(context.val, context.metric)

    def train(start: pruning.Origin, pruned: Pruned, epochs: int, after: Trained | None = None) -> Trained:
        part = replace(config.finetune, epochs=epochs, short_share=0.0)
        return finetuned(cache, training, validation, start.key(), pruned, part, say, after)

    start, pruned, epochs = pruning.cut_in_steps(cache, training, origin, left, settings, config.finetune.epochs, train)
    module, weights = pruned.module, origin.weights
    if left or origin.dropped or config.finetune.epochs:
        last = replace(config.finetune, epochs=epochs)
        trained, saved = as_earned(context, training, last, constraints, say, partial(train, start, pruned))
        module, weights = trained.module, trained.weights
        if saved:
            config = shortened(config, saved)
    say("export")
    path = bind_weights(cache, training, module, weights, template, shape, context.val.first(8))
    removed = {name: list(indices) for name, indices in pruned.removed.items()}
    source = Source(path, weights, pruned.macs, pruned.parameters, removed, left, module, dropped=list(origin.dropped))
    return _Network(source, config)

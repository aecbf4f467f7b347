"""One trial: a config becomes candidates, or is turned away before it is trained.

prune -> export -> latency gate -> short training -> full training -> quantize -> measure -> score. One training yields
a candidate in every precision; every stage's result is cached under what determines it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch

from compress import baselines, early_stopping, exporting, narrowing
from compress.configs import Config, FinetuneSettings
from compress.contexts import Context, Say, Training
from compress.latency_gate import Gated, gate
from compress.pruning import Pruned
from compress.quantities import Constraint
from compress.results import Candidate
from compress.serialization import file_hash, stable_hash, to_json
from compress.training import finetuning
from compress.variants import Source, make_candidates, make_files
from targets.errors import ParityError, StageError, TrainingError


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
        source = Source(context.baseline_path, None, context.baseline.macs, context.baseline.parameters, {}, {}, None)
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
    return Finished(tuple(make_candidates(context, number, config, source, files)), tuple(skipped))


def _network(
    context: Context, training: Training, config: Config, constraints: tuple[Constraint, ...], say: Say
) -> _Network | Gated:
    """Prune, export, pass the gate, fine-tune, and put the trained weights into the exported graph."""
    say("prune")
    settings = config.prune
    origin = narrowing.make_origin(context, training, settings)
    if settings.allocation == "global":  # the widths depend on the weights
        origin = narrowing.sparsified(context, training, origin, settings, say)
    left = narrowing.realised_widths(context, training, origin, settings)
    # What a network costs does not depend on which channels it keeps.
    cut = narrowing.prune_to(context, training, origin, left, settings.importance)
    say("export")
    shape = _shape(context, origin, left)
    template = _template(context, training, cut, shape)
    say("gate")
    gated = gate(context, training, cut, template, left, constraints, origin.dropped)
    if gated is not None:
        return gated
    if settings.allocation != "global":
        origin = narrowing.sparsified(context, training, origin, settings, say)
    if config.finetune.epochs and config.finetune.distill_weight:
        say("teacher")
        training.teacher.prepare()
    say("finetune")

    def train(start: narrowing.Origin, pruned: Pruned, epochs: int, after: Path | None = None) -> Path:
        part = replace(config.finetune, epochs=epochs, short_share=0.0)
        return _trained(context, training, start, pruned, replace(config, finetune=part), say, after)

    start, pruned, epochs = narrowing.cut_in_steps(
        context, training, origin, left, settings, config.finetune.epochs, train
    )
    weights = origin.weights
    if left or origin.dropped or config.finetune.epochs:
        last = replace(config.finetune, epochs=epochs)
        weights, saved = _as_earned(
            context, training, pruned.module, last, constraints, say, partial(train, start, pruned)
        )
        if saved:
            config = _shortened(config, saved)
    say("export")
    path = _bound(context, training, pruned, template, shape, weights)
    removed = {name: list(indices) for name, indices in pruned.removed.items()}
    source = Source(
        path, weights, pruned.macs, pruned.parameters, removed, left, pruned.module, dropped=list(origin.dropped)
    )
    return _Network(source, config)


def _shape(context: Context, origin: narrowing.Origin, left: Mapping[str, int]) -> dict[str, Any]:
    """What determines a pruned network's graph: part of the keys of what is exported."""
    dropped = {"dropped": list(origin.dropped)} if origin.dropped else {}
    return {"graph": context.baseline_structure, "widths": dict(left), "limits": to_json(context.limits), **dropped}


def _template(context: Context, training: Training, pruned: Pruned, shape: Mapping[str, Any]) -> onnx.ModelProto:
    """The pruned network's raw graph: exported once for its widths and blocks."""
    if not shape["widths"] and "dropped" not in shape:
        return training.template

    def compute(folder: Path) -> dict[str, Any]:
        onnx.save(exporting.trace(pruned.module, training.example, context.limits), folder / "template.onnx")
        return {}

    return onnx.load(context.cache.stage("export", exporting.VERSION, shape, compute).folder / "template.onnx")


def _as_earned(
    context: Context, training: Training, module: torch.nn.Module, settings: FinetuneSettings,
    constraints: tuple[Constraint, ...], say: Say, train: Callable[..., Path],
) -> tuple[Path, int]:  # fmt: skip
    """(file with the trained weights, which ``module`` then has; epochs saved where a short training left no hope).

    ``train`` trains for some epochs, after an earlier training where its file is given.
    """

    def loaded(weights: Path) -> Path:
        module.load_state_dict(torch.load(weights, weights_only=True))
        return weights

    first = early_stopping.short_epochs(settings)
    if not first:
        return loaded(train(settings.epochs)), 0
    weights = loaded(train(first))
    say("judge")
    quality = _val_quality(context, training, module)
    module.to("cpu")
    zero = context.baseline.measured[context.targets[0].name].quality.val.value
    better = context.metric.higher_is_better
    if early_stopping.is_hopeless(quality, zero, constraints, higher_is_better=better):
        return weights, settings.epochs - first
    return loaded(train(settings.epochs - first, weights)), 0


def _shortened(config: Config, saved: int) -> Config:
    """Of a network that gets no more epochs, in int8 neither."""
    finetune = replace(config.finetune, epochs=config.finetune.epochs - saved)
    return replace(config, finetune=finetune, precision=replace(config.precision, qat_epochs=0))


def _trained(
    context: Context, training: Training, start: narrowing.Origin, pruned: Pruned, config: Config, say: Say,
    after: Path | None = None,
) -> Path:  # fmt: skip
    """The file with the fine-tuned weights of a network that was cut from ``start``; ``after``: a first training."""
    task = context.task
    inputs = {
        **start.key(),
        **({"after": file_hash(after)[:16]} if after else {}),
        "removed": stable_hash({name: list(indices) for name, indices in pruned.removed.items()}),
        "settings": to_json(config.finetune),
        "train": training.train.digest,
        "val": context.val.digest if config.finetune.patience else None,
        "seed": context.seed,
        "mode": to_json(training.mode),
        "loss": baselines.source_hash(task.loss),
        "finetune": baselines.source_hash(task.finetune),
        "optimizer": baselines.source_hash(task.optimizer),
    }

    def compute(folder: Path) -> dict[str, Any]:
        module = pruned.module
        if task.finetune is not None:
            trained = finetuning.own_finetune(task.finetune, module, task.train, config.finetune, context.seed)
            history = finetuning.History()
        else:
            trained, history = module, _finetune(context, training, module, config, say)
        torch.save(trained.state_dict(), folder / "weights.pt")
        return {"history": to_json(history)}

    try:
        return context.cache.stage("finetune", finetuning.VERSION, inputs, compute).folder / "weights.pt"
    except (StageError, KeyboardInterrupt):
        raise
    except Exception as error:
        from compress.loading import describe

        raise TrainingError(f"fine-tuning failed: {describe(error)}") from error


def _finetune(
    context: Context, training: Training, module: torch.nn.Module, config: Config, say: Say
) -> finetuning.History:
    sign = 1.0 if context.metric.higher_is_better else -1.0
    return finetuning.finetune(
        module,
        training.train,
        config.finetune,
        training.objective,
        mode=training.mode,
        seed=context.seed,
        teacher=training.teacher,
        val_quality=lambda network: sign * _val_quality(context, training, network),
        on_epoch=lambda epoch: say(f"finetune, epoch {epoch} of {config.finetune.epochs}"),
        optimizer=context.task.optimizer,
    )


def _val_quality(context: Context, training: Training, module: torch.nn.Module) -> float:
    found = tuple(x.numpy() for x in finetuning.predict(module, context.val.inputs, training.mode))
    return float(context.metric.function(found[0] if len(found) == 1 else found, context.val.labels.numpy()))


def _bound(
    context: Context, training: Training, pruned: Pruned, template: onnx.ModelProto, shape: Mapping[str, Any],
    weights: Path | None,
) -> Path:  # fmt: skip
    """The float ONNX file of the trained network: its weights swapped into the template, or exported anew."""

    def compute(folder: Path) -> dict[str, Any]:
        path = folder / "model.onnx"
        example = context.val.first(8)
        onnx.save(exporting.bind(template, pruned.module.state_dict(), context.limits), path)
        try:
            exporting.check_parity(path, pruned.module, example)
            return {"traced": False}
        except ParityError as error:
            print(f"exporting anew: {error}", file=sys.stderr)
        traced = exporting.trace(pruned.module, example, context.limits)
        onnx.save(exporting.bind(traced, pruned.module.state_dict(), context.limits), path)
        exporting.check_parity(path, pruned.module, example)
        return {"traced": True}

    digest = file_hash(weights)[:16] if weights else training.digest
    inputs = {**shape, "weights": digest}
    return context.cache.stage("export", exporting.VERSION, inputs, compute).folder / "model.onnx"

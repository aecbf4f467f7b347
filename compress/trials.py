"""One trial: a config becomes candidates, or is turned away before it is trained.

prune -> export -> latency gate -> fine-tune -> quantize -> measure -> score. One training yields a candidate in
every precision; every stage's result is cached under what determines it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from compress import baselines, exporting, narrowing
from compress.configs import Config
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
        source = made
    say("quantize")
    files, skipped = make_files(context, source.path, config, say)
    if source.weights is None and config.finetune.epochs == 0:
        # In float that is the baseline itself.
        files = {variant: path for variant, path in files.items() if variant.scheme != "fp32"}
    say("measure")
    return Finished(tuple(make_candidates(context, number, config, source, files)), tuple(skipped))


def _network(
    context: Context, training: Training, config: Config, constraints: tuple[Constraint, ...], say: Say
) -> Source | Gated:
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
    say("finetune")

    def train(start: narrowing.Origin, pruned: Pruned, epochs: int) -> Path:
        shorter = replace(config, finetune=replace(config.finetune, epochs=epochs))
        return _trained(context, training, start, pruned, shorter, say)

    start, pruned, epochs = narrowing.cut_in_steps(
        context, training, origin, left, settings, config.finetune.epochs, train
    )
    weights = origin.weights
    if left or origin.dropped or config.finetune.epochs:
        weights = train(start, pruned, epochs)
        pruned.module.load_state_dict(torch.load(weights, weights_only=True))
    say("export")
    path = _bound(context, training, pruned, template, shape, weights)
    removed = {name: list(indices) for name, indices in pruned.removed.items()}
    return Source(
        path, weights, pruned.macs, pruned.parameters, removed, left, pruned.module, dropped=list(origin.dropped)
    )


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


def _trained(
    context: Context, training: Training, start: narrowing.Origin, pruned: Pruned, config: Config, say: Say
) -> Path:
    """The file with the fine-tuned weights of a network that was cut from ``start``."""
    task = context.task
    inputs = {
        **start.key(),
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
    labels = context.val.labels.numpy()
    sign = 1.0 if context.metric.higher_is_better else -1.0

    def val_quality(network: torch.nn.Module) -> float:
        found = tuple(x.numpy() for x in finetuning.predict(network, context.val.inputs, training.mode))
        return sign * float(context.metric.function(found[0] if len(found) == 1 else found, labels))

    return finetuning.finetune(
        module,
        training.train,
        config.finetune,
        training.objective,
        mode=training.mode,
        seed=context.seed,
        teacher=training.teacher,
        val_quality=val_quality,
        on_epoch=lambda epoch: say(f"finetune, epoch {epoch} of {config.finetune.epochs}"),
        optimizer=context.task.optimizer,
    )


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

"""One trial: a config becomes candidates, or is turned away before it is trained.

prune -> export -> latency gate -> fine-tune -> quantize -> measure -> score. One training yields a candidate in
every precision; every stage's result is cached under what determines it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from compress import baselines, exporting, finetuning, pruning, widths
from compress.configs import Config, PruneSettings
from compress.contexts import Context, Say, Training
from compress.latency_gate import Gated, gate
from compress.pruning import Pruned
from compress.quantities import Constraint
from compress.results import Candidate
from compress.serialization import file_hash, stable_hash, to_json
from compress.variants import Source, make_candidates, make_files
from targets.errors import ParityError, StageError, TrainingError

PRUNE_VERSION = 2
_MOST_RATIO = 0.95


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
    files, skipped = make_files(context, source.path, config)
    if not source.widths and config.finetune.epochs == 0:
        # In float that is the baseline itself.
        files = {variant: path for variant, path in files.items() if variant.scheme != "fp32"}
    say("measure")
    return Finished(tuple(make_candidates(context, number, config, source, files)), tuple(skipped))


def realised_widths(context: Context, settings: PruneSettings) -> dict[str, int]:
    """Group -> channels left, for the groups that lose some."""
    left: dict[str, int] = {}
    for group in context.profile.groups.prunable:
        shift = settings.skew * context.profile.robustness.get(group.name, 0.0) + settings.deltas.get(group.name, 0.0)
        ratio = min(_MOST_RATIO, max(0.0, settings.ratio + shift))
        width = widths.realise(group.channels, ratio, group.step(context.step), group.multiple)
        if width < group.channels:
            left[group.name] = width
    return left


def prune_to(context: Context, training: Training, left: Mapping[str, int]) -> Pruned:
    """The baseline cut to the given widths; which channels go is decided once and kept."""
    groups = context.profile.groups

    def compute(_: Path) -> dict[str, Any]:
        pruned = pruning.prune(training.module, training.example, widths=dict(left), groups=groups)
        return {"removed": {name: list(indices) for name, indices in pruned.removed.items()}}

    inputs = {"baseline": training.digest, "widths": dict(left)}
    removed = context.cache.stage("prune", PRUNE_VERSION, inputs, compute).info["removed"]
    return pruning.prune(
        training.module, training.example, removed={name: tuple(i) for name, i in removed.items()}, groups=groups
    )


def _network(
    context: Context, training: Training, config: Config, constraints: tuple[Constraint, ...], say: Say
) -> Source | Gated:
    """Prune, export, pass the gate, fine-tune, and put the trained weights into the exported graph."""
    say("prune")
    left = realised_widths(context, config.prune)
    pruned = prune_to(context, training, left)
    say("export")
    template = _template(context, training, pruned, left)
    say("gate")
    gated = gate(context, training, pruned, template, left, constraints)
    if gated is not None:
        return gated
    say("finetune")
    weights = None
    if left or config.finetune.epochs:
        weights = _trained(context, training, pruned, config, say)
        pruned.module.load_state_dict(torch.load(weights, weights_only=True))
    say("export")
    path = _bound(context, training, pruned, template, left, weights)
    removed = {name: list(indices) for name, indices in pruned.removed.items()}
    return Source(path, weights, pruned.macs, pruned.parameters, removed, left, pruned.module)


def _template(context: Context, training: Training, pruned: Pruned, left: Mapping[str, int]) -> onnx.ModelProto:
    """The pruned network's raw graph: exported once for its widths."""
    if not left:
        return training.template

    def compute(folder: Path) -> dict[str, Any]:
        onnx.save(exporting.trace(pruned.module, training.example, context.limits), folder / "template.onnx")
        return {}

    inputs = {"graph": context.baseline_structure, "widths": dict(left), "limits": to_json(context.limits)}
    return onnx.load(context.cache.stage("export", exporting.VERSION, inputs, compute).folder / "template.onnx")


def _trained(context: Context, training: Training, pruned: Pruned, config: Config, say: Say) -> Path:
    """The file with the fine-tuned weights."""
    task = context.task
    inputs = {
        "baseline": training.digest,
        "removed": stable_hash({name: list(indices) for name, indices in pruned.removed.items()}),
        "settings": to_json(config.finetune),
        "train": training.train.digest,
        "val": context.val.digest if config.finetune.patience else None,
        "seed": context.seed,
        "mode": to_json(training.mode),
        "loss": baselines.source_hash(task.loss),
        "finetune": baselines.source_hash(task.finetune),
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
    )


def _bound(
    context: Context, training: Training, pruned: Pruned, template: onnx.ModelProto, left: Mapping[str, int],
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
    inputs = {
        "graph": context.baseline_structure, "widths": dict(left), "weights": digest, "limits": to_json(context.limits),
    }  # fmt: skip
    return context.cache.stage("export", exporting.VERSION, inputs, compute).folder / "model.onnx"

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

from compress import baselines, exporting, finetuning, latencies, metrics, pruning, quantizing, scoring, widths
from compress.configs import Config, PruneSettings
from compress.contexts import Context, Say, Training
from compress.pruning import Pruned
from compress.quantities import Constraint
from compress.results import Candidate, DropSplits, Measured, Parity, QualitySplits
from compress.runs import link
from compress.serialization import file_hash, stable_hash, to_json, write_json
from targets.errors import QuantizeError, StageError, TrainingError

GATE_VERSION = 1
_MOST_RATIO = 0.95
_GATED = ("latency", "size", "instructions")
"""Quantities that are known before training."""


@dataclass(frozen=True)
class Gated:
    """A config that cannot meet a hard constraint, whatever it learns: never trained."""

    known: dict[str, Any]
    """Per target, for the precision that comes closest: ``ratio``, ``latency`` (s), ``instructions``, ``size``."""


@dataclass(frozen=True)
class Finished:
    """A config's candidates, one for every precision, and precisions that failed: (scheme, cause)."""

    candidates: tuple[Candidate, ...]
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Source:
    """A network to make candidates from: its float file and what is known of it."""

    path: Path
    weights: Path | None
    macs: int
    parameters: int
    removed: dict[str, list[int]]
    widths: dict[str, int]
    module: torch.nn.Module | None


def evaluate(
    context: Context, number: int, config: Config, constraints: tuple[Constraint, ...], say: Say
) -> Gated | Finished:
    """Run trial ``number``; raises StageError where a stage fails. What is already cached is not computed again."""
    if context.training is None:
        source = _Source(context.baseline_path, None, context.baseline.macs, context.baseline.parameters, {}, {}, None)
    else:
        made = _network(context, context.training, config, constraints, say)
        if isinstance(made, Gated):
            return made
        source = made
    say("quantize")
    files, skipped = _variants(context, source.path, config)
    if not source.widths and config.finetune.epochs == 0:
        files.pop("fp32", None)  # that is the baseline itself
    say("measure")
    return Finished(tuple(_candidates(context, number, config, source, files)), tuple(skipped))


def realised_widths(context: Context, settings: PruneSettings) -> dict[str, int]:
    """Group -> channels left, for the groups that lose some."""
    left: dict[str, int] = {}
    for group in context.profile.groups.prunable:
        shift = settings.skew * context.profile.robustness.get(group.name, 0.0) + settings.deltas.get(group.name, 0.0)
        ratio = min(_MOST_RATIO, max(0.0, settings.ratio + shift))
        width = widths.realise(group.channels, ratio, context.step, group.multiple)
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
    removed = context.cache.stage("prune", getattr(pruning, "VERSION", 1), inputs, compute).info["removed"]
    return pruning.prune(
        training.module, training.example, removed={name: tuple(i) for name, i in removed.items()}, groups=groups
    )


def _network(
    context: Context, training: Training, config: Config, constraints: tuple[Constraint, ...], say: Say
) -> _Source | Gated:
    """Prune, export, pass the gate, fine-tune, and put the trained weights into the exported graph."""
    say("prune")
    left = realised_widths(context, config.prune)
    pruned = prune_to(context, training, left)
    say("export")
    template = _template(context, training, pruned, left)
    say("gate")
    gated = _gate(context, training, pruned, template, left, config, constraints)
    if gated is not None:
        return gated
    say("finetune")
    weights = None
    if left or config.finetune.epochs:
        weights = _trained(context, training, pruned, config, left, say)
        pruned.module.load_state_dict(torch.load(weights, weights_only=True))
    say("export")
    path = _bound(context, training, pruned, template, left, weights)
    removed = {name: list(indices) for name, indices in pruned.removed.items()}
    return _Source(path, weights, pruned.macs, pruned.parameters, removed, left, pruned.module)


def _template(context: Context, training: Training, pruned: Pruned, left: Mapping[str, int]) -> onnx.ModelProto:
    """The pruned network's raw graph: exported once for its widths."""
    if not left:
        return training.template

    def compute(folder: Path) -> dict[str, Any]:
        onnx.save(exporting.trace(pruned.module, training.example), folder / "template.onnx")
        return {}

    inputs = {"graph": context.baseline_structure, "widths": dict(left)}
    return onnx.load(context.cache.stage("export", exporting.VERSION, inputs, compute).folder / "template.onnx")


def _gate(
    context: Context, training: Training, pruned: Pruned, template: onnx.ModelProto, left: Mapping[str, int],
    config: Config, constraints: tuple[Constraint, ...],
) -> Gated | None:  # fmt: skip
    """Measure the untrained network in its likely precisions; Gated if none can meet the limits on any target."""
    hard = tuple(c for c in constraints if c.quantity in _GATED)
    if not hard:
        return None
    schemes = [scheme for scheme in context.schemes if scheme in ("fp32", "int8")] or list(context.schemes[:1])

    def compute(folder: Path) -> dict[str, Any]:
        path = folder / "fp32.onnx"
        onnx.save(exporting.bind(template, pruned.module.state_dict()), path)
        if "int8" in schemes and quantizing.layers(path):
            few = {name: x[: quantizing.BATCH] for name, x in context.calibration.items()}
            quantizing.collect_ranges(path, few, "minmax", folder / "ranges.json")
            capabilities = context.targets[0].capabilities()
            quantizing.quantize_static(path, folder / "int8.onnx", folder / "ranges.json", "minmax", capabilities)
        return {}

    inputs = {"baseline": training.digest, "widths": dict(left), "schemes": schemes}
    folder = context.cache.stage("gate", GATE_VERSION, inputs, compute).folder
    paths = [folder / f"{s}.onnx" for s in schemes if (folder / f"{s}.onnx").exists()]
    known: dict[str, Any] = {}
    for target in context.targets:
        found = latencies.measure(
            context.cache, target, context.describe[target.name], context.baseline_path, paths, _one(context)
        )
        rows = [_known(path, info, context, target.name) for path, info in zip(paths, found, strict=True)]
        excess = [max(_violations(row, hard, context, target.name)) for row in rows]
        if min(excess) <= 0:
            return None
        known[target.name] = rows[excess.index(min(excess))]
    return Gated(known)


def _known(path: Path, info: Mapping[str, Any], context: Context, target: str) -> dict[str, Any]:
    zero = context.baseline.measured[target]
    latency = latencies.latency_result(info)
    return {
        "size": path.stat().st_size,
        "ratio": latency.ratio if latency else None,
        "latency": latency.p50 if latency else None,
        "instructions": info.get("instructions"),
        "instructions_ratio": info["instructions"] / zero.instructions if info.get("instructions") and zero.instructions else None,
    }  # fmt: skip


def _violations(row: Mapping[str, Any], hard: tuple[Constraint, ...], context: Context, target: str) -> list[float]:
    return [known_violation(row, constraint, context.baseline, target) for constraint in hard]


def known_violation(row: Mapping[str, Any], constraint: Constraint, baseline: Candidate, target: str) -> float:
    """Scaled violation of a constraint by what the gate knows; 0 where it knows nothing of that quantity."""
    if constraint.quantity not in _GATED:
        return 0.0
    value = row.get(constraint.quantity)
    if constraint.relative and constraint.quantity == "latency":
        value = row.get("ratio")
    elif constraint.relative and constraint.quantity == "instructions":
        value = row.get("instructions_ratio")
    elif constraint.relative:
        value = None if value is None else value / baseline.size
    # The value is relative already where the constraint is.
    return float("inf") if value is None else constraint.violation(value, 1.0)


def _trained(
    context: Context, training: Training, pruned: Pruned, config: Config, left: Mapping[str, int], say: Say
) -> Path:
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
        onnx.save(exporting.bind(template, pruned.module.state_dict()), path)
        try:
            exporting.check_parity(path, pruned.module, example)
            return {"traced": False}
        except exporting.ParityError as error:
            print(f"exporting anew: {error}", file=sys.stderr)
        onnx.save(exporting.bind(exporting.trace(pruned.module, example), pruned.module.state_dict()), path)
        exporting.check_parity(path, pruned.module, example)
        return {"traced": True}

    digest = file_hash(weights)[:16] if weights else training.digest
    inputs = {"graph": context.baseline_structure, "widths": dict(left), "weights": digest}
    return context.cache.stage("export", exporting.VERSION, inputs, compute).folder / "model.onnx"


def _variants(context: Context, path: Path, config: Config) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """Scheme -> file for every precision of the space that works, and (scheme, cause) for those that do not."""
    files: dict[str, Path] = {}
    skipped: list[tuple[str, str]] = []
    for scheme in context.schemes:
        try:
            files[scheme] = path if scheme == "fp32" else _variant(context, path, scheme, config)
        except QuantizeError as error:
            skipped.append((scheme, str(error)))
    return files, skipped


def _variant(context: Context, path: Path, scheme: str, config: Config) -> Path:
    """The file in one precision. With several targets the format is the first one's."""
    capabilities = context.targets[0].capabilities()
    source = file_hash(path)
    keep: tuple[str, ...] = ()
    method = config.precision.calibration
    ranges = Path()
    if scheme != "int8-dynamic":
        ranges = _ranges(context, path, source, method)
    if scheme == "mixed":
        names = quantizing.layers(path)
        count = max(1, round(config.precision.float_share * len(names)))
        keep = tuple(sorted(names[i] for i in context.profile.int8_order[:count]))

    def compute(folder: Path) -> dict[str, Any]:
        if scheme == "int8-dynamic":
            found = quantizing.quantize_dynamic(path, folder / "model.onnx", capabilities)
        else:
            found = quantizing.quantize_static(
                path, folder / "model.onnx", ranges, method, capabilities, keep_float=keep
            )
        model = exporting.clean(onnx.load(found.path))
        onnx.save(model, found.path)
        return {"int8": list(found.int8), "kept": list(found.kept)}

    static = {} if scheme == "int8-dynamic" else {"method": method, "keep": list(keep)}
    inputs = {"source": source, "scheme": scheme, "format": to_json(capabilities), **static}
    return context.cache.stage("quantize", quantizing.VERSION, inputs, compute).folder / "model.onnx"


def _ranges(context: Context, path: Path, source: str, method: str) -> Path:
    """Calibrated once per trained network and method."""

    def compute(folder: Path) -> dict[str, Any]:
        quantizing.collect_ranges(path, context.calibration, method, folder / "ranges.json")
        return {}

    inputs = {"calibrate": source, "method": method, "samples": len(next(iter(context.calibration.values())))}
    return context.cache.stage("quantize", quantizing.VERSION, inputs, compute).folder / "ranges.json"


def _candidates(
    context: Context, number: int, config: Config, source: _Source, files: Mapping[str, Path]
) -> list[Candidate]:
    """Measure and score every file on every target, and put it into its folder."""
    paths = list(files.values())
    if not paths:
        return []
    measured: dict[str, dict[str, Measured]] = {scheme: {} for scheme in files}
    parity: dict[str, Parity] = {}
    for target in context.targets:
        found = latencies.measure(
            context.cache, target, context.describe[target.name], context.baseline_path, paths, _one(context)
        )
        for (scheme, path), info in zip(files.items(), found, strict=True):
            quality, drop, _ = scoring.score(context, target, path, context.val, dynamic=scheme == "int8-dynamic")
            measured[scheme][target.name] = Measured(
                QualitySplits(quality), DropSplits(drop), latencies.latency_result(info),
                info.get("memory"), info.get("instructions"),
            )  # fmt: skip
    candidates = []
    for scheme, path in files.items():
        identifier = f"{number:04d}-{scheme}"
        if source.module is not None:
            parity[scheme] = exporting.check_parity(path, source.module, context.val.first(8), enforce=False)
        else:
            parity[scheme] = _parity_with_baseline(context, path)
        settings = replace(config, precision=replace(config.precision, scheme=scheme))
        candidate = Candidate(
            identifier, f"candidates/{identifier}/model.onnx", {**to_json(settings), "widths": source.widths},
            path.stat().st_size, source.parameters, source.macs, parity[scheme], measured[scheme], number,
        )  # fmt: skip
        _store(context, candidate, path, source)
        candidates.append(candidate)
    return candidates


def _parity_with_baseline(context: Context, path: Path) -> Parity:
    """A quantized file against the ONNX file it came from."""
    target = context.targets[0]
    description = context.describe[target.name]
    found = scoring.outputs(context.cache, target, description, path, context.val, context.names)
    zero = scoring.outputs(context.cache, target, description, context.baseline_path, context.val, context.names)
    a, b = (x[0] if isinstance(x, tuple) else x for x in (zero, found))
    agreement = metrics.get("agreement").function(b, a)
    return Parity(float(abs(a - b).max()), float(agreement))


def _store(context: Context, candidate: Candidate, path: Path, source: _Source) -> None:
    folder = context.run.candidate_folder(candidate.id)
    folder.mkdir(parents=True, exist_ok=True)
    link(path, folder / "model.onnx")
    if source.weights is not None:
        link(source.weights, folder / "weights.pt")
    write_json(folder / "candidate.json", {**to_json(candidate), "removed": source.removed})


def _one(context: Context) -> dict[str, Any]:
    """One real example: what is timed should see realistic numbers."""
    return {name: array[:1] for name, array in context.val.arrays(context.names).items()}


def remeasured(context: Context, candidate: Candidate, infos: Mapping[str, Mapping[str, Any]]) -> Candidate:
    """``candidate`` with new latencies, by target."""
    for target, info in infos.items():
        measured = candidate.measured[target]
        latency = latencies.latency_result(info)
        candidate = candidate.on(target, replace(measured, latency=latency, memory=info.get("memory", measured.memory)))
    return candidate

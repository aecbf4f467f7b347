"""The stage that measures files on targets: latency or instructions, memory, quality and its drop on val."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.baseline.contexts import Context, Instruments
from compress.measurement.latencies import SEARCHING, measure, measured
from compress.measurement.scoring import Scored
from compress.metrics import metrics
from compress.precision.schemes import Variant
from compress.tasks.datasets import Split
from compress.values.candidates import Drop, Measured, Quality
from targets.target import Protocol, Target


def measure_files(context: Context, files: Mapping[Variant, Path]) -> dict[Variant, dict[str, Measured]]:
    """Every file on every target that runs it: variant -> target -> what was measured there."""
    found: dict[Variant, dict[str, Measured]] = {variant: {} for variant in files}
    for target in context.targets.all:
        mine = {variant: path for variant, path in files.items() if target.name in variant.targets}
        infos = measure_on(context.instruments, target, list(mine.values())) if mine else []
        for (variant, path), info in zip(mine.items(), infos, strict=True):
            found[variant][target.name] = scored_on_val(context, target, path, info, variant.scheme)
    return found


def scored_on_val(context: Context, target: Target, path: Path, info: Mapping[str, Any], scheme: str) -> Measured:
    """What was measured of a file (``info``), with its quality on val."""
    dynamic = scheme == "int8-dynamic"
    quality, drop, scored = score(context.instruments, target, path, context.val, "val", dynamic=dynamic)
    return measured(info, quality, drop, scored.check)


def measure_on(
    instruments: Instruments, target: Target, paths: Sequence[Path], protocol: Protocol = SEARCHING
) -> list[dict[str, Any]]:
    """Latency (or instructions) and memory of files on one target against the baseline, as JSON, in their order.

    Raises MeasurementError or ModelError where a file does not run there.
    """
    description = instruments.describe[target.name]
    baseline, sample = instruments.baseline_path, instruments.sample
    return measure(instruments.cache, target, description, baseline, paths, sample, protocol)


def score(
    instruments: Instruments, target: Target, path: Path, split: Split, which: str, *, dynamic: bool = False
) -> tuple[Quality, Drop, Scored]:
    """Quality and drop against the baseline on ``split``, with intervals; and the outputs they come from."""
    outputs = instruments.scorer.outputs
    found = outputs(target, path, split, which, dynamic=dynamic)
    reference = found
    if path != instruments.baseline_path:
        # A drop is between outputs of one runtime.
        reference = outputs(target, instruments.baseline_path, split, which, there=not found.on_host)
    metric, labels, seed = instruments.metric, split.labels.numpy(), instruments.seed
    quality = metrics.quality_of(metric, found.outputs, labels, seed)
    drop = metrics.quality_drop(metric, reference.outputs, found.outputs, labels, seed)
    return quality, drop, found

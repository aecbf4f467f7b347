"""Measuring: carried here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.baseline.contexts import Context
from compress.measurement.latencies import SEARCHING, measure
from compress.measurement.scoring import Scored
from compress.metrics import metrics
from compress.tasks.datasets import Split
from compress.values.candidates import (
    Drop,
    Quality,
)
from targets.target import Protocol, Target


def measure_on(
    context: Context, target: Target, paths: Sequence[Path], protocol: Protocol = SEARCHING
) -> list[dict[str, Any]]:
    """``measure`` with what a search has: its baseline, and one real example, so that realistic numbers are timed."""
    sample = {name: array[:1] for name, array in context.val.arrays(context.names).items()}
    description = context.describe[target.name]
    return measure(context.cache, target, description, context.baseline_path, paths, sample, protocol)


def score(
    context: Context, target: Target, path: Path, split: Split, which: str, *, dynamic: bool = False
) -> tuple[Quality, Drop, Scored]:
    """Quality and drop against the baseline on ``split``, with intervals; and the outputs they come from."""
    found = context.scorer.outputs(target, path, split, which, dynamic=dynamic)
    reference = found
    if path != context.baseline_path:
        # A drop is between outputs of one runtime.
        reference = context.scorer.outputs(target, context.baseline_path, split, which, there=not found.on_host)
    labels = split.labels.numpy()
    quality = metrics.quality_of(context.metric, found.outputs, labels, context.seed)
    drop = metrics.quality_drop(context.metric, reference.outputs, found.outputs, labels, context.seed)
    return quality, drop, found

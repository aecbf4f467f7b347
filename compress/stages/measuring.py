"""The stage that measures files on targets: latency or a count, memory, quality and its drop on val."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.baseline.contexts import Context, Instruments
from compress.measurement.latencies import measure, measured
from compress.measurement.scoring import Scored
from compress.metrics import metrics
from compress.precision.schemes import Variant
from compress.tasks.datasets import Split
from compress.values.candidates import Drop, Measured, Quality
from targets.errors import ModelError, StageError, TransientError
from targets.target import Protocol, Target


def measure_files(
    context: Context, files: Mapping[Variant, Path]
) -> tuple[dict[Variant, dict[str, Measured]], list[tuple[str, str]]]:
    """Every file on every target that runs it: variant -> target -> what was measured there.

    One precision that does not run takes no other with it: second come those, each as (variant's name, cause). Raises
    StageError or ModelError where nothing could be measured, or where what went wrong does not happen again.
    """
    found: dict[Variant, dict[str, Measured]] = {}
    failed: dict[str, str] = {}
    errors: list[Exception] = []
    for target in context.targets.all:
        mine = {variant: path for variant, path in files.items() if target.name in variant.targets}
        if not mine:
            continue
        infos, refused = measure_each(context.instruments, target, list(mine.values()))
        for variant, path in mine.items():
            error: Exception | None = refused.get(path)
            if error is None:
                try:
                    here = _scored(context, target, path, infos[path], variant, again=len(files) > 1)
                    found.setdefault(variant, {})[target.name] = here
                    continue
                except (StageError, ModelError) as caught:
                    if isinstance(caught, TransientError):
                        raise
                    error = caught
            errors.append(error)
            failed[variant.name] = f"{target.name}: {error}"
    if errors and not found:
        raise errors[0]
    return found, list(failed.items())


def measure_each(
    instruments: Instruments, target: Target, paths: Sequence[Path], protocol: Protocol | None = None
) -> tuple[dict[Path, dict[str, Any]], dict[Path, StageError | ModelError]]:
    """``measure_on`` of several files, and why some of them do not run there.

    Raises what measuring them together raised where no file runs, or every one of them runs alone: then it was not
    the files' fault, and may be tried again.
    """
    try:
        return dict(zip(paths, measure_on(instruments, target, paths, protocol), strict=True)), {}
    except TransientError:
        raise
    except (StageError, ModelError) as error:
        if len(paths) < 2:
            raise
        together = error
    found: dict[Path, dict[str, Any]] = {}
    failed: dict[Path, StageError | ModelError] = {}
    for path in paths:
        try:
            [found[path]] = measure_on(instruments, target, [path], protocol)
        except TransientError:
            raise
        except (StageError, ModelError) as error:
            failed[path] = error
    if not found or not failed:
        raise together
    return found, failed


def _scored(
    context: Context, target: Target, path: Path, info: Mapping[str, Any], variant: Variant, *, again: bool
) -> Measured:
    """``scored_on_val``; with ``again``, what fails once is tried a second time before it counts."""
    try:
        return scored_on_val(context, target, path, info, variant.scheme)
    except TransientError:
        raise
    except (StageError, ModelError):
        if not again:
            raise
    return scored_on_val(context, target, path, info, variant.scheme)


def scored_on_val(context: Context, target: Target, path: Path, info: Mapping[str, Any], scheme: str) -> Measured:
    """What was measured of a file (``info``), with its quality on val."""
    dynamic = scheme == "int8-dynamic"
    quality, drop, scored = score(context.instruments, target, path, context.val, "val", dynamic=dynamic)
    return measured(info, quality, drop, scored.check)


def measure_on(
    instruments: Instruments, target: Target, paths: Sequence[Path], protocol: Protocol | None = None
) -> list[dict[str, Any]]:
    """Latency (or what is counted) and memory of files on one target against the baseline, as JSON, in their order.

    ``protocol``: None for that of the search. Raises MeasurementError or ModelError where a file does not run there.
    """
    description = instruments.describe[target.name]
    baseline, sample = instruments.baseline_path, instruments.sample
    return measure(instruments.cache, target, description, baseline, paths, sample, protocol or instruments.protocol)


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

"""Latency of candidates against the baseline, measured once per structure: it does not depend on the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.onnx_files.graphs import structure_hash
from compress.run_folder.caching import Cache
from compress.values.candidates import (
    DeviceCheck,
    Drop,
    DropSplits,
    IntegerShare,
    LatencyResult,
    Measured,
    Quality,
    QualitySplits,
)
from compress.values.serialization import to_json
from targets.benches.comparing import disturbed
from targets.documents import file_hash
from targets.errors import StageError
from targets.target import Measurement, Protocol, Target

VERSION = 3
"""Of this stage: part of the key under which its results are stored."""
SEARCHING = Protocol(width=0.02, seconds=2.5, processes=1)
"""How every candidate is measured while searching: within 2 %, in one process."""
QUICK = Protocol(width=0.015, seconds=1.0, rounds=8, block=0.01, warmup=0.05, processes=1)
"""How many untrained networks are measured, whose costs a regression makes more of; and what is then trained."""
FINAL = Protocol(width=0.01, seconds=6.0, processes=5, most=8, total=60.0)
"""How those that may be picked are measured at the end: within 1 %, in five to eight fresh processes."""


def measure(
    cache: Cache,
    target: Target,
    description: Any,
    baseline: Path,
    paths: Sequence[Path],
    inputs: Mapping[str, np.ndarray],
    protocol: Protocol = SEARCHING,
) -> list[dict[str, Any]]:
    """Latency (or what is counted) and memory of the files ``paths`` on ``target``, a JSON document each, in order.

    They are timed in turns with ``baseline`` on ``inputs`` (by input name), as ``protocol`` says; times are in seconds
    and memory in bytes. Files of one structure are measured once, unless weights act on cost there, and none that the
    cache has under ``description``, the device's. The documents hold the raw samples too. Raises MeasurementError or
    ModelError where a file does not run.
    """
    zero = structure_hash(baseline)
    structures = [(file_hash if target.cost_by_weights else structure_hash)(path) for path in paths]
    keys = {
        s: {
            "structure": s,
            "baseline": zero,
            "target": target.name,
            "device": description,
            "protocol": to_json(protocol),
        }
        for s in structures
    }
    missing: dict[str, Path] = {}
    for structure, path in zip(structures, paths, strict=True):
        if cache.get("measure", VERSION, keys[structure]) is None:
            missing.setdefault(structure, path)
    if missing:
        with cache.timed("measure"):
            found = target.measure([baseline, *missing.values()], inputs=inputs, protocol=protocol)
        for structure, measurement in zip(missing, found[1:], strict=True):
            integer = _audited(target, missing[structure])
            cache.put("measure", VERSION, keys[structure], _as_json(measurement, integer))
    results = []
    for structure in structures:
        artifact = cache.get("measure", VERSION, keys[structure])
        results.append(artifact.info if artifact else {})
    return results


def latency_result(info: Mapping[str, Any]) -> LatencyResult | None:
    """The latency in a result of ``measure``, in seconds; None where cost is counted instead."""
    data = info.get("latency")
    if data is None:
        return None
    named = {name: data[name] for name in ("p50", "p95", "ratio", "low", "high", "runs")}
    beside = [seconds for one in info.get("samples") or () for seconds in one["reference"]]
    return LatencyResult(
        **named, disturbed=info["disturbed"], settled=info["settled"], baseline=min(beside, default=None)
    )


def integer_share(info: Mapping[str, Any]) -> IntegerShare | None:
    """What a result of ``measure`` says about integer kernels; None where the runtime shows nothing of itself."""
    data = info.get("integer")
    if data is None:
        return None
    return IntegerShare(data["integer"], data["layers"], tuple(data["why"]), data.get("on_npu", False))


def measured(info: Mapping[str, Any], quality: Quality, drop: Drop, check: DeviceCheck | None) -> Measured:
    """A result of ``measure`` and the score on val, put together to all that one target says of a candidate."""
    return Measured(
        QualitySplits(quality),
        DropSplits(drop),
        latency_result(info),
        info.get("memory"),
        info.get("instructions"),
        scored_on_host={} if check is None else {"val": check},
        integer=integer_share(info),
        flash=info.get("flash"),
        cycles=info.get("cycles"),
        stand_in=info.get("stand_in", False),
    )


def _as_json(measurement: Measurement, integer: IntegerShare | None) -> dict[str, Any]:
    data = to_json(replace(measurement, path=Path(measurement.path.name)))
    return {
        **data, "path": measurement.path.name, "integer": to_json(integer), "disturbed": disturbed(measurement),
    }  # fmt: skip


def _audited(target: Target, path: Path) -> IntegerShare | None:
    try:
        layers = target.audit(path)
    except StageError:
        return None  # it was measured: what it shows of itself is an extra
    if layers is None:
        return None
    on_npu = any(layer.on_npu is not None for layer in layers)
    counted = [bool(layer.on_npu) if on_npu else layer.integer for layer in layers]
    reasons = Counter(layer.why for layer, one in zip(layers, counted, strict=True) if not one and layer.why)
    return IntegerShare(sum(counted), len(layers), tuple(why for why, _ in reasons.most_common()), on_npu)

"""The latency gate: what cannot meet a hard limit is never trained.

Latency does not depend on the weights, and size hardly: the pruned, untrained network is exported and measured in
fp32 and in int8 with provisional ranges, since a config that only int8 can save must not be thrown away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from compress.baseline.contexts import Context, Training
from compress.measurement import latencies
from compress.onnx_files import exporting, limits
from compress.precision import calibration_samples, quantizer, ranges, stored_weights
from compress.pruning.pruning import Pruned
from compress.selection.feasibility import KNOWN, violation
from compress.stages import measuring
from compress.values.candidates import Candidate
from compress.values.configs import OPERATORS, QAT, STORED
from compress.values.constraints import Constraint
from compress.values.serialization import to_json
from targets.errors import QuantizeError

VERSION = 3


@dataclass(frozen=True)
class Gated:
    """A config that cannot meet a hard constraint on any target, whatever it learns."""

    known: dict[str, Any]
    """Per target, for the precision that comes closest: ``ratio``, ``latency`` (s), ``instructions``, ``size``."""


def gate(
    context: Context,
    training: Training,
    pruned: Pruned,
    template: onnx.ModelProto,
    left: Mapping[str, int],
    constraints: tuple[Constraint, ...],
    dropped: tuple[str, ...] = (),
    operators: str = OPERATORS[0],
) -> Gated | None:
    """Measure the untrained network; Gated if no precision can meet the limits on any target, else None.

    ``left``: widths of the groups that are cut; ``dropped``: blocks that it lacks; ``operators``: what int8
    quantizes.
    """
    hard = tuple(c for c in constraints if c.quantity in KNOWN)
    if not hard:
        return None
    shape = {"widths": dict(left), **({"dropped": list(dropped)} if dropped else {})}
    files = _provisional(context, training, pruned, template, shape, operators)
    known: dict[str, Any] = {}
    for target in context.targets.all:
        paths = [path for path, able in files.items() if target.name in able]
        found, _ = measuring.measure_each(context.instruments, target, paths)  # what does not run saves nothing
        rows = [_known(path, info, context.baseline.candidate, target.name) for path, info in found.items()]
        excess = [max(violation(row, constraint, context.baseline.candidate) for constraint in hard) for row in rows]
        if min(excess) <= 0:
            return None
        known[target.name] = rows[excess.index(min(excess))]
    return Gated(known)


def _provisional(
    context: Context,
    training: Training,
    pruned: Pruned,
    template: onnx.ModelProto,
    shape: Mapping[str, Any],
    operators: str,
) -> dict[Path, tuple[str, ...]]:
    """Files of the untrained network, in the precisions that decide about its cost, and who runs them."""
    plain = [variant for variant in context.targets.variants if variant.scheme == "int8"]
    # Trained in int8, a network costs what it costs quantized.
    int8 = plain or [variant for variant in context.targets.variants if variant.scheme == QAT]
    stored = [variant for variant in context.targets.variants if variant.scheme in STORED]

    def compute(folder: Path) -> dict[str, Any]:
        path, found = folder / "fp32.onnx", folder / "ranges.json"
        onnx.save(exporting.bind(template, pruned.module.state_dict(), context.targets.limits), path)
        if int8 and quantizer.quantizable_layers(path):
            few = {name: x[: calibration_samples.BATCH] for name, x in context.calibration.samples.items()}
            ranges.collect_ranges(path, few, "minmax", found)
            for variant in int8:
                made = folder / f"{variant.name}.onnx"
                quantizer.quantize_static(path, made, found, "minmax", variant.capabilities, operators=operators)
                onnx.save(limits.fit_to_limits(onnx.load(made), context.targets.limits), made)
        for variant in stored:
            with contextlib.suppress(QuantizeError):  # a cut network may have nothing left that is worth it
                stored_weights.write_stored(path, variant.scheme, folder / f"{variant.name}.onnx")
        return {}

    formats = {variant.name: [variant.format, variant.capabilities.reduce_range] for variant in int8}
    formats |= {variant.name: [str(stored_weights.VERSION)] for variant in stored}
    inputs = {
        "baseline": training.digest,
        **shape,
        "int8": formats,
        "operators": operators,
        "limits": to_json(context.targets.limits),
    }
    folder = context.cache.stage("gate", VERSION, inputs, compute).folder
    files = {folder / f"{variant.name}.onnx": variant.targets for variant in (*int8, *stored)}
    # Where no float file is asked for, nothing but an int8 one may save the config.
    if not files or any(variant.scheme in ("fp32", "int8-dynamic") for variant in context.targets.variants):
        files[folder / "fp32.onnx"] = tuple(target.name for target in context.targets.all)
    return {path: able for path, able in files.items() if path.exists()}


def _known(path: Path, info: Mapping[str, Any], baseline: Candidate, target: str) -> dict[str, Any]:
    zero = baseline.measured[target].instructions
    latency, instructions = latencies.latency_result(info), info.get("instructions")
    return {
        "size": path.stat().st_size,
        "ratio": latency.ratio if latency else None,
        "latency": latency.p50 if latency else None,
        "instructions": instructions,
        "instructions_ratio": instructions / zero if instructions and zero else None,
    }

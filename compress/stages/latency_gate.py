"""The latency gate: what cannot meet a hard limit is never trained.

Latency does not depend on the weights, and size hardly: the pruned, untrained network is exported and measured in
fp32 and in int8 with provisional ranges, since a config that only int8 can save must not be thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.baseline.contexts import Context, Training
from compress.measurement import latencies
from compress.precision.schemes import Variant
from compress.selection.feasibility import KNOWN, violation
from compress.stages import measuring
from compress.stages.untrained import Untrained, provisional_files
from compress.values.candidates import Candidate
from compress.values.configs import OPERATORS
from compress.values.constraints import Constraint
from targets.target import COUNTS, Target


@dataclass(frozen=True)
class Gated:
    """A config that cannot meet a hard constraint on any target, whatever it learns."""

    known: dict[str, Any]
    """Per target, for the precision that comes closest: ``ratio``, ``latency`` (s), counts, ``size``."""


def gate(
    context: Context,
    training: Training,
    network: Untrained,
    constraints: tuple[Constraint, ...],
    operators: str = OPERATORS[0],
) -> Gated | None:
    """Measure the untrained network; Gated if no precision can meet the limits on any target, else None.

    ``operators``: what int8 quantizes.
    """
    hard = tuple(c for c in constraints if c.quantity in KNOWN)
    if not hard:
        return None
    return _gated(context, provisional_files(context, training, network, operators), hard)


def gate_untouched(
    context: Context, files: Mapping[Variant, Path], constraints: tuple[Constraint, ...]
) -> Gated | None:
    """The same of the network as it came, in the precisions that are there: ``files``."""
    hard = tuple(c for c in constraints if c.quantity in KNOWN)
    if not hard or not files:
        return None
    return _gated(context, {path: variant.targets for variant, path in files.items()}, hard)


def _gated(context: Context, files: Mapping[Path, tuple[str, ...]], hard: tuple[Constraint, ...]) -> Gated | None:
    """Gated if none of ``files`` (path -> who runs it) can meet the limits on any target, else None."""
    known: dict[str, Any] = {}
    for target in context.targets.all:
        paths = [path for path, able in files.items() if target.name in able]
        if not paths:
            continue
        found, _ = measuring.measure_each(context.instruments, target, paths)  # what does not run saves nothing
        rows = [_known(path, info, context.baseline.candidate, target) for path, info in found.items()]
        excess = [max(violation(row, constraint, context.baseline.candidate) for constraint in hard) for row in rows]
        if min(excess) <= 0:
            return None
        known[target.name] = rows[excess.index(min(excess))]
    return Gated(known) if known else None


def _known(path: Path, info: Mapping[str, Any], baseline: Candidate, target: Target) -> dict[str, Any]:
    latency = latencies.latency_result(info)
    return {
        **_known_size(path, info.get("flash"), baseline.measured[target.name].flash),
        "ratio": latency.ratio if latency else None,
        "latency": latency.p50 if latency else None,
        **{key: value for name in COUNTS for key, value in _known_count(name, info, baseline, target).items()},
        # Of a process, memory is known too roughly to decide before a training.
        **(_known_memory(info.get("memory"), baseline.measured[target.name].memory) if target.counted else {}),
    }


def _known_count(name: str, info: Mapping[str, Any], baseline: Candidate, target: Target) -> dict[str, Any]:
    """Instructions or cycles, and their ratio to the baseline's; None where they are not counted."""
    found, zero = info.get(name), getattr(baseline.measured[target.name], name)
    return {name: found, f"{name}_ratio": found / zero if found and zero else None}


def _known_size(path: Path, flash: int | None, zero: int | None) -> dict[str, Any]:
    """Of the file; or with the code that runs it, where the target knows that."""
    if flash is None:
        return {"size": path.stat().st_size}
    return {"size": flash, **({"size_ratio": flash / zero} if zero else {})}


def _known_memory(found: int | None, zero: int | None) -> dict[str, Any]:
    return {} if found is None else {"memory": found, "memory_ratio": found / zero if zero else None}

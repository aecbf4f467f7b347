"""Feasibility: carried here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.values.candidates import Candidate, Measured
from compress.values.constraints import Constraint

KNOWN = ("latency", "size", "instructions")
"""Quantities that are known before training."""


def violation(row: Mapping[str, Any], constraint: Constraint, baseline: Candidate) -> float:
    """Scaled violation of a constraint by what the gate knows; 0 where it knows nothing of that quantity."""
    if constraint.quantity not in KNOWN:
        return 0.0
    value = row.get(constraint.quantity)
    if constraint.relative and constraint.quantity == "size":
        value = None if value is None else value / baseline.size
    elif constraint.relative:
        value = row.get("ratio" if constraint.quantity == "latency" else "instructions_ratio")
    # The value is relative already where the constraint is.
    return float("inf") if value is None else constraint.violation(value, 1.0)


def quantity(candidate: Candidate, measured: Measured, name: str) -> float | None:
    """The value of ``name`` in base units (latency: p50 in seconds), or None where it was not measured."""
    values: dict[str, Any] = {
        "quality": measured.quality.val.value,
        "quality_drop": measured.quality_drop.val.value,
        "latency": measured.latency.p50 if measured.latency else None,
        "size": candidate.size,
        "memory": measured.memory,
        "instructions": measured.instructions,
    }
    value = values[name]
    return None if value is None else float(value)


def relative_quantity(candidate: Candidate, measured: Measured, name: str, baseline: float | None) -> float | None:
    """``name`` relative to the baseline's; for latency that is the paired ratio, not a quotient of medians."""
    if name == "latency":
        return measured.latency.ratio if measured.latency else None
    value = quantity(candidate, measured, name)
    return None if value is None or not baseline else value / baseline


def excesses(
    candidate: Candidate, baseline: Candidate, target: str, constraints: tuple[Constraint, ...], *, scaled: bool
) -> dict[str, float]:
    """Constraint text -> how far beyond its limit (<= 0: met), in order; ``scaled``: as a share of the limit.

    A quantity the target does not measure counts as met by nothing: it is infinitely beyond.
    """
    measured, zero = candidate.measured[target], baseline.measured[target]
    found: dict[str, float] = {}
    for constraint in constraints:
        value = quantity(candidate, measured, constraint.quantity)
        if constraint.relative:
            value = relative_quantity(
                candidate, measured, constraint.quantity, quantity(baseline, zero, constraint.quantity)
            )
        if value is None:
            found[constraint.text] = float("inf")
            continue
        # The value is already relative where the constraint is: no baseline left to divide by.
        found[constraint.text] = constraint.violation(value, 1.0) if scaled else constraint.excess(value, 1.0)
    return found


def is_feasible(candidate: Candidate, baseline: Candidate, target: str, constraints: tuple[Constraint, ...]) -> bool:
    """Whether every constraint is met on val, by the values (a hair of float error is forgiven)."""
    return all(x <= 1e-9 for x in excesses(candidate, baseline, target, constraints, scaled=True).values())


_HAIR = 1e-9
"""Rounding that is forgiven at a limit, as ``is_feasible`` does."""

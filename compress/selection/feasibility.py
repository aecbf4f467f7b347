"""Feasibility: how far a candidate is beyond each constraint, and whether it meets them all.

Constraints are decided on val and by the values, not by their intervals. What the latency gate knows of a network
before it is trained is held against the same constraints by ``violation``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.values.candidates import Candidate, Measured
from compress.values.constraints import Constraint
from targets.target import COUNTS

KNOWN = ("latency", "size", *COUNTS, "memory")
"""Quantities that are known before training."""

ROUNDING = 1e-9
"""What floating-point rounding may put a value beyond a limit by, and it still counts as met."""


def violation(row: Mapping[str, Any], constraint: Constraint, baseline: Candidate) -> float:
    """How far an untrained network is beyond a constraint, as a share of the limit; 0 or less is met.

    ``row`` is what the latency gate knows of it on one target: ``latency`` in seconds, ``size`` in bytes,
    ``instructions`` and ``cycles``, and relative to the baseline ``ratio`` (of latencies) and, of counts,
    ``instructions_ratio`` and ``cycles_ratio``; ``memory`` and
    ``memory_ratio`` where memory is counted exactly. A quantity that is known only after training gives 0, one that the
    target does not measure gives infinity.

    >>> from compress.values.candidates import Parity
    >>> from compress.values.constraints import parse_constraint
    >>> baseline = Candidate("baseline", None, {}, 1000, 10, 10, Parity(0.0, 1.0), {})  # of 1000 B
    >>> [violation({"size": 750}, parse_constraint(text), baseline) for text in ("size<=500B", "size<=0.5x")]
    [0.5, 0.5]
    """
    if constraint.quantity not in KNOWN or (constraint.quantity == "memory" and "memory" not in row):
        return 0.0
    value = row.get(constraint.quantity)
    if constraint.relative and constraint.quantity == "size":
        value = row.get("size_ratio", None if value is None else value / baseline.size)
    elif constraint.relative:
        value = row.get("ratio" if constraint.quantity == "latency" else f"{constraint.quantity}_ratio")
    # The value is relative already where the constraint is.
    return float("inf") if value is None else constraint.violation(value, 1.0)


def quantity(candidate: Candidate, measured: Measured, name: str) -> float | None:
    """The value of the quantity ``name`` on the target that ``measured`` is of, or None where it was not measured.

    The unit is the metric's own for ``quality`` and ``quality_drop`` (both on val), seconds for ``latency`` (the p50),
    and bytes for ``size`` and ``memory``. On a target that knows what code the file needs, ``size`` is that of both.
    Raises KeyError for another name.
    """
    values: dict[str, Any] = {
        "quality": measured.quality.val.value,
        "quality_drop": measured.quality_drop.val.value,
        "latency": measured.latency.p50 if measured.latency else None,
        "size": candidate.size if measured.flash is None else measured.flash,
        "memory": measured.memory,
        "instructions": measured.instructions,
        "cycles": measured.cycles,
    }
    value = values[name]
    return None if value is None else float(value)


def relative_quantity(candidate: Candidate, measured: Measured, name: str, baseline: float | None) -> float | None:
    """The quantity ``name`` relative to ``baseline``, the baseline's value of it; None where either is not known.

    For latency that is the paired ratio that was measured, and not a quotient of two medians.
    """
    if name == "latency":
        return measured.latency.ratio if measured.latency else None
    value = quantity(candidate, measured, name)
    return None if value is None or not baseline else value / baseline


def excesses(
    candidate: Candidate, baseline: Candidate, target: str, constraints: tuple[Constraint, ...], *, scaled: bool
) -> dict[str, float]:
    """How far ``candidate`` is beyond each constraint on ``target``, by the constraint's text and in their order.

    0 or less means that it is met. The unit is that of the constraint's limit; with ``scaled`` it is a share of the
    limit, so that constraints on different quantities can be compared. A constraint on a quantity that the target does
    not measure is met by nothing: the excess is infinite.
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
    """Whether ``candidate`` runs on ``target`` and meets every constraint there, by its values on val."""
    found = excesses(candidate, baseline, target, constraints, scaled=True).values()
    return not candidate.measured[target].stand_in and all(x <= ROUNDING for x in found)

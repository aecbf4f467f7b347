"""Choosing among candidates: the front, the order in which each pick would be taken, and the judgement on test.

Everything here is a pure function of what was measured. Feasibility and the front go by the values; intervals serve
for ties, where the simpler candidate is taken, and for the verdict on test, which asks for the whole interval.

Costs are minimised throughout: quality is negated where higher is better, everything else is relative to the
baseline on the same target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from compress.selection.feasibility import _HAIR, excesses, is_feasible
from compress.selection.hypervolumes import hypervolume
from compress.values.candidates import Candidate, NearestMiss
from compress.values.constraints import Constraint


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether ``a`` is no worse than ``b`` in every cost and better in one (minimised, same order)."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def costs(
    candidate: Candidate, baseline: Candidate, target: str, objectives: Sequence[str], higher_is_better: bool = True
) -> tuple[float, ...]:
    """The candidate's costs on ``target``, one per objective, all minimised.

    Quality in the metric's unit, negated if higher is better; latency as the paired ratio, or as instructions where
    cost is counted; the others relative to the baseline's. Infinite where the target does not measure it.
    """
    return tuple(_cost(candidate, baseline, target, name, higher_is_better) for name in objectives)


def _cost(candidate: Candidate, baseline: Candidate, target: str, name: str, higher_is_better: bool) -> float:
    measured, zero = candidate.measured[target], baseline.measured[target]
    if name == "quality":
        return _loss(candidate, target, higher_is_better)
    if name == "size":
        return _relative(candidate.size, baseline.size)
    if name == "memory":
        return _relative(measured.memory, zero.memory)
    if name == "latency" and measured.latency is not None:
        return measured.latency.ratio
    return _relative(measured.instructions, zero.instructions)


def _relative(value: int | None, baseline: int | None) -> float:
    if value is None or baseline is None:
        return math.inf
    # A baseline of 0 bytes above the runtime's own happens: then count in bytes rather than divide by it.
    return value / max(baseline, 1)


def _loss(candidate: Candidate, target: str, higher_is_better: bool) -> float:
    value = candidate.measured[target].quality.val.value
    return -value if higher_is_better else value


def _speed(candidate: Candidate, target: str) -> float:
    """What ``fastest`` minimises: the latency ratio, or instructions where cost is counted."""
    measured = candidate.measured[target]
    if measured.latency is not None:
        return measured.latency.ratio
    return math.inf if measured.instructions is None else float(measured.instructions)


def front(
    candidates: Sequence[Candidate],
    baseline: Candidate,
    target: str,
    objectives: Sequence[str],
    *,
    higher_is_better: bool = True,
) -> list[Candidate]:
    """The feasible candidates measured on ``target`` that no other feasible one strictly dominates, by value.

    Best quality first, then the cheaper (in the objectives, then size, then id). ``candidates`` includes the baseline
    if it is to stand on the front; candidates of equal costs all stay.
    """
    feasible = [c for c in candidates if target in c.measured and c.measured[target].feasible]
    known = [costs(c, baseline, target, objectives, higher_is_better) for c in feasible]
    kept = [
        (_loss(c, target, higher_is_better), own, c.size, c.id, c)
        for c, own in zip(feasible, known, strict=True)
        if not any(dominates(other, own) for other in known)
    ]
    return [entry[-1] for entry in sorted(kept, key=lambda entry: entry[:-1])]


def front_hypervolume(
    front: Sequence[Candidate],
    baseline: Candidate,
    target: str,
    objectives: Sequence[str],
    *,
    higher_is_better: bool = True,
    bounded: bool = True,
) -> float:
    """Hypervolume of ``front`` against the one reference point of the project.

    That is the baseline's quality, worse by 0.10 (``bounded``: the metric is within [0, 1]) or else by 10 %, and
    1.1 times its every cost.
    """
    quality = baseline.measured[target].quality.val.value
    margin = 0.10 if bounded else 0.10 * abs(quality)
    worst = _loss(baseline, target, higher_is_better) + margin
    reference = np.array([worst if name == "quality" else 1.1 for name in objectives])
    points = [costs(candidate, baseline, target, objectives, higher_is_better) for candidate in front]
    return hypervolume(np.array(points, dtype=np.float64).reshape(len(points), len(objectives)), reference)


def nearest_miss(
    candidates: Sequence[Candidate], baseline: Candidate, target: str, constraints: tuple[Constraint, ...]
) -> NearestMiss | None:
    """The infeasible candidate whose worst violation, as a share of its limit, is least; None if there is none.

    The baseline is no miss, nor is a candidate of which a constrained quantity is not known. ``by`` holds the violated
    constraints only, each with the excess in its own unit.
    """
    found: list[tuple[float, float, str]] = []
    for candidate in candidates:
        if candidate.id == baseline.id or target not in candidate.measured:
            continue
        scaled = excesses(candidate, baseline, target, constraints, scaled=True).values()
        if is_feasible(candidate, baseline, target, constraints) or not all(math.isfinite(x) for x in scaled):
            continue
        found.append((max(scaled), sum(max(x, 0.0) for x in scaled), candidate.id))
    if not found:
        return None
    nearest = next(c for c in candidates if c.id == min(found)[2])
    share = excesses(nearest, baseline, target, constraints, scaled=True)
    own = excesses(nearest, baseline, target, constraints, scaled=False)
    return NearestMiss(nearest.id, {text: own[text] for text in own if share[text] > _HAIR})

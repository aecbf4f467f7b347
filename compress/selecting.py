"""Choosing among candidates: the front, the order in which each pick would be taken, and the judgement on test.

Everything here is a pure function of what was measured. Feasibility and the front go by the values; intervals serve
for ties, where the simpler candidate is taken, and for the verdict on test, which asks for the whole interval.

Costs are minimised throughout: quality is negated where higher is better, everything else is relative to the
baseline on the same target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.hypervolumes import hypervolume
from compress.intervals import examples_needed, examples_needed_for_proportion
from compress.quantities import Constraint, excesses, is_feasible
from compress.results import Candidate, Drop, LatencyResult, NearestMiss, Quality
from targets.errors import RequestError

PICKS = ("fastest", "knee", "smallest", "most_accurate")
CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "open"

SAME_LATENCY = 0.03
"""Two sessions of one model differ by this much: latencies closer than it are tied."""
SAME_COUNT = 0.001
"""Counted instructions repeat to a few hundredths of a percent."""
SAME_SIZE = 0.03
"""Files whose sizes differ by less are equally simple: then quality decides."""
_HAIR = 1e-9
"""Rounding that is forgiven at a limit, as ``is_feasible`` does."""


@dataclass(frozen=True)
class Verdict:
    """How a pick was judged on test; ``needed``: for ``open``, about how many examples would settle it, if any."""

    verdict: str
    needed: int | None = None


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


def ranked(which: str, front: Sequence[Candidate], target: str, *, higher_is_better: bool = True) -> list[Candidate]:
    """The front in the order in which it would be taken for a pick: the next one stands in when one is refuted.

    - ``fastest``: by latency ratio (instructions where cost is counted). Again and again, of those tied with the
      fastest left (see ``tied_with``) the simplest is taken: of the smallest file and those hardly larger, the one
      with the best quality.
    - ``smallest``: by size; of equal sizes the one with the better quality, then the faster.
    - ``most_accurate``: by quality on val; of equal quality the faster, then the smaller.
    - ``knee``: by how far below the chord between the most accurate and the fastest candidate it lies, in quality
      and speed, each scaled to the span between these two. Without a point below the chord, as with two candidates,
      it is the faster end: what it gives up is within the constraints.

    Raises RequestError for another ``which``.
    """

    def loss(candidate: Candidate) -> float:
        return _loss(candidate, target, higher_is_better)

    def speed(candidate: Candidate) -> float:
        return _speed(candidate, target)

    if which == "fastest":
        return _fastest(front, target, higher_is_better)
    if which == "smallest":
        return sorted(front, key=lambda c: (c.size, loss(c), speed(c), c.id))
    if which == "most_accurate":
        return sorted(front, key=lambda c: (loss(c), speed(c), c.size, c.id))
    if which == "knee":
        depth = _depths(front, target, higher_is_better)
        return sorted(front, key=lambda c: (depth[c.id], speed(c), loss(c), c.size, c.id))
    raise RequestError(f"unknown pick {which!r}; use one of {', '.join(PICKS)}")


def _fastest(front: Sequence[Candidate], target: str, higher_is_better: bool) -> list[Candidate]:
    left, taken = sorted(front, key=lambda c: (_speed(c, target), c.size, c.id)), []
    while left:
        tied = [c for c in left if c is left[0] or _same_speed(c, left[0], target)]
        limit = min(c.size for c in tied) * (1 + SAME_SIZE)
        simple = [c for c in tied if c.size <= limit]
        best = min(simple, key=lambda c: (_loss(c, target, higher_is_better), c.size, _speed(c, target), c.id))
        taken.append(best)
        left = [c for c in left if c is not best]
    return taken


def _depths(front: Sequence[Candidate], target: str, higher_is_better: bool) -> dict[str, float]:
    """Position of each candidate against the chord: 1 on it, less below it (better), more above it."""
    if not front:
        return {}
    points = [(_loss(c, target, higher_is_better), _speed(c, target)) for c in front]
    accurate, fast = min(points), min(points, key=lambda point: (point[1], point[0]))
    spans = fast[0] - accurate[0], accurate[1] - fast[1]
    if not all(0 < span < math.inf for span in spans):
        return {c.id: 1.0 for c in front}
    # Scaled, the ends are (0, 1) and (1, 0) and the chord is x + y = 1. Rounded, so that an end is exactly on it.
    return {
        c.id: round((loss - accurate[0]) / spans[0] + (speed - fast[1]) / spans[1], 9)
        for c, (loss, speed) in zip(front, points, strict=True)
    }


def tied_with(candidate: Candidate, front: Sequence[Candidate], target: str, which: str = "fastest") -> tuple[str, ...]:
    """Ids of the others on the front that cannot be told apart from ``candidate`` in what it was picked for.

    Latencies are tied if the intervals of their ratios overlap or they are within 3 %, instructions within 0.1 %;
    qualities if the intervals of their drops overlap; sizes if they are equal. A knee is tied if speed and quality are.
    """
    others = [c for c in front if c.id != candidate.id]
    if which == "smallest":
        return tuple(c.id for c in others if c.size == candidate.size)
    if which == "most_accurate":
        return tuple(c.id for c in others if _same_quality(c, candidate, target))
    tied = [c for c in others if _same_speed(c, candidate, target)]
    if which == "knee":
        tied = [c for c in tied if _same_quality(c, candidate, target)]
    return tuple(c.id for c in tied)


def _same_speed(a: Candidate, b: Candidate, target: str) -> bool:
    one, other = a.measured[target], b.measured[target]
    if one.latency is not None and other.latency is not None:
        return _overlap(one.latency, other.latency) or _near(one.latency.ratio, other.latency.ratio, SAME_LATENCY)
    if one.latency is None and other.latency is None and one.instructions and other.instructions:
        return _near(one.instructions, other.instructions, SAME_COUNT)
    return False


def _same_quality(a: Candidate, b: Candidate, target: str) -> bool:
    return _overlap(a.measured[target].quality_drop.val, b.measured[target].quality_drop.val)


def _overlap(a: Drop | LatencyResult, b: Drop | LatencyResult) -> bool:
    return a.low <= b.high and b.low <= a.high


def _near(a: float, b: float, share: float) -> bool:
    return abs(a - b) <= share * min(a, b)


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


def judge(
    drop: Drop | None,
    quality: Quality | None,
    constraints: Sequence[Constraint],
    disagreements: tuple[int, int, int] | None = None,
) -> Verdict:
    """Judge a pick on test: its paired drop and its quality there, against every limit on either.

    Refuted if a value is beyond its limit, confirmed if every whole interval is within, open otherwise; open without a
    test split (both None). Where nothing limits quality there is nothing to refute. ``disagreements`` (lost, gained,
    n) say that the metric is a proportion: ``needed`` then follows from the score intervals, otherwise from
    intervals narrowing with the square root of n.
    """
    if drop is None and quality is None:
        return Verdict(OPEN)
    verdicts = [
        _judge_one(measured, constraint, quality, disagreements)
        for constraint in constraints
        for name, measured in (("quality_drop", drop), ("quality", quality))
        if constraint.quantity == name
    ]
    if any(one.verdict == REFUTED for one in verdicts):
        return Verdict(REFUTED)
    needed = [one.needed for one in verdicts if one.verdict == OPEN]
    if not needed:
        return Verdict(CONFIRMED)
    known = [number for number in needed if number is not None]
    return Verdict(OPEN, max(known) if len(known) == len(needed) else None)


def _judge_one(
    measured: Drop | Quality | None,
    constraint: Constraint,
    quality: Quality | None,
    disagreements: tuple[int, int, int] | None,
) -> Verdict:
    if measured is None:
        return Verdict(OPEN)
    if constraint.excess(measured.value, None) > _HAIR:
        return Verdict(REFUTED)
    edge = measured.high if constraint.operator == "<=" else measured.low
    if constraint.excess(edge, None) <= _HAIR:
        return Verdict(CONFIRMED)
    if disagreements is not None:
        lost, gained, n = disagreements
        if isinstance(measured, Quality):
            return Verdict(OPEN, examples_needed_for_proportion(measured.value, n, constraint.limit))
        if constraint.operator == "<=":
            return Verdict(OPEN, examples_needed(lost, gained, n, constraint.limit))
        # Turned round, so that at least becomes at most.
        return Verdict(OPEN, examples_needed(gained, lost, n, -constraint.limit))
    distance = abs(constraint.limit - measured.value)
    if quality is None or distance <= _HAIR:
        return Verdict(OPEN)
    return Verdict(OPEN, math.ceil(quality.n * (abs(edge - measured.value) / distance) ** 2))

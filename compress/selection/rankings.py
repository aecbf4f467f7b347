"""Rankings: carried here."""

from __future__ import annotations

import math
from collections.abc import Sequence

from compress.selection.fronts import _loss, _speed
from compress.values.candidates import Candidate, Drop, LatencyResult
from targets.errors import RequestError

PICKS = ("fastest", "knee", "smallest", "most_accurate")

SAME_LATENCY = 0.03
"""Two sessions of one model differ by this much: latencies closer than it are tied."""
SAME_COUNT = 0.001
"""Counted instructions repeat to a few hundredths of a percent."""
SAME_SIZE = 0.03
"""Files whose sizes differ by less are equally simple: then quality decides."""


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

"""Rankings: the order in which candidates of a front are taken for each pick, and which of them are tied.

Pure functions of what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from compress.selection.costs import quality_loss, speed_cost
from compress.values.candidates import Candidate, Drop, LatencyResult
from targets.errors import RequestError
from targets.intervals import TIE

PICKS = ("fastest", "knee", "smallest", "most_accurate")
"""The picks of a run: what a candidate is chosen for."""

SAME_LATENCY = TIE
"""Latencies that are closer are tied."""
SAME_COUNT = 0.001
"""Counted instructions repeat to a few hundredths of a percent: those within this share of each other are tied."""
SAME_SIZE = 0.03
"""Files whose sizes differ by a smaller share count as equally simple: then quality decides."""


def ranked(which: str, front: Sequence[Candidate], target: str, *, higher_is_better: bool = True) -> list[Candidate]:
    """The front in the order in which it would be taken for a pick: the next one stands in when one is refuted.

    - ``fastest``: by latency ratio (instructions or cycles where these are counted). Again and again, of those tied
      with the fastest left (see ``tied_with``) the simplest is taken: of the smallest file and those hardly larger, the
      one with the best quality.
    - ``smallest``: by size; of equal sizes the one with the better quality, then the faster.
    - ``most_accurate``: by quality on val; of equal quality the faster, then the smaller.
    - ``knee``: by how far it lies below the chord between the most accurate and the fastest candidate (see
      ``chord_positions``). Without a point below the chord, as with two candidates, it is the faster end: what it
      gives up is within the constraints.

    Raises RequestError for another ``which``.
    """

    def loss(candidate: Candidate) -> float:
        return quality_loss(candidate, target, higher_is_better)

    def speed(candidate: Candidate) -> float:
        return speed_cost(candidate, target)

    if which == "fastest":
        return _fastest(front, target, higher_is_better)
    if which == "smallest":
        return sorted(front, key=lambda c: (c.size, loss(c), speed(c), c.id))
    if which == "most_accurate":
        return sorted(front, key=lambda c: (loss(c), speed(c), c.size, c.id))
    if which == "knee":
        positions = chord_positions([(loss(c), speed(c)) for c in front])
        place = {c.id: position for c, position in zip(front, positions, strict=True)}
        return sorted(front, key=lambda c: (place[c.id], speed(c), loss(c), c.size, c.id))
    raise RequestError(f"unknown pick {which!r}; use one of {', '.join(PICKS)}")


def _fastest(front: Sequence[Candidate], target: str, higher_is_better: bool) -> list[Candidate]:
    left, taken = sorted(front, key=lambda c: (speed_cost(c, target), c.size, c.id)), []
    while left:
        tied = [c for c in left if c is left[0] or _same_speed(c, left[0], target)]
        limit = min(c.size for c in tied) * (1 + SAME_SIZE)
        simple = [c for c in tied if c.size <= limit]
        best = min(
            simple, key=lambda c: (quality_loss(c, target, higher_is_better), c.size, speed_cost(c, target), c.id)
        )
        taken.append(best)
        left = [c for c in left if c is not best]
    return taken


def chord_positions(points: Sequence[tuple[float, float]]) -> list[float]:
    """Where each point lies against the chord between the two ends of a front; the knee is the point with the least.

    ``points`` are pairs of quality loss and speed cost, both the better the lower and in any unit; they are scaled to
    the span between the ends. 1 is on the chord, less is below it (better), more is above it. All are 1 where there is
    no chord, since the two ends are one or lie infinitely far apart.

    The knee as the point furthest from the chord follows Das (1999), "On characterizing the knee of the Pareto curve
    based on normal-boundary intersection", Structural Optimization 18, 107-115.

    >>> chord_positions([(0.0, 1.0), (0.1, 0.3), (0.5, 0.2), (1.0, 0.0)])
    [1.0, 0.4, 0.7, 1.0]
    """
    if not points:
        return []
    accurate, fast = min(points), min(points, key=lambda point: (point[1], point[0]))
    spans = fast[0] - accurate[0], accurate[1] - fast[1]
    if not all(0 < span < math.inf for span in spans):
        return [1.0 for _ in points]
    # Scaled, the ends are (0, 1) and (1, 0) and the chord is x + y = 1. Rounded, so that an end is exactly on it.
    return [round((loss - accurate[0]) / spans[0] + (speed - fast[1]) / spans[1], 9) for loss, speed in points]


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
    if one.latency is None and other.latency is None and one.count and other.count:
        # Modelled cycles are those of the file, whatever the input.
        return _near(one.count, other.count, 0.0 if one.instructions is None else SAME_COUNT)
    if one.latency is None and other.latency is None and one.count is None and other.count is None:
        return one.memory == other.memory
    return False


def _same_quality(a: Candidate, b: Candidate, target: str) -> bool:
    return _overlap(a.measured[target].quality_drop.val, b.measured[target].quality_drop.val)


def _overlap(a: Drop | LatencyResult, b: Drop | LatencyResult) -> bool:
    return a.low <= b.high and b.low <= a.high


def _near(a: float, b: float, share: float) -> bool:
    return abs(a - b) <= share * min(a, b)

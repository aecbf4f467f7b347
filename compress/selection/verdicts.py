"""Verdicts: carried here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compress.metrics.intervals import examples_needed, examples_needed_for_proportion
from compress.selection.feasibility import _HAIR
from compress.values.candidates import Drop, Quality
from compress.values.constraints import Constraint

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "open"


@dataclass(frozen=True)
class Verdict:
    """How a pick was judged on test; ``needed``: for ``open``, about how many examples would settle it, if any."""

    verdict: str
    needed: int | None = None


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

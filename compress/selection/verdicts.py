"""Verdicts: how a pick is judged on test, which the search has never seen.

*Confirmed*: every whole interval is within its limit. *Refuted*: a value is beyond its limit. *Open*: neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compress.metrics.intervals import examples_needed, examples_needed_for_proportion
from compress.selection.feasibility import ROUNDING
from compress.selection.questions import Question
from compress.values.candidates import Candidate, Drop, Quality
from compress.values.constraints import Constraint

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "open"


@dataclass(frozen=True)
class Verdict:
    """How a pick was judged on test."""

    verdict: str
    """``confirmed``, ``refuted`` or ``open``."""
    needed: int | None = None
    """Of an open one, about how many test examples would settle it; None where no number is known to."""


def judge(
    drop: Drop | None,
    quality: Quality | None,
    constraints: Sequence[Constraint],
    disagreements: tuple[int, int, int] | None = None,
) -> Verdict:
    """Judge a pick by its paired drop and its quality on test, against every constraint on either.

    It is refuted if a value is beyond its limit, confirmed if every whole interval is within, and open otherwise. It is
    open without a test split (``drop`` and ``quality`` None), and confirmed where no constraint is on quality.

    ``disagreements`` (lost, gained, n) are given where the metric is a proportion: how many of n examples only the
    baseline has right, and how many only the candidate. ``needed`` then follows from the score intervals, and
    otherwise from intervals that narrow with the square root of n.

    >>> from compress.values.constraints import parse_constraint
    >>> limit = [parse_constraint("quality_drop<=0.01")]
    >>> judge(Drop(0.002, -0.004, 0.008), None, limit).verdict
    'confirmed'
    >>> judge(Drop(0.020, 0.005, 0.035), None, limit).verdict
    'refuted'
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
    if constraint.excess(measured.value, None) > ROUNDING:
        return Verdict(REFUTED)
    edge = measured.high if constraint.operator == "<=" else measured.low
    if constraint.excess(edge, None) <= ROUNDING:
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
    if quality is None or distance <= ROUNDING:
        return Verdict(OPEN)
    return Verdict(OPEN, math.ceil(quality.n * (abs(edge - measured.value) / distance) ** 2))


def verdict_of(candidate: Candidate, question: Question, target: str) -> Verdict:
    """How ``candidate`` fares on test on ``target`` against every constraint on quality.

    The baseline's own drop is zero, whatever its interval: it is what drops are measured from.
    """
    measured = candidate.measured[target]
    if candidate.id == question.baseline.id and measured.quality.test is not None:
        return judge(Drop(0.0, 0.0, 0.0), measured.quality.test, question.constraints)
    return judge(
        measured.quality_drop.test, measured.quality.test, question.constraints,
        question.disagreements.get((target, candidate.id)),
    )  # fmt: skip

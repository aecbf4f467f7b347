"""Picks, from what is known: pure, so that a report, a result and the confirmation agree on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compress.selection import fronts, rankings, verdicts
from compress.selection.feasibility import excesses, is_feasible
from compress.values.candidates import Candidate, Drop, NearestMiss, Pick
from compress.values.constraints import Constraint

MOST_READ = 3
"""Candidates read on test for one pick: each further one is another chance to be right by luck."""


@dataclass(frozen=True)
class Question:
    """What candidates are chosen by."""

    baseline: Candidate
    objectives: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    higher_is_better: bool
    bounded: bool
    disagreements: Mapping[tuple[str, str], tuple[int, int, int]]
    """(target, id) -> (lost, gained, n) on test, where the metric is a proportion."""


def judged(candidates: Sequence[Candidate], question: Question, target: str) -> list[Candidate]:
    """Candidates measured on ``target`` with ``feasible`` as today's constraints say."""
    found = []
    for candidate in candidates:
        if target in candidate.measured:
            feasible = is_feasible(candidate, question.baseline, target, question.constraints)
            found.append(candidate.on(target, replace(candidate.measured[target], feasible=feasible)))
    return found


def front(candidates: Sequence[Candidate], question: Question, target: str) -> list[Candidate]:
    """The front on ``target``, best quality first."""
    return fronts.front(
        judged(candidates, question, target), question.baseline, target, question.objectives,
        higher_is_better=question.higher_is_better,
    )  # fmt: skip


def hypervolume(candidates: Sequence[Candidate], question: Question, target: str) -> float:
    """Of the front, against the project's one reference point."""
    return fronts.front_hypervolume(
        front(candidates, question, target), question.baseline, target, question.objectives,
        higher_is_better=question.higher_is_better, bounded=question.bounded,
    )  # fmt: skip


def ranking(which: str, candidates: Sequence[Candidate], question: Question, target: str) -> list[Candidate]:
    """What a pick is taken from, the first choice first.

    A pick is from the front. Where what it is picked for is no objective (``smallest`` of a search for quality and
    latency), the front says nothing about it: then it is from the feasible candidates that are not beaten in quality,
    speed and size together.
    """
    objectives = question.objectives
    wanted = {"fastest": ("latency", "instructions"), "smallest": ("size",), "most_accurate": ("quality",)}
    if which in wanted and not set(wanted[which]) & set(objectives):
        objectives = ("quality", "latency", "size")
    members = front(candidates, replace(question, objectives=objectives), target)
    return rankings.ranked(which, members, target, higher_is_better=question.higher_is_better)


def line(which: str, candidates: Sequence[Candidate], question: Question, target: str) -> list[Candidate]:
    """The candidates that may be read for a pick, in order, each standing in when those before it are refuted.

    First what the pick is taken from. Where that is less than may be read, the front is drawn anew without it, for
    what is refuted has no claim to dominate; and without the other precisions of its networks, which share its fate.
    """
    order = ranking(which, candidates, question, target)[:MOST_READ]
    while len(order) < MOST_READ:
        trials, ids = {one.trial for one in order} - {None}, {one.id for one in order}
        left = [one for one in candidates if one.id not in ids and one.trial not in trials]
        choice = next(iter(ranking(which, left, question, target)), None)
        if choice is None:
            break
        order.append(choice)
    return order


def choose(
    which: str, candidates: Sequence[Candidate], question: Question, target: str
) -> tuple[Pick | None, Candidate | None]:
    """The pick, and the candidate that has to be read on test before more can be said (None: nothing is open)."""
    refuted: list[str] = []
    order = line(which, candidates, question, target)
    for candidate in order:
        test = candidate.measured[target].quality.test
        verdict = verdict_of(candidate, question, target)
        if test is None or verdict.verdict != verdicts.REFUTED:
            left = [one for one in candidates if one.id not in refuted]
            tied = rankings.tied_with(candidate, ranking(which, left, question, target), target, which)
            read = len(refuted) + (test is not None)
            pick = Pick(candidate.id, verdict.verdict, read, tuple(refuted), verdict.needed, tied)
            return pick, candidate if test is None else None
        refuted.append(candidate.id)
    if not order:
        return None, None
    return Pick(order[-1].id, verdicts.REFUTED, len(refuted), tuple(refuted[:-1])), None


def verdict_of(candidate: Candidate, question: Question, target: str) -> verdicts.Verdict:
    """How ``candidate`` fares on test against every limit on quality. The baseline is what it is measured by."""
    measured = candidate.measured[target]
    if candidate.id == question.baseline.id and measured.quality.test is not None:
        return verdicts.judge(Drop(0.0, 0.0, 0.0), measured.quality.test, question.constraints)
    return verdicts.judge(
        measured.quality_drop.test, measured.quality.test, question.constraints,
        question.disagreements.get((target, candidate.id)),
    )  # fmt: skip


def nearest_miss(candidates: Sequence[Candidate], question: Question, target: str) -> NearestMiss | None:
    """The candidate closest to meeting every constraint, where none but the baseline does.

    Where everything was turned away before training there is only the baseline to name.
    """
    known, baseline = judged(candidates, question, target), question.baseline
    if any(c.measured[target].feasible for c in known if c.id != baseline.id):
        return None
    if any(c.id != baseline.id for c in known) or is_feasible(baseline, baseline, target, question.constraints):
        return fronts.nearest_miss(known, baseline, target, question.constraints)
    beyond = excesses(baseline, baseline, target, question.constraints, scaled=False)
    return NearestMiss(baseline.id, {text: by for text, by in beyond.items() if by > 0})

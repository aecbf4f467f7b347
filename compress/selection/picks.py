"""Picks: the candidate chosen for a purpose, and who stands in when it is refuted on test.

All of it follows from what is known, so that a report, a result and the confirmation agree on the picks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from compress.run_folder.runs import Run
from compress.selection import rankings, verdicts
from compress.selection.costs import costs_of, speed_cost
from compress.selection.feasibility import is_feasible
from compress.selection.fronts import front
from compress.selection.questions import Question, question_of, targets_of
from compress.values.candidates import Candidate, Pick
from targets.target import COUNTS

MOST_READ = 3
"""Candidates read on test for one pick: each further one is another chance to be right by luck."""


def picks_of(run: Run, target: str) -> dict[str, Pick | None]:
    """Every pick of ``run`` on ``target``, by its name; None where no candidate meets the constraints."""
    question, candidates = question_of(run), run.available()
    return {which: choose(which, candidates, question, target)[0] for which in rankings.PICKS}


def satisfied(run: Run) -> bool:
    """Whether the run's main pick on its first target meets the constraints and is not refuted."""
    question = question_of(run)
    pick, _ = choose(run.request.pick, run.available(), question, targets_of(run)[0])
    return pick is not None and pick.verdict != verdicts.REFUTED


def choose(
    which: str, candidates: Sequence[Candidate], question: Question, target: str
) -> tuple[Pick | None, Candidate | None]:
    """The pick ``which`` on ``target``, and the candidate to read on test before more can be said.

    The pick is None where no candidate is feasible; the candidate is None where nothing is left to read. Where all
    that may be read are refuted, the pick is one that was read for another pick and holds, or else the last of them,
    with the verdict ``refuted``.
    """
    refuted: list[str] = []
    order = reading_order(which, candidates, question, target)
    chosen: Candidate | None = None
    for candidate in order:
        verdict = verdicts.verdict_of(candidate, question, target).verdict
        if candidate.measured[target].quality.test is None or verdict != verdicts.REFUTED:
            chosen = candidate
            break
        refuted.append(candidate.id)
    if not order:
        return None, None
    if chosen is None or chosen.measured[target].quality.test is not None:
        chosen = _best_that_holds(which, chosen, candidates, question, target)
    if chosen is None:
        return Pick(order[-1].id, verdicts.REFUTED, len(refuted), tuple(refuted[:-1])), None
    unread = chosen if chosen.measured[target].quality.test is None else None
    found = verdicts.verdict_of(chosen, question, target)
    left = [one for one in candidates if one.id not in refuted]
    tied = rankings.tied_with(chosen, _ranking(which, left, question, target), target, which)
    # One that stands in for all that were refuted was read for another pick.
    read = min(MOST_READ, len(refuted) + (unread is None))
    certainty = question.certainties.get(chosen.id)
    return Pick(chosen.id, found.verdict, read, tuple(refuted), found.needed, tied, certainty), unread


def reading_order(which: str, candidates: Sequence[Candidate], question: Question, target: str) -> list[Candidate]:
    """The candidates that may be read on test for a pick, each standing in when those before it are refuted.

    At most ``MOST_READ``. For each the front is drawn anew without those before it, for what is refuted has no claim to
    dominate; without the other precisions of their networks, which share their fate; and without networks of the same
    shape that were only trained otherwise, which are likely to be refuted as well. The same shapes again come last.
    """
    order: list[Candidate] = []
    while len(order) < MOST_READ:
        trials, ids = {one.trial for one in order} - {None}, {one.id for one in order}
        left = [one for one in candidates if one.id not in ids and one.trial not in trials]
        choices = _ranking(which, [one for one in left if not _has_shape_of(one, order)], question, target)
        choices = choices or _ranking(which, left, question, target)
        if not choices:
            break
        order.append(choices[0])
    return order


def _best_that_holds(
    which: str, chosen: Candidate | None, candidates: Sequence[Candidate], question: Question, target: str
) -> Candidate | None:
    """The fastest, or smallest, of what was read on test for any pick and holds, where it is better than ``chosen``.

    What was expected to hold on test has decided what was read there; among those that do, it decides nothing more.
    Another pick stays ``chosen``, where there is one. Without: None where nothing better than the baseline holds.
    """
    if chosen is not None and which not in ("fastest", "smallest"):
        return chosen
    held = [
        one
        for one in _feasible(candidates, question, target)
        if one.measured[target].quality.test is not None
        and verdicts.verdict_of(one, question, target).verdict != verdicts.REFUTED
    ]
    order = rankings.ranked(which, held, target, higher_is_better=question.higher_is_better)
    if not order:
        return chosen
    best = order[0]
    if chosen is None:
        return None if best.id == question.baseline.id else best
    return best if _is_better(which, best, chosen, target) else chosen


def _is_better(which: str, one: Candidate, other: Candidate, target: str) -> bool:
    """Whether ``one`` is smaller, or faster by more than a tie."""
    if which == "smallest":
        return one.size < other.size
    tied = rankings.tied_with(one, [one, other], target)
    return speed_cost(one, target) < speed_cost(other, target) and other.id not in tied


def _feasible(candidates: Sequence[Candidate], question: Question, target: str) -> list[Candidate]:
    return [
        one
        for one in candidates
        if target in one.measured and is_feasible(one, question.baseline, target, question.constraints)
    ]


def _shape(one: Candidate) -> tuple[object, object]:
    """Widths and blocks that a candidate lacks; both None where it is not cut."""
    return one.config.get("widths") or None, one.config.get("dropped") or None


def _has_shape_of(candidate: Candidate, others: Sequence[Candidate]) -> bool:
    """Whether one of ``others`` has the same widths and lacks the same blocks; an uncut network is like no other."""
    return _shape(candidate) != (None, None) and any(_shape(candidate) == _shape(one) for one in others)


def _ranking(which: str, candidates: Sequence[Candidate], question: Question, target: str) -> list[Candidate]:
    """What a pick is taken from, the first choice first.

    A pick is from the front. Where what it is picked for is no objective (``smallest`` of a search for quality and
    latency), the front says nothing about it: then it is from the feasible candidates that are not beaten in quality,
    speed and size together.
    """
    if which == "fastest" and question.certainties:
        return _useful(candidates, question, target)
    objectives = question.objectives
    zero = question.baseline.measured.get(target)
    # Where a target neither times nor counts, memory stands for speed.
    by_memory = zero is not None and zero.latency is None and zero.count is None
    speed = ("latency", *COUNTS, *(("memory",) if by_memory else ()))
    wanted = {"fastest": speed, "smallest": ("size",), "most_accurate": ("quality",)}
    if which in wanted and not set(wanted[which]) & set(objectives):
        objectives = ("quality", "latency", "size")
    members = front(candidates, replace(question, objectives=objectives), target)
    return rankings.ranked(which, members, target, higher_is_better=question.higher_is_better)


def _useful(candidates: Sequence[Candidate], question: Question, target: str) -> list[Candidate]:
    """The feasible candidates, the most useful first: gain in speed times the root of the certainty to hold on test.

    What is only fast because val was kind to it comes later, and has no claim to dominate what is surer: of several
    readings on val the best one was also lucky. What the search has expected nothing of counts as certain.
    """

    def usefulness(one: Candidate) -> float:
        cost = costs_of(one, question.baseline, target, ("latency",))[0]
        return max(0.0, 1.0 - cost) * math.sqrt(question.certainties.get(one.id, 1.0))

    return sorted(
        _feasible(candidates, question, target),
        key=lambda one: (-usefulness(one), speed_cost(one, target), one.size, one.id),
    )

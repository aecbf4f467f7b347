"""Picks: the candidate chosen for a purpose, and who stands in when it is refuted on test.

All of it follows from what is known, so that a report, a result and the confirmation agree on the picks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from compress.run_folder.runs import Run
from compress.selection import rankings, verdicts
from compress.selection.fronts import front
from compress.selection.questions import Question, question_of, targets_of
from compress.values.candidates import Candidate, Pick

CERTAIN = 0.7
"""What is less likely than this to hold on test is taken for ``fastest`` where nothing else is left."""
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
    that may be read are refuted, the pick is the last of them, with the verdict ``refuted``.
    """
    refuted: list[str] = []
    order = reading_order(which, candidates, question, target)
    for candidate in order:
        test = candidate.measured[target].quality.test
        verdict = verdicts.verdict_of(candidate, question, target)
        if test is None or verdict.verdict != verdicts.REFUTED:
            left = [one for one in candidates if one.id not in refuted]
            tied = rankings.tied_with(candidate, _ranking(which, left, question, target), target, which)
            read = len(refuted) + (test is not None)
            certainty = question.certainties.get(candidate.id)
            pick = Pick(candidate.id, verdict.verdict, read, tuple(refuted), verdict.needed, tied, certainty)
            return pick, candidate if test is None else None
        refuted.append(candidate.id)
    if not order:
        return None, None
    return Pick(order[-1].id, verdicts.REFUTED, len(refuted), tuple(refuted[:-1])), None


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
    objectives = question.objectives
    wanted = {"fastest": ("latency", "instructions"), "smallest": ("size",), "most_accurate": ("quality",)}
    if which in wanted and not set(wanted[which]) & set(objectives):
        objectives = ("quality", "latency", "size")
    members = front(candidates, replace(question, objectives=objectives), target)
    order = rankings.ranked(which, members, target, higher_is_better=question.higher_is_better)
    return _by_certainty(order, question.certainties) if which == "fastest" and question.certainties else order


def _by_certainty(order: Sequence[Candidate], certainties: Mapping[str, float]) -> list[Candidate]:
    """``order``, with what is unlikely to hold on test last, and of one network the training most likely to hold first.

    Of several readings of one network on val the best one was also lucky.
    """

    def certainty(one: Candidate) -> float:
        return certainties.get(one.id, 1.0)

    def kind(one: Candidate) -> object:
        return (repr(_shape(one)), one.config["precision"]["scheme"]) if _shape(one) != (None, None) else one.id

    best = {kind(one): sorted((o for o in order if kind(o) == kind(one)), key=lambda o: -certainty(o)) for one in order}
    turned = [best[kind(one)].pop(0) for one in order]
    # Sorting keeps the order within each half.
    return sorted(turned, key=lambda one: certainty(one) < CERTAIN)

"""The front: the candidates that meet the constraints and that no other such candidate beats.

A pure function of what was measured; it goes by the values. Intervals serve for ties (``rankings``) and for the
verdict on test (``verdicts``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from compress.selection.costs import costs_of, quality_loss
from compress.selection.feasibility import is_feasible
from compress.selection.hypervolumes import hypervolume
from compress.selection.questions import Question
from compress.values.candidates import Candidate


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether ``a`` is no worse than ``b`` in every cost and better in one.

    Both hold the same costs in the same order, each the better the lower. Raises ValueError if their lengths differ.

    >>> dominates((1.0, 2.0), (1.0, 3.0))
    True
    >>> dominates((1.0, 2.0), (1.0, 2.0))
    False
    """
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def undominated(costs: Sequence[Sequence[float]]) -> list[int]:
    """The positions in ``costs`` of those points that no other one dominates, in order; equal points all stay.

    >>> undominated([(1.0, 4.0), (2.0, 2.0), (3.0, 3.0), (2.0, 2.0)])
    [0, 1, 3]
    """
    return [place for place, own in enumerate(costs) if not any(dominates(other, own) for other in costs)]


def with_feasibility(candidates: Sequence[Candidate], question: Question, target: str) -> list[Candidate]:
    """The candidates that are measured on ``target``, with ``feasible`` there as the question's constraints say."""
    found = []
    for candidate in candidates:
        if target in candidate.measured:
            feasible = is_feasible(candidate, question.baseline, target, question.constraints)
            found.append(candidate.on(target, replace(candidate.measured[target], feasible=feasible)))
    return found


def front(candidates: Sequence[Candidate], question: Question, target: str) -> list[Candidate]:
    """The feasible ones of ``candidates`` on ``target`` that no other feasible one dominates in the objectives.

    Best quality first, then the cheaper (in the objectives, then in size, then by id). The baseline stands on the
    front only if it is one of ``candidates``; candidates of equal costs all stay.
    """
    feasible = [c for c in with_feasibility(candidates, question, target) if c.measured[target].feasible]
    costs = [costs_of(c, question.baseline, target, question.objectives, question.higher_is_better) for c in feasible]
    kept = [(feasible[place], costs[place]) for place in undominated(costs)]
    kept.sort(key=lambda one: (quality_loss(one[0], target, question.higher_is_better), one[1], one[0].size, one[0].id))
    return [candidate for candidate, _ in kept]


def front_hypervolume(candidates: Sequence[Candidate], question: Question, target: str) -> float:
    """The hypervolume of the front on ``target``: one number for how good the front is.

    It is taken against the same reference point throughout the project: the baseline's quality, worse by 0.10 if the
    metric is bounded or else by 10 %, and 1.1 times its every cost. Its unit is the product of the objectives' units.
    """
    baseline = question.baseline
    quality = baseline.measured[target].quality.val.value
    worst = quality_loss(baseline, target, question.higher_is_better)
    worst += 0.10 if question.bounded else 0.10 * abs(quality)
    reference = np.array([worst if name == "quality" else 1.1 for name in question.objectives])
    points = [
        costs_of(candidate, baseline, target, question.objectives, question.higher_is_better)
        for candidate in front(candidates, question, target)
    ]
    return hypervolume(np.array(points, dtype=np.float64).reshape(len(points), len(reference)), reference)

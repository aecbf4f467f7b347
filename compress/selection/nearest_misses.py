"""The nearest miss: where no candidate meets the constraints, the one that comes closest, and by how much it fails."""

from __future__ import annotations

import math
from collections.abc import Sequence

from compress.selection.feasibility import ROUNDING, excesses, is_feasible
from compress.selection.questions import Question
from compress.values.candidates import Candidate, NearestMiss


def nearest_miss(candidates: Sequence[Candidate], question: Question, target: str) -> NearestMiss | None:
    """The candidate on ``target`` whose worst violation, as a share of its limit, is least.

    None where some candidate other than the baseline meets every constraint, or where of each a constrained quantity
    is not known. The baseline is a miss only where there is no other candidate, since everything was turned away
    before training. ``by`` holds the violated constraints alone, each with the excess in its own unit.
    """
    baseline, constraints = question.baseline, question.constraints
    others = [c for c in candidates if target in c.measured and c.id != baseline.id]
    if any(is_feasible(c, baseline, target, constraints) for c in others):
        return None
    if others:
        return _nearest(others, question, target)
    if is_feasible(baseline, baseline, target, constraints):
        return None
    beyond = excesses(baseline, baseline, target, constraints, scaled=False)
    missed = {text: by for text, by in beyond.items() if by > 0}
    return NearestMiss(baseline.id, missed) if missed else None


def _nearest(infeasible: Sequence[Candidate], question: Question, target: str) -> NearestMiss | None:
    baseline, constraints = question.baseline, question.constraints
    found: list[tuple[float, float, str]] = []
    for candidate in infeasible:
        shares = excesses(candidate, baseline, target, constraints, scaled=True).values()
        if all(math.isfinite(share) for share in shares):
            found.append((max(shares), sum(max(share, 0.0) for share in shares), candidate.id))
    if not found:
        return None
    nearest = next(c for c in infeasible if c.id == min(found)[2])
    scaled = excesses(nearest, baseline, target, constraints, scaled=True)
    own = excesses(nearest, baseline, target, constraints, scaled=False)
    return NearestMiss(nearest.id, {text: own[text] for text in own if scaled[text] > ROUNDING})

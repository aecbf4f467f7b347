"""How the time for trainings is spent: short trainings first, more only for what earns it, the last share for the end.

Pure functions of seconds. A rung is an amount of training; a network that is to be trained further climbs to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Phase = Literal["halving", "exploring", "ending", "over"]

_DEAR_EPOCHS = 20
"""Epochs are dear where so many of the median network ..."""
_DEAR_SHARE = 0.25
"""... take more than this share of the budget."""
_LEAST_EPOCHS = 0.25
"""Less of an epoch than this is no training."""


@dataclass(frozen=True)
class Plan:
    """How a budget is spent; ``plan`` makes one."""

    budget: float
    """Seconds, of everything."""
    rungs: tuple[float, ...]
    """Seconds of training of each rung, without those before it; ascending."""
    end: float
    """Seconds kept for the last trainings."""
    halvings: int
    """Trainings by which the range of costs is halved first."""
    shares: tuple[float, ...]
    """Of what is left at the end, of each of the last trainings."""
    is_dear: bool
    lengths: tuple[float, ...] = ()
    """Epochs after each rung, where trainings have given lengths; then ``rungs`` are what those of the median take."""

    def phase(self, spent: float, trainings: int) -> Phase:
        """What the time is for now, after ``spent`` seconds and as many trainings."""
        left = self.budget - spent
        if left < self.rungs[0] / 2:
            return "over"
        if left <= self.end:
            return "ending"
        return "halving" if trainings < self.halvings else "exploring"

    def epochs(self, rungs_done: int, seconds_per_epoch: float) -> float:
        """Epochs of the next rung. Whole ones, and at least one; where epochs are dear, parts of one."""
        if self.lengths:
            return self.lengths[rungs_done] - (self.lengths[rungs_done - 1] if rungs_done else 0.0)
        return epochs_in(self.rungs[rungs_done], seconds_per_epoch, parts=self.is_dear)

    def total_epochs(self, rungs_done: int, seconds_per_epoch: np.ndarray) -> np.ndarray:
        """Epochs that networks get by all rungs that are left to them, (n,)."""
        found = np.zeros(len(seconds_per_epoch))
        for rung in range(rungs_done, len(self.rungs)):
            found += [self.epochs(rung, float(seconds)) for seconds in seconds_per_epoch]
        return found

    def end_seconds(self, spent: float, ended: int) -> float:
        """Seconds of the next of the last trainings, ``ended`` of them being over; 0 if there is none left."""
        if ended >= len(self.shares):
            return 0.0
        return max(0.0, self.budget - spent) * self.shares[ended] / sum(self.shares[ended:])


def plan(budget: float, seconds_per_epoch: Sequence[float], lengths: Sequence[float] = ()) -> Plan:
    """The plan of ``budget`` seconds. ``seconds_per_epoch``: of some networks of the space; the median counts.
    ``lengths``: epochs after each rung, ascending, where trainings have given lengths.

    Rungs of 1.5, 3 and 6 % of the budget; of 4 and 10 % where epochs are dear. For the end a quarter, or as much as
    20 epochs take, up to six tenths. Raises ValueError for a budget or times that are not positive.
    """
    if budget <= 0 or not len(seconds_per_epoch) or min(seconds_per_epoch) <= 0:
        raise ValueError(f"a budget of {budget} s and epochs of {list(seconds_per_epoch)} s: all must be positive")
    median = float(np.median(seconds_per_epoch))
    epochs = _DEAR_EPOCHS * median
    is_dear = epochs > _DEAR_SHARE * budget
    shares = (0.04, 0.1) if is_dear else (0.015, 0.03, 0.06)
    given = tuple(float(each) * median for each in np.diff([0.0, *lengths]))
    return Plan(
        budget,
        given or tuple(share * budget for share in shares),
        float(np.clip(epochs / budget, 0.25, 0.6)) * budget,
        halvings=3,
        shares=(0.6, 0.4) if is_dear else (0.5, 0.5),
        is_dear=is_dear,
        lengths=tuple(lengths),
    )


def epochs_in(seconds: float, seconds_per_epoch: float, *, parts: bool = False) -> float:
    """Epochs that are trained in so many seconds: whole ones and at least one, or ``parts``, down to a quarter."""
    epochs = seconds / seconds_per_epoch
    if parts and epochs < 4:
        return max(_LEAST_EPOCHS, epochs)
    return float(max(1, round(epochs)))

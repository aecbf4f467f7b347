"""What is proposed as the next trial, by whoever proposes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Proposal:
    """A trial that should be made: its parameters, and what it does beyond them."""

    params: dict[str, Any]
    after: int | None = None
    """The trial whose network is trained further."""
    precisions: tuple[str, ...] | None = None
    why: Mapping[str, Any] = field(default_factory=dict)
    system_attrs: Mapping[str, Any] = field(default_factory=dict)
    """What an Optuna sampler wants to find again."""


FEWEST_TRIALS = 8
"""With fewer trials, configs that usually do well are tried: there is too little to learn costs and qualities for."""


def chooses_networks(sampler: object, trials: int | None) -> bool:
    """Whether a search chooses networks by their costs, as far as that is known from what was asked.

    ``sampler``: a name, or an object of the caller's own; ``trials``: how many, where that is known.
    """
    return sampler == "cost-aware" or (sampler == "auto" and (trials is None or trials >= FEWEST_TRIALS))


class Proposer(Protocol):
    """Proposes trials, one at a time, from what the record says."""

    def propose(self, number: int) -> Proposal | None:
        """Trial ``number``; None where nothing is left that is worth one."""
        ...

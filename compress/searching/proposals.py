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


class Proposer(Protocol):
    """Proposes trials."""

    def propose(self, number: int) -> Proposal | None:
        """Trial ``number``; None where nothing is left that is worth one."""
        ...

"""What is handed to whoever carries out a trial, and what comes back: plain data that can travel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from compress.stages.latency_gate import Gated
from compress.stages.trials import Finished, TrialPlan


@dataclass(frozen=True)
class Job:
    """One trial that is to be carried out."""

    number: int
    params: dict[str, Any]
    plan: TrialPlan
    seconds: float | None = None
    """After which it is to be left, counted from when it is handed over; None: it may take as long as it takes."""
    is_smaller: bool = False
    """Trained in batches of half the size, since it did not fit into memory before."""


@dataclass(frozen=True)
class Failure:
    """The stage in which a trial failed and the cause, in words that can be recorded and shown."""

    stage: str
    cause: str
    transient: bool
    """It need not happen again."""
    out_of_memory: bool = False
    lost: bool = False
    """Whoever carried it out is gone, or was given up."""


@dataclass(frozen=True)
class Done:
    """A trial that was carried out, or left because the time was over (``outcome`` is None)."""

    number: int
    outcome: Gated | Finished | Failure | None
    seconds: float
    train_seconds: float = 0.0
    worker: int = 0
    """Who carried it out, from 0."""


Told = Callable[[int, str], None]
"""Told what a worker is doing: its number, and the stage in words."""


class Executor(Protocol):
    """Carries out trials. One driver hands them over, takes what comes back and keeps the record."""

    @property
    def workers(self) -> int:
        """How many trials it carries out at once."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether another trial can be handed over now."""
        ...

    def submit(self, job: Job) -> int:
        """Hand a trial over; gives the number of the worker that carries it out."""
        ...

    def wait(self, told: Told, seconds: float | None) -> Sequence[Done]:
        """What has ended, waiting until something has, for so many seconds at most (None: as long as it takes)."""
        ...

    def beside(self) -> AbstractContextManager[None]:
        """Inside, the driver measures or computes on what an idle worker leaves free."""
        ...

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        ...

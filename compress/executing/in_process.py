"""Trials one after the other in this process: nothing travels, nothing is started."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from compress.baseline.contexts import Context
from compress.executing.evaluating import evaluate_job
from compress.executing.jobs import Done, Job, Told
from compress.values.constraints import Constraint


class InProcess:
    """Carries out a trial when its result is waited for."""

    workers = 1

    def __init__(self, context: Context, constraints: Sequence[Constraint]) -> None:
        self.context, self.constraints = context, constraints
        self._job: Job | None = None

    @property
    def has_room(self) -> bool:
        """Whether no trial waits to be carried out."""
        return self._job is None

    def submit(self, job: Job) -> int:
        """Keep the trial until its result is waited for."""
        self._job = job
        return 0

    def wait(self, told: Told, seconds: float | None) -> Sequence[Done]:  # noqa: ARG002  the job itself knows its time
        """Carry out the trial that was handed over, here and now, and give what came of it."""
        job, self._job = self._job, None
        return () if job is None else (evaluate_job(self.context, self.constraints, job, lambda name: told(0, name)),)

    def beside(self) -> contextlib.nullcontext[None]:
        """Nothing else is going on while the driver works."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Do nothing, since this process has started no workers."""

"""Carrying out one trial, wherever that is: whatever happens to it becomes plain data."""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from dataclasses import replace

from compress.baseline.contexts import Context, Say
from compress.executing.jobs import Done, Failure, Job
from compress.run_folder.storage_failures import is_storage_failure, name_storage_failure
from compress.stages.trials import evaluate
from compress.tasks.user_code import describe
from compress.values.configs import Config
from compress.values.constraints import Constraint
from compress.values.time_limits import OutOfTime
from targets.errors import CompressError, MeasurementError, ModelError


def evaluate_job(context: Context, constraints: Sequence[Constraint], job: Job, told: Say, worker: int = 0) -> Done:
    """Carry out a trial; ``told`` hears of every stage of it.

    What fails is said in what is returned; only an interrupt is raised.
    """
    start, trained = clock.monotonic(), _train_seconds(context)
    stage = "prune"

    def say(name: str) -> None:
        nonlocal stage
        stage = name.split(",")[0]
        told(name)
        if job.seconds is not None and clock.monotonic() - start > job.seconds:
            raise OutOfTime

    def done(outcome: object) -> Done:
        seconds = clock.monotonic() - start
        return Done(job.number, outcome, seconds, _train_seconds(context) - trained, worker)  # type: ignore[arg-type]  # one of its kinds

    try:
        config = context.space.config(job.params)
        config = smaller(config) if job.is_smaller else config
        return done(evaluate(context, job.number, config, tuple(constraints), say, job.plan))
    except OutOfTime:
        return done(None)
    except (Exception, SystemExit) as error:
        return done(failure_of(stage, error))


def failure_of(stage: str, error: BaseException) -> Failure:
    """What is said of an error that ended a trial.

    What a runtime, a device or a disk did once it need not do again; the stages before it are kept.
    """
    cause = str(error) if isinstance(error, CompressError) else describe(error)
    out_of_memory = isinstance(error, MemoryError) or "out of memory" in cause.lower()
    transient = isinstance(error, (MeasurementError, ModelError)) or out_of_memory
    if is_storage_failure(error):
        transient, cause = True, name_storage_failure(error)
    return Failure(stage, cause, transient, out_of_memory)


def smaller(config: Config) -> Config:
    """The same config with half as many examples in a batch of its training."""
    half = max(1, config.finetune.batch_size // 2)
    return replace(config, finetune=replace(config.finetune, batch_size=half))


def _train_seconds(context: Context) -> float:
    """Seconds of all trainings of the run so far, as far as this process knows of them."""
    return float(context.run.state.stages.get("finetune", {}).get("seconds", 0.0))

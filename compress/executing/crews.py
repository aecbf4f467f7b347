"""Who carries out the trials of a search: how many workers there are, and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.baseline.contexts import Context
from compress.executing.in_process import InProcess
from compress.executing.jobs import Executor
from compress.executing.local_workers import LocalWorkers
from compress.executing.ray_workers import RayWorkers, connect
from compress.executing.worker_counts import Cluster, cores, worker_count
from compress.executing.worker_setups import pickled, worker_setup
from compress.tasks.tasks import Task
from compress.training.training_modes import gpus
from compress.values.constraints import Constraint
from targets.target import Protocol, Target


@dataclass(frozen=True)
class Crew:
    """The workers of a search that is about to begin."""

    workers: int | None
    """None: as many as a cluster has room for."""
    threads: int | None
    """Of a training, at most; None where there is one worker, which may use all cores."""
    setup: bytes | None
    """What workers are made ready from; None where this process carries out the trials."""
    gpus: int = 0
    cluster: Cluster | None = None

    def executor(
        self, context: Context, constraints: Sequence[Constraint], note: Callable[[dict[str, Any]], None]
    ) -> Executor:
        """Who carries out the trials; ``note`` takes what workers would write into the record."""
        if self.setup is None:
            return InProcess(context, constraints)
        run, targets = context.run, context.targets.all
        if self.cluster is not None:
            return RayWorkers(self.cluster, self.setup, run, targets, self.workers, note)
        return LocalWorkers(self.setup, run.folder / "cache" / "workers", self.workers or 1, note, gpus=self.gpus)


def crew_of(
    task: Task, folder: Path, targets: Sequence[Target], device: str, protocol: Protocol, workers: int | str | None,
    trials: int | None, cluster: Cluster | None,
) -> Crew:  # fmt: skip
    """The crew of a search; raises RequestError where its task cannot be sent to workers, or a cluster be reached."""
    if cluster is not None:
        connect(cluster)
        setup = worker_setup(task, folder, targets, device, protocol, cluster.cpus)
        fixed = workers if isinstance(workers, int) else None
        return Crew(fixed, cluster.cpus, pickled(setup), cluster=cluster)
    count = worker_count(workers, gpus(device), trials)
    if count == 1:
        return Crew(1, None, None)
    threads = max(1, cores() // count)
    setup = worker_setup(task, folder, targets, device, protocol, threads)
    return Crew(count, threads, pickled(setup), gpus(device))

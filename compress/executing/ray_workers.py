"""Trials on a Ray cluster: one actor a worker, wherever there is room; nodes may leave and join.

Ray places and watches processes, and carries bytes; what is asked and told stays here. The task, with its code and
data, travels once to each node; what a trial made comes back as the files of its candidates. Measuring and scoring is
done on this machine, which holds the devices, unless a target's costs are the same everywhere.
"""

from __future__ import annotations

import os
import socket
import time as clock
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

from compress.executing.forwarded_targets import DeviceRequest, facts_of
from compress.executing.jobs import Done, Failure, Job, Told
from compress.executing.ray_actors import DeviceActor, RemoteDone, TrialActor
from compress.executing.seeds import packed_run
from compress.executing.worker_counts import Cluster
from compress.run_folder.runs import Run
from compress.values.error_lines import one_line, root_cause
from targets.errors import RequestError
from targets.target import Target

_LOOK = 5.0
"""Seconds between two looks at how large the cluster is."""
_ENDING = 5.0
"""Seconds that workers get to leave a trial by themselves when the time is over."""
_KNOCK = 10.0
"""Seconds to wait for an address to answer."""
Note = Callable[[dict[str, Any]], None]


def connect(cluster: Cluster) -> int:
    """Connect to the cluster; gives how many trainings fit on it now. Raises RequestError where there is none."""
    ray = _ray()
    if not ray.is_initialized():
        try:
            _knock(cluster.address)
            # Its logs are its own; and it sends no usage statistics from here.
            ray.init(address=cluster.address, namespace="paretopress", log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            raise RequestError(
                f"cluster {cluster.address!r} cannot be reached ({one_line(error)}); start one (ray start --head), "
                "or give --workers alone to use this machine"
            ) from error
    return room(cluster)


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at an address of the form HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def room(cluster: Cluster) -> int:
    """How many trainings fit on the cluster as large as it is now; at least one."""
    there = _ray().cluster_resources()
    fits = int(there.get("CPU", 0) // cluster.cpus)
    if cluster.gpus:
        fits = min(fits, int(there.get("GPU", 0) // cluster.gpus))
    return max(1, fits)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise RequestError("a cluster needs Ray, which is not installed; run: pip install 'paretopress[ray]'") from None
    return ray


@dataclass
class _Slot:
    """A worker: its actor while it has one, and what that is doing."""

    actor: Any = None
    job: Job | None = None
    result: Any = None
    begun: float = 0.0


class RayWorkers:
    """Carries out as many trials at once as there are workers; without a number, as the cluster has room for."""

    def __init__(
        self, cluster: Cluster, setup: bytes, run: Run, targets: Sequence[Target], named: Sequence[str | Target],
        workers: int | None, note: Note,
    ) -> None:  # fmt: skip
        """``targets``: those of the search; ``named``: the same as they travel. ``note``: see ``LocalWorkers``."""
        self._ray, self._cluster, self._run, self._note = _ray(), cluster, run, note
        self._fixed = workers
        self._slots = [_Slot() for _ in range(workers or room(cluster))]
        self._looked = clock.monotonic()
        self._setup = self._ray.put(setup)
        self._seed = self._ray.put(packed_run(run.folder))
        self._device: Any = None
        self._facts = () if all(target.deterministic for target in targets) else tuple(map(facts_of, targets))
        if self._facts:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
            holds = self._ray.remote(DeviceActor).options(
                num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=2,
                max_concurrency=sum(target.at_once for target in targets),
            )  # fmt: skip
            self._device = holds.remote(tuple(named))

    @property
    def workers(self) -> int:
        """How many trials are carried out at once."""
        return len(self._slots)

    @property
    def has_room(self) -> bool:
        """Whether a worker has nothing to do; where nodes have joined there are more workers."""
        if self._fixed is None and clock.monotonic() - self._looked > _LOOK:
            self._looked = clock.monotonic()
            self._slots += [_Slot() for _ in range(room(self._cluster) - len(self._slots))]
        return any(slot.job is None for slot in self._slots)

    def submit(self, job: Job) -> int:
        """Hand a trial to an idle worker, one with an actor if there is one; gives its number."""
        idle = [slot for slot in self._slots if slot.job is None]
        slot = next((one for one in idle if one.actor is not None), idle[0])
        if slot.actor is None:
            slot.actor = self._actor()
        further = job.plan.further
        weights = further.weights.read_bytes() if further is not None else None
        slot.job, slot.begun = job, clock.monotonic()
        slot.result = slot.actor.evaluate.remote(job, weights)
        return self._slots.index(slot)

    def wait(self, told: Told, seconds: float | None) -> Sequence[Done]:
        """What has ended; after ``seconds``, trials that are still under way are left."""
        del told  # what a node does is not told step by step
        busy = {slot.result: slot for slot in self._slots if slot.job is not None}
        patience = None if seconds is None else max(0.0, seconds) + _ENDING
        ready, _ = self._ray.wait(list(busy), num_returns=1, timeout=patience)
        if not ready:
            return tuple(self._left(slot) for slot in busy.values())
        more, _ = self._ray.wait(list(busy), num_returns=len(busy), timeout=0)
        return tuple(self._taken(busy[one]) for one in dict.fromkeys([*ready, *more]))

    def beside(self) -> nullcontext[None]:
        """The driver's machine is its own."""
        return nullcontext()

    def close(self) -> None:
        """End all actors, whatever they are doing; the cluster stays. Those that are idle clear up before."""
        idle = [slot.actor.close.remote() for slot in self._slots if slot.actor is not None and slot.job is None]
        if idle:
            self._ray.wait(idle, num_returns=len(idle), timeout=_ENDING)
        for slot in self._slots:
            self._end(slot)
        if self._device is not None:
            with suppress(Exception):
                self._ray.kill(self._device)
            self._device = None

    def _actor(self) -> Any:
        placed = self._ray.remote(TrialActor).options(
            num_cpus=self._cluster.cpus, num_gpus=self._cluster.gpus, max_restarts=0
        )
        return placed.remote(self._setup, self._seed, self._facts, _Asking(self._device))

    def _taken(self, slot: _Slot) -> Done:
        """What came of a worker's trial; where its actor is gone, another one is made for its next."""
        number = self._slots.index(slot)
        job, took = slot.job, clock.monotonic() - slot.begun
        slot.job = None
        try:
            found: RemoteDone = self._ray.get(slot.result)
        except Exception as error:
            self._end(slot)
            cause = one_line(root_cause(error))
            memory = "OutOfMemory" in type(error).__name__
            failure = Failure("worker", f"worker {number + 1} was lost: {cause}", True, memory, lost=True)
            return Done(-1 if job is None else job.number, failure, took, worker=number)
        for event in found.events:
            self._note(event)
        for name, content in found.files.items():
            path = self._run.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(content)
            os.replace(temporary, path)
        return replace(found.done, worker=number)

    def _left(self, slot: _Slot) -> Done:
        job = slot.job
        self._end(slot)
        number = self._slots.index(slot)
        return Done(-1 if job is None else job.number, None, clock.monotonic() - slot.begun, worker=number)

    def _end(self, slot: _Slot) -> None:
        actor, slot.actor, slot.job = slot.actor, None, None
        if actor is not None:
            with suppress(Exception):
                self._ray.kill(actor)


class _Asking:
    """Asks the actor that holds the devices; errors of ours come back as they were raised."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def __call__(self, request: DeviceRequest) -> Any:
        import ray

        try:
            return ray.get(self.device.ask.remote(request))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

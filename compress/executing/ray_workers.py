"""Trials on a Ray cluster: one actor a worker, wherever there is room; nodes may leave and join.

Ray places and watches processes, and carries bytes; what is asked and told stays here. The task, with its code and
data, travels once to each node; what a trial made comes back as the files of its candidates. Measuring and scoring is
done on this machine, which holds the devices, unless a target's costs are the same everywhere.
"""

from __future__ import annotations

import itertools
import os
import socket
import time as clock
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from compress.executing.device_brokers import BrokerActor, DeviceServer
from compress.executing.forwarded_targets import facts_of
from compress.executing.jobs import Done, Failure, Job, Told
from compress.executing.ray_actors import RemoteDone, TrialActor
from compress.executing.seeds import packed_run
from compress.executing.silences import Silence
from compress.executing.worker_counts import Cluster
from compress.run_folder.runs import Run
from compress.values.error_lines import one_line, root_cause
from targets.errors import RequestError
from targets.target import Target

_HEAR = 1.0
"""Seconds between two looks at what the workers say."""
_WAITING = "waiting for room on the cluster"
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


@dataclass(eq=False)
class _Slot:
    """A worker: its actor while it has one, and what that is doing."""

    number: int
    actor: Any = None
    name: int = -1
    """Of its actor: another one than of every actor before."""
    is_there: bool = False
    """Whether its actor was heard of: until then it waits for room on the cluster."""
    job: Job | None = None
    result: Any = None
    begun: float = 0.0
    stage: str = ""
    computed: float | None = None
    silence: Silence = field(default_factory=Silence)

    def is_hang(self) -> bool:
        """Whether it has said and computed nothing for too long."""
        return self.is_there and self.silence.is_hang(clock.monotonic(), lambda: self.computed)


class RayWorkers:
    """Carries out as many trials at once as there are workers; without a number, as the cluster has room for."""

    def __init__(
        self, cluster: Cluster, setup: bytes, run: Run, targets: Sequence[Target], workers: int | None, note: Note
    ) -> None:
        """``targets``: those of the search, which stay here. ``note``: see ``LocalWorkers``."""
        self._ray, self._cluster, self._run, self._note = _ray(), cluster, run, note
        self._fixed = workers
        self._room = workers or room(cluster)
        self._slots = [_Slot(number) for number in range(self._room)]
        self._looked = self._heard = clock.monotonic()
        self._names = itertools.count()
        self._setup = self._ray.put(setup)
        self._seed = self._ray.put(packed_run(run.folder))
        self._broker = (
            self._ray.remote(BrokerActor)
            .options(num_cpus=0, scheduling_strategy=_here(self._ray), max_restarts=-1)
            .remote()
        )
        self._facts = () if all(target.deterministic for target in targets) else tuple(map(facts_of, targets))
        self._server = DeviceServer(self._ray, self._broker, targets) if self._facts else None

    @property
    def workers(self) -> int:
        """How many trials are carried out at once."""
        return len(self._slots)

    @property
    def has_room(self) -> bool:
        """Whether a worker has nothing to do; there are more where nodes have joined, and less where they have left.

        Of a given number of workers some may wait, since a cluster may grow when it is asked for more than it has.
        """
        if self._fixed is None and clock.monotonic() - self._looked > _LOOK:
            self._looked, self._room = clock.monotonic(), room(self._cluster)
            self._slots += [_Slot(number) for number in range(len(self._slots), self._room)]
        return sum(slot.job is not None for slot in self._slots) < self._room

    def submit(self, job: Job) -> int:
        """Hand a trial to an idle worker, one with an actor if there is one; gives its number."""
        idle = [slot for slot in self._slots if slot.job is None]
        slot = next((one for one in idle if one.actor is not None), idle[0])
        if slot.actor is None:
            self._place(slot)
        further = job.plan.further
        weights = further.weights.read_bytes() if further is not None else None
        slot.job, slot.begun, slot.stage = job, clock.monotonic(), "starting"
        slot.silence.begun(slot.begun)
        slot.result = slot.actor.evaluate.remote(job, weights)
        return slot.number

    def wait(self, told: Told, seconds: float | None) -> Sequence[Done]:
        """What has ended; after ``seconds``, trials that are still under way are left."""
        deadline = None if seconds is None else clock.monotonic() + max(0.0, seconds) + _ENDING
        while True:
            busy = {slot.result: slot for slot in self._slots if slot.job is not None}
            ready, _ = self._ray.wait(list(busy), num_returns=len(busy), timeout=0)
            if not ready:
                left = _HEAR if deadline is None else min(_HEAR, max(0.0, deadline - clock.monotonic()))
                ready, _ = self._ray.wait(list(busy), num_returns=1, timeout=left)
            self._hear(told)
            if ready:
                return tuple(self._taken(busy[one]) for one in ready)
            if deadline is not None and clock.monotonic() > deadline:
                return tuple(self._left(slot) for slot in busy.values())
            hung = [slot for slot in busy.values() if slot.is_hang()]
            if hung:
                return tuple(self._hung(slot) for slot in hung)

    def _hear(self, told: Told) -> None:
        """What the workers say that they are doing."""
        now = clock.monotonic()
        if now - self._heard < _HEAR:
            return
        self._heard = now
        try:
            said = self._ray.get(self._broker.said.remote(), timeout=_KNOCK)
        except Exception:  # it is started anew, and hears what is said next
            return
        for slot in self._slots:
            if slot.actor is None or slot.job is None:
                continue
            if slot.name in said:
                slot.is_there = True
                stage, computed = said[slot.name]
                slot.computed = computed if computed is not None else slot.computed
            else:
                stage = _WAITING
            if stage != slot.stage:
                slot.stage = stage
                slot.silence.broken(now)
                told(slot.number, stage)
        self._make_room(now)

    def _make_room(self, now: float) -> None:
        """Where trials wait for room on the cluster, idle workers leave it to them."""
        waiting = sum(slot.job is not None and not slot.is_there and now - slot.begun > _LOOK for slot in self._slots)
        idle = [slot for slot in self._slots if slot.job is None and slot.actor is not None]
        for slot in idle[:waiting]:
            self._end(slot)

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
        with suppress(Exception):
            self._ray.kill(self._broker)
        if self._server is not None:
            self._server.close()

    def _place(self, slot: _Slot) -> None:
        """Ask the cluster for an actor."""
        placed = self._ray.remote(TrialActor).options(
            num_cpus=self._cluster.cpus, num_gpus=self._cluster.gpus, max_restarts=0
        )
        slot.name, slot.is_there, slot.computed = next(self._names), False, None
        slot.actor = placed.remote(self._setup, self._seed, self._facts, self._broker, slot.name)

    def _taken(self, slot: _Slot) -> Done:
        """What came of a worker's trial; where its actor is gone, another one is made for its next."""
        number = slot.number
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

    def _hung(self, slot: _Slot) -> Done:
        number, job, now = slot.number, slot.job, clock.monotonic()
        cause = f"worker {number + 1} was lost: nothing was heard of it in {now - slot.silence.heard:.0f} s"
        failure = Failure(slot.stage.split(",")[0], cause, transient=True, lost=True)
        self._end(slot)
        return Done(-1 if job is None else job.number, failure, now - slot.begun, worker=number)

    def _left(self, slot: _Slot) -> Done:
        job = slot.job
        self._end(slot)
        number = slot.number
        return Done(-1 if job is None else job.number, None, clock.monotonic() - slot.begun, worker=number)

    def _end(self, slot: _Slot) -> None:
        actor, slot.actor, slot.job = slot.actor, None, None
        if actor is not None:
            with suppress(Exception):
                self._ray.kill(actor)


def _here(ray: Any) -> Any:
    """On the node that the driver has reached the cluster by."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)

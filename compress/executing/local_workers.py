"""Trials in several processes on this machine, each with its own cores, and threads for these alone.

A worker is a program of ours (``compress.executing.worker``) that prepares the search's context once, out of the run's
folder, and then carries out one trial after the other. It speaks pickled messages over pipes and ends with this
process, however that ends. What it did is in the run's cache by its content, so nothing that a lost worker finished
is done twice.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time as clock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.executing.jobs import Done, Failure, Job, Told
from compress.executing.messages import read_message, write_message
from compress.executing.silences import Silence, computed_by
from targets.errors import StageError
from targets.machine import cpus
from targets.workers.process import local_launch

_ENDING = 5.0
"""Seconds that workers get to leave a trial by themselves when the time is over."""
_WORDS = 400
"""Characters of a lost worker's last words that are shown."""
Note = Callable[[dict[str, Any]], None]
"""Takes an event that a worker would have written into the record."""


def shares(workers: int, among: Sequence[int]) -> list[tuple[int, ...]]:
    """The cores of each worker: equal shares of ``among``; where there are fewer cores than workers, one each in turn.

    >>> shares(2, (0, 1, 2, 3, 4))
    [(0, 1), (2, 3)]
    >>> shares(3, (0, 1))
    [(0,), (1,), (0,)]
    """
    if not among:
        return [() for _ in range(workers)]
    each = len(among) // workers
    if each == 0:
        return [(among[i % len(among)],) for i in range(workers)]
    return [tuple(among[i * each : (i + 1) * each]) for i in range(workers)]


@dataclass
class _Worker:
    """A process, and what is known of it."""

    number: int
    cores: tuple[int, ...]
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    job: Job | None = None
    begun: float = 0.0
    stage: str = "starting"
    silence: Silence = field(default_factory=Silence)
    is_ready: bool = False
    was_killed: bool = False
    """Once already before it was ready."""


class LocalWorkers:
    """Carries out as many trials at once as there are workers."""

    def __init__(self, setup: bytes, folder: Path, workers: int, note: Note, *, gpus: int = 0) -> None:
        """``setup``: what workers are made ready from (``worker_setups.pickled``), kept in ``folder`` for them.

        ``note`` is told, in the driver's thread, of what they would write into the record. ``gpus``: how many there
        are; each worker is given one of them. Workers are started when there is something to do.
        """
        self.workers = workers
        self._note, self._gpus = note, gpus
        self._messages: queue.Queue[tuple[subprocess.Popen[bytes], Any]] = queue.Queue()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
        self._setup = self._folder / "setup.pickle"
        self._setup.write_bytes(setup)
        self._workers = [_Worker(i, cores) for i, cores in enumerate(shares(workers, cpus.allowed()))]

    @property
    def has_room(self) -> bool:
        """Whether a worker has nothing to do."""
        return any(worker.job is None for worker in self._workers)

    def submit(self, job: Job) -> int:
        """Hand a trial to an idle worker, one that is ready if there is one; gives its number."""
        for one in self._workers:
            if one.job is None and (one.process is None or one.process.poll() is not None):
                self._start(one)
        idle = [worker for worker in self._workers if worker.job is None]
        worker = next((one for one in idle if one.is_ready), idle[0])
        worker.job, worker.begun, worker.stage = job, clock.monotonic(), "starting"
        worker.silence.begun(worker.begun)
        with contextlib.suppress(OSError):  # it has just ended: that is heard of
            if worker.process is not None and worker.process.stdin is not None:
                write_message(worker.process.stdin, job)
        return worker.number

    def wait(self, told: Told, seconds: float | None) -> Sequence[Done]:
        """What has ended; after ``seconds``, trials that are still under way are left."""
        deadline = None if seconds is None else clock.monotonic() + seconds + _ENDING
        while True:
            if deadline is not None and clock.monotonic() > deadline:
                return tuple(self._left(worker, job) for worker, job in self._busy())
            try:
                process, message = self._messages.get(timeout=0.5)
            except queue.Empty:
                hung = [(worker, job) for worker, job in self._busy() if _hangs(worker)]
                if hung:
                    return tuple(
                        self._lost(*one, f"nothing was heard of it in {clock.monotonic() - one[0].silence.heard:.0f} s")
                        for one in hung
                    )
                continue
            worker = next((one for one in self._workers if one.process is process), None)
            # Nothing counts that a worker says which was replaced.
            done = None if worker is None else self._heard(worker, message, told)
            if done is not None:
                return (done,)

    def _busy(self) -> list[tuple[_Worker, Job]]:
        return [(worker, worker.job) for worker in self._workers if worker.job is not None]

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Inside, this process and what it starts runs on the cores of a worker that is idle."""
        idle = next((worker.cores for worker in self._workers if worker.job is None and worker.cores), None)
        if idle is None or not hasattr(os, "sched_setaffinity"):
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, idle)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def close(self) -> None:
        """End all workers, whatever they are doing, and remove what they were started with."""
        for worker in self._workers:
            self._stop(worker)
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _heard(self, worker: _Worker, message: Any, told: Told) -> Done | None:
        """Take a worker's message in; what it says of the end of its trial is returned."""
        worker.silence.broken(clock.monotonic())
        kind, content = message
        if kind == "ready":
            worker.is_ready = True
        elif kind == "stage":
            worker.stage = content
            told(worker.number, content)
        elif kind == "event":
            self._note(content)
        elif kind == "unready":
            raise StageError(f"worker {worker.number + 1} could not be made ready: {content}")
        elif kind == "done" and worker.job is not None:
            worker.job = None
            found: Done = replace(content, worker=worker.number)
            return found
        elif kind == "ended":
            return self._gone(worker)
        return None

    def _gone(self, worker: _Worker) -> Done | None:
        """A worker's process has ended by itself; raises StageError where it did so before it was ready."""
        status = worker.process.wait() if worker.process is not None else 0
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        if not worker.is_ready:
            # Killed by whomever, it may live next time; what ends by itself would do so again.
            if status >= 0 or worker.was_killed:
                raise StageError(f"worker {worker.number + 1} {how} before it was ready{_last_words(worker)}")
            worker.was_killed = True
        if worker.job is None:
            self._stop(worker)
            return None
        return self._lost(worker, worker.job, f"its process {how}{_last_words(worker)}", out_of_memory=status == -9)

    def _lost(self, worker: _Worker, job: Job, why: str, *, out_of_memory: bool = False) -> Done:
        """The failure of a trial whose worker is gone, or given up."""
        stage = worker.stage.split(",")[0]
        self._stop(worker)
        cause = f"worker {worker.number + 1} was lost: {why}"
        failure = Failure(stage, cause, transient=True, out_of_memory=out_of_memory, lost=True)
        return Done(job.number, failure, clock.monotonic() - worker.begun, worker=worker.number)

    def _left(self, worker: _Worker, job: Job) -> Done:
        self._stop(worker)
        return Done(job.number, None, clock.monotonic() - worker.begun, worker=worker.number)

    def _start(self, worker: _Worker) -> None:
        self._stop(worker)
        launch = local_launch(max(1, len(worker.cores)))
        environment = dict(launch.environment)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(worker.number % self._gpus)
        worker.log = self._folder / f"worker-{worker.number}.log"
        cores = ",".join(str(core) for core in worker.cores)
        command = [sys.executable, "-P", "-m", "compress.executing.worker", str(self._setup), cores]
        with worker.log.open("ab") as log:
            # A group of its own: Ctrl-C is the driver's, which ends its workers itself.
            worker.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
        worker.is_ready, worker.silence = False, Silence()
        listening = threading.Thread(target=self._listen, args=(worker.process,), daemon=True)
        listening.start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError, ValueError):
            while process.stdout is not None:
                self._messages.put((process, read_message(process.stdout)))
        self._messages.put((process, ("ended", None)))

    def _stop(self, worker: _Worker) -> None:
        process, worker.process, worker.job = worker.process, None, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()


def _hangs(worker: _Worker) -> bool:
    pid = None if worker.process is None else worker.process.pid
    return worker.silence.is_hang(clock.monotonic(), lambda: None if pid is None else computed_by(pid))


def _last_words(worker: _Worker) -> str:
    """What the process wrote last, in one line; empty where it wrote nothing."""
    try:
        text = "" if worker.log is None else worker.log.read_text(errors="replace").strip()
    except OSError:
        return ""
    last = text.splitlines()[-1].strip() if text else ""
    return f" ({last[:_WORDS]})" if last else ""

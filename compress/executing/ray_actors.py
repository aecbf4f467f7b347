"""What carries out trials on a cluster: a plain class, made into actors by ``ray_workers``."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.executing.device_brokers import Asking
from compress.executing.evaluating import evaluate_job
from compress.executing.forwarded_targets import ForwardedTarget, TargetFacts
from compress.executing.jobs import Done, Job
from compress.executing.seeds import unpacked_run
from compress.executing.silences import computed_by
from compress.executing.worker_setups import opened_context, unpickled
from compress.onnx_files.isolation import kept_worker
from compress.sampling.problems import problem_of

_PULSE = 5.0
"""Seconds between two times of saying what it is doing."""


@dataclass(frozen=True)
class RemoteDone:
    """What a trial brought elsewhere: its outcome, what it noted, and the files of its candidates."""

    done: Done
    events: tuple[dict[str, Any], ...]
    files: Mapping[str, bytes]
    """By path within the run's folder."""


class TrialActor:
    """Carries out trials on a node, in a folder of its own; ``ready`` is answered when its context is there."""

    def __init__(self, setup: bytes, seed: bytes, facts: Sequence[TargetFacts], broker: Any, number: int) -> None:
        """``broker``: passes on what is asked and said; ``number``: the name under which it says what it does."""
        self._broker, self._number, self._stage = broker, number, "preparing"
        threading.Thread(target=self._tell, daemon=True, name="telling").start()
        self._opened = contextlib.ExitStack()
        self._events: list[dict[str, Any]] = []
        folder = Path(tempfile.mkdtemp(prefix="paretopress-trials-"))
        self._opened.callback(shutil.rmtree, folder, ignore_errors=True)
        unpacked_run(seed, folder)
        found = unpickled(setup)
        targets = tuple(ForwardedTarget(one, Asking(broker)) for one in facts) or found.targets
        self._opened.enter_context(kept_worker())
        self._context = self._opened.enter_context(
            opened_context(replace(found, folder=folder, targets=targets), self._events.append, lambda _: None)
        )
        self._constraints = problem_of(self._context.run).constraints
        self._folder = folder

    def ready(self) -> str:
        """The name of the node, once everything is prepared."""
        return os.uname().nodename

    def evaluate(self, job: Job, weights: bytes | None) -> RemoteDone:
        """Carry out a trial. ``weights``: those it goes on from, where it does."""
        self._events.clear()
        further = job.plan.further
        if further is not None and weights is not None:
            path = self._folder / f"further-{job.number}{further.weights.suffix}"
            path.write_bytes(weights)
            job = replace(job, plan=replace(job.plan, further=replace(further, weights=path)))
        done = evaluate_job(self._context, self._constraints, job, self._say)
        self._say("idle")
        return RemoteDone(done, tuple(self._events), self._files(job.number))

    def close(self) -> None:
        """Remove what lies in the worker's own folder."""
        self._opened.close()

    def _say(self, stage: str) -> None:
        self._stage = stage
        self._broker.tell.remote(self._number, stage, None)

    def _tell(self) -> None:
        """Say again and again what it is doing, and what it has computed so far."""
        while True:
            self._broker.tell.remote(self._number, self._stage, computed_by(os.getpid()))
            time.sleep(_PULSE)

    def _files(self, number: int) -> dict[str, bytes]:
        """The files of the trial's candidates, which are not kept here."""
        found = {}
        for folder in (self._folder / "candidates").glob(f"{number:04d}-*"):
            for path in folder.iterdir():
                found[str(path.relative_to(self._folder))] = path.read_bytes()
            shutil.rmtree(folder)
        return found

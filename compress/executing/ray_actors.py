"""What runs on a cluster: an actor that carries out trials, and one that holds the devices. Plain classes, made into
actors by ``ray_workers``."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.executing.evaluating import evaluate_job
from compress.executing.forwarded_targets import Ask, DeviceRequest, ForwardedTarget, TargetFacts, answer
from compress.executing.jobs import Done, Job
from compress.executing.seeds import unpacked_run
from compress.executing.worker_setups import opened_context, unpickled
from compress.onnx_files.isolation import kept_worker
from compress.sampling.problems import problem_of
from targets import registry
from targets.target import Target


@dataclass(frozen=True)
class RemoteDone:
    """What a trial brought elsewhere: its outcome, what it noted, and the files of its candidates."""

    done: Done
    events: tuple[dict[str, Any], ...]
    files: Mapping[str, bytes]
    """By path within the run's folder."""


class TrialActor:
    """Carries out trials on a node, in a folder of its own; ``ready`` is answered when its context is there."""

    def __init__(self, setup: bytes, seed: bytes, facts: Sequence[TargetFacts], ask: Ask) -> None:
        self._opened = contextlib.ExitStack()
        self._events: list[dict[str, Any]] = []
        folder = Path(tempfile.mkdtemp(prefix="paretopress-trials-"))
        self._opened.callback(shutil.rmtree, folder, ignore_errors=True)
        unpacked_run(seed, folder)
        found = unpickled(setup)
        targets = tuple(ForwardedTarget(one, ask) for one in facts) or found.targets
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
        done = evaluate_job(self._context, self._constraints, job, lambda _: None)
        return RemoteDone(done, tuple(self._events), self._files(job.number))

    def close(self) -> None:
        """Remove what lies in the worker's own folder."""
        self._opened.close()

    def _files(self, number: int) -> dict[str, bytes]:
        """The files of the trial's candidates, which are not kept here."""
        found = {}
        for folder in (self._folder / "candidates").glob(f"{number:04d}-*"):
            for path in folder.iterdir():
                found[str(path.relative_to(self._folder))] = path.read_bytes()
            shutil.rmtree(folder)
        return found


class DeviceActor:
    """Holds the targets on the driver's machine, and asks each as many things at once as it has devices.

    Whoever asks has the device for the time of the answer and not a moment longer: where an asker is lost meanwhile,
    its answer goes nowhere, and the next one begins when the device is free.
    """

    def __init__(self, targets: Sequence[str | Target]) -> None:
        made = [registry.get(target) for target in targets]
        self._targets = {target.name: target for target in made}
        self._free = {target.name: threading.BoundedSemaphore(target.at_once) for target in made}

    def ask(self, request: DeviceRequest) -> Any:
        """Measure, run or audit there; raises what the target raises."""
        with self._free[request.target]:
            return answer(self._targets[request.target], request)

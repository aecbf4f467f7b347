"""How long the driver of a search takes for each trial, and how much memory, when workers cost nothing.

Trials are answered at once with made-up candidates, so all that is timed is asking, recording, telling and reporting:
`python benchmarks/workers/driver_time.py --trials 1000 --workers 64 --sampler random`.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import compress
from compress.baseline import preparing
from compress.executing.jobs import Done, Job
from compress.run_folder.caching import Cache
from compress.run_folder.records import Record
from compress.run_folder.runs import Run
from compress.searching.budgets import Budget
from compress.searching.progress import Silent
from compress.searching.requests import Asked, resolved
from compress.searching.trial_loop import Loop
from compress.searching.trial_recording import TrialRecorder
from compress.stages.trials import Finished
from targets.runtimes.fake.fake_target import FakeTarget


class AtOnce:
    """Answers every trial at once: the faster a candidate is made up to be, the more it loses."""

    def __init__(self, baseline: Any, workers: int) -> None:
        self.baseline, self.workers = baseline, workers
        self.jobs: list[Job] = []
        self.random = random.Random(0)

    @property
    def has_room(self) -> bool:
        """Whether another trial can be handed over."""
        return len(self.jobs) < self.workers

    def submit(self, job: Job) -> int:
        """Take a trial that is to be answered; gives the worker that it counts for."""
        self.jobs.append(job)
        return (len(self.jobs) - 1) % self.workers

    def wait(self, told: Any, seconds: float | None) -> Sequence[Done]:  # noqa: ARG002  answered at once
        """Answer one of the trials that were handed over."""
        job = self.jobs.pop(self.random.randrange(len(self.jobs)))
        made = tuple(self._made(job, scheme) for scheme in ("fp32", "int8", "mixed"))
        return (Done(job.number, Finished(made), 1.0, 0.5, job.number % self.workers),)

    def _made(self, job: Job, scheme: str) -> Any:
        speed = self.random.uniform(0.2, 1.0)
        drop = max(0.0, 0.05 * (1 - speed) + self.random.gauss(0, 0.005))
        measured = self.baseline.measured["fake"]
        quality = measured.quality.val
        latency = replace(measured.latency, ratio=speed, low=speed * 0.99, high=speed * 1.01)
        one = replace(
            measured, latency=latency, quality_drop=replace(measured.quality_drop, val=made_drop(drop)),
            quality=replace(measured.quality, val=replace(quality, value=quality.value - drop)),
        )  # fmt: skip
        name = f"{job.number:04d}-{scheme}"
        return replace(
            self.baseline, id=name, path=f"candidates/{name}/model.onnx", trial=job.number, measured={"fake": one},
            config={"precision": {"scheme": scheme}, "prune": {"ratio": 1 - speed}, "widths": {}},
            sha256=hashlib.sha256(name.encode()).hexdigest(),
        )  # fmt: skip

    def beside(self) -> nullcontext[None]:
        """Leave the driver where it runs, since no worker uses a core."""
        return nullcontext()

    def close(self) -> None:
        """Drop the trials that were handed over and not answered yet."""
        self.jobs.clear()


def made_drop(value: float) -> Any:
    """A drop with an interval of half a point."""
    from compress.values.candidates import Drop

    return Drop(value, value - 0.005, value + 0.005)


def task() -> compress.Task:
    """A network of four layers on random numbers: nothing of it is trained here."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(32, 4)).eval()
    data = TensorDataset(torch.rand(64, 3, 12, 12), torch.randint(0, 4, (64,)))
    return compress.Task("driver", module, train=data, val=data, test=None)


def main() -> None:
    """Print seconds and memory after every tenth of the trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--sampler", default="random")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        folder.mkdir()
        asked = Asked(task(), FakeTarget(), trials=arguments.trials, sampler=arguments.sampler, out=folder)
        with resolved(asked) as wanted:
            record = Record(folder / "record.jsonl")
            run = Run(folder, record, wanted.request)
            run.write_request()
            cache = Cache(folder / "cache", lambda *_: None)
            context = preparing.prepare(asked.task, run, cache, wanted.targets, wanted.splits, "cpu", lambda _: None)
            record.note("groups", [group.name for group in context.profile.groups.prunable])
            executor = AtOnce(context.baseline.candidate, arguments.workers)
            start, done = time.perf_counter(), 0
            step = max(1, arguments.trials // 10)
            for upto in range(step, arguments.trials + 1, step):
                before = time.perf_counter()
                recorder = TrialRecorder(run, Silent())
                loop = Loop(context, Budget(upto, None, 0.0), arguments.sampler, True, Silent(), executor, recorder)
                loop.run()
                took, count = time.perf_counter() - before, upto - done
                done = upto
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"{upto:6d} trials: {1000 * took / count:7.1f} ms a trial, {memory:6.0f} MB", flush=True)
            whole = time.perf_counter() - start
            print(f"{arguments.sampler}: {1000 * whole / arguments.trials:.1f} ms a trial over all")


if __name__ == "__main__":
    main()

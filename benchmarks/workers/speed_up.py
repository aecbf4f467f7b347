"""How many times as fast several workers are as one, where training is a sleep of known length.

`python benchmarks/workers/speed_up.py --sleep 20 --workers 1 2 4 8` searches with each number of workers, for as many
trials as keep every one of them busy three times; `--cluster auto` does so on a Ray cluster. The rate is that of
trials from the first one that was begun to the last one that ended; ideal is the number of workers times one worker's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import compress
from compress.run_folder.records import Record
from targets.runtimes.fake.fake_target import FakeTarget

SPACE = compress.SearchSpace(epochs=1, l1=0.0, precision="fp32", prune_ratio=compress.Float(0.1, 0.7))


def task(seconds: float) -> compress.Task:
    """A small network whose training is a sleep."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(32, 4)).eval()
    data = TensorDataset(torch.rand(64, 3, 12, 12), torch.randint(0, 4, (64,)))

    def finetune(network: Any, train: Any, settings: Any) -> None:  # noqa: ARG001  what a task's own loop is given
        time.sleep(seconds)

    return compress.Task("sleeping", module, train=data, val=data, test=None, finetune=finetune)


def rate(workers: int, seconds: float, cluster: str | None) -> tuple[float, float]:
    """(trials a minute, share of the time that workers were busy)."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        compress.search(
            task(seconds), FakeTarget(), trials=3 * workers, space=SPACE, sampler="random", workers=workers,
            cluster=cluster, constraints=["quality_drop<=1"], out=folder,
        )  # fmt: skip
        state = Record(folder / "record.jsonl", write=False).state
    spans = [span for trial in state.trials.values() for span in trial.spans if span.ended is not None]
    # What a worker's first trial waits for until it is ready is the price of beginning, not of going on.
    later = [span for span in spans if span.begun > min(one.ended for one in spans if one.worker == span.worker) - 1e-9]
    begun, ended = min(span.begun for span in later), max(span.ended or 0.0 for span in later)
    busy = sum((span.ended or 0.0) - span.begun for span in later) / (workers * (ended - begun))
    return 60 * len(later) / (ended - begun), busy


def main() -> None:
    """Print a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sleep", type=float, default=20.0, help="seconds of a training")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--cluster", help="a Ray cluster's address, or auto")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ideal = 60 / arguments.sleep
    print(f"a training sleeps {arguments.sleep:g} s; {os.cpu_count()} cores; ideal: {ideal:.2f} a minute each")
    one = None
    for workers in arguments.workers:
        found, busy = rate(workers, arguments.sleep, arguments.cluster)
        one = one or found / workers
        print(
            f"{workers:3d} workers: {found:6.2f} trials a minute, {found / one:5.2f} times one worker's "
            f"({100 * found / one / workers:.0f} % of ideal), busy {100 * busy:.0f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()

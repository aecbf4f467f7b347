"""How peers are measured, each the same way: plain loops over ONNX Runtime, a clock for the budget, one result file.

Two clocks. The *budget* is CPU seconds of the process, so that a neighbour on the machine takes nothing away. The
*latency* is a paired ratio: sessions of baseline and candidate in turns, the least of each short block, the median of
the ratios of neighbouring blocks. What is compared in the end is measured once more, all files in one process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
from subjects import Subject, accuracy


def peer_arguments(doc: str) -> argparse.ArgumentParser:
    """The arguments that all peers share: subject, weights, budget, seed, and the folder for the files."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--data")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser


class Budget:
    """CPU seconds of this process and what is left of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._start = seconds, time.process_time()

    @property
    def spent(self) -> float:
        """CPU seconds that this process has used since the budget was made."""
        return time.process_time() - self._start

    @property
    def left(self) -> float:
        """CPU seconds until the end; below 0 when it is over."""
        return self.seconds - self.spent


def session(path: Path) -> onnxruntime.InferenceSession:
    """One thread, no spinning, every optimization."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ratios(paths: Sequence[Path], subject: Subject, seconds: float = 2.0) -> list[float]:
    """Each file's time as a ratio to the first one's, at batch 1 on a real example."""
    sample = [x[:1].numpy() for x in subject.val.inputs]
    sessions = [session(path) for path in paths]
    feeds = [dict(zip([i.name for i in one.get_inputs()], sample, strict=True)) for one in sessions]
    for one, feed in zip(sessions, feeds, strict=True):
        start = time.perf_counter()
        while time.perf_counter() - start < 0.1:
            one.run(None, feed)
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < 7 or time.perf_counter() - start < seconds:
        rounds.append([_block(one, feed) for one, feed in zip(sessions, feeds, strict=True)])
    return [float(np.median([row[i] / row[0] for row in rounds])) for i in range(len(paths))]


def _block(one: onnxruntime.InferenceSession, feed: dict[str, np.ndarray], length: float = 0.01) -> float:
    """The least time of one run within some 10 ms."""
    best, end = float("inf"), time.perf_counter() + length
    while time.perf_counter() < end:
        start = time.perf_counter()
        one.run(None, feed)
        best = min(best, time.perf_counter() - start)
    return best


def scored(path: Path, split: object, batch: int = 64) -> float:
    """Accuracy of a file on a split."""
    one = session(path)
    names = [i.name for i in one.get_inputs()]
    arrays = [x.numpy() for x in split.inputs]  # type: ignore[attr-defined] - a Split
    parts = [one.run(None, {n: x[i : i + batch] for n, x in zip(names, arrays, strict=True)})[0]
             for i in range(0, len(arrays[0]), batch)]  # fmt: skip
    return accuracy(np.concatenate(parts), split.labels)  # type: ignore[attr-defined] - a Split


@dataclass(frozen=True)
class Tried:
    """A file that a peer made, and what it saw of it on val."""

    path: str
    ratio: float
    val: float
    seconds: float
    """CPU seconds of the budget when it was there."""


@dataclass
class Outcome:
    """All that a peer did with its budget."""

    peer: str
    subject: str
    seed: int
    budget: float
    baseline: str
    baseline_val: float
    tried: list[Tried] = field(default_factory=list)
    trainings: int = 0

    def best(self, limit: float) -> Tried | None:
        """The fastest within the limit on val, the baseline's val minus ``limit``."""
        good = [one for one in self.tried if one.val >= self.baseline_val - limit - 1e-9]
        return min(good, key=lambda one: one.ratio, default=None)

    def save(self, path: Path) -> None:
        """Write the outcome to a JSON file, over an earlier one; ``read_outcome`` reads it back."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_outcome(path: Path) -> Outcome:
    """Read the outcome that ``Outcome.save`` wrote to this file."""
    data = json.loads(path.read_text())
    return Outcome(**{**data, "tried": [Tried(**one) for one in data["tried"]]})


def hypervolume(
    tried: Sequence[Tried], baseline_val: float, worst_ratio: float = 1.1, worst_drop: float = 0.10
) -> float:
    """Area that the files dominate, of (ratio, drop on val) up to a ratio of 1.1 and a drop of 0.10."""
    points = sorted({(one.ratio, max(baseline_val - one.val, -1.0)) for one in tried} | {(1.0, 0.0)})
    area, last = 0.0, worst_drop
    for ratio, drop in points:
        if ratio < worst_ratio and drop < last:
            area += (worst_ratio - ratio) * (last - drop)
            last = drop
    return area

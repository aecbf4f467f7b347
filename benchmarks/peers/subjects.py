"""The networks that searches are compared on: trained once, kept in a file, so that every peer begins with the same.

    python benchmarks/peers/subjects.py digits --out digits.pt

A subject's file holds the module's weights; the module, its data and its limits come from a recipe or a task file.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.baseline.modules import make_module
from compress.networks.running import seeded
from compress.tasks.datasets import Split, batches
from compress.tasks.loading import load_task
from compress.tasks.splits import read_splits
from compress.tasks.tasks import Task


@dataclass(frozen=True)
class Subject:
    """A trained network with its data; peers take copies of the module."""

    task: Task
    module: nn.Module
    train: Any
    """A ``Split`` in memory, or a ``Stream``."""
    val: Split
    test: Split

    def example(self, count: int = 2) -> tuple[torch.Tensor, ...]:
        """The inputs of the first ``count`` examples of val, to trace or export a network with."""
        return self.val.first(count)

    def batches(self, size: int, seed: int) -> Any:
        """One epoch of (inputs, labels), in an order of its seed."""
        generator = torch.Generator().manual_seed(seed)
        for _, inputs, labels in batches(self.train, size, generator):
            yield inputs, labels


def load(name: str, data: str | None, weights: Path) -> Subject:
    """The subject that a recipe or task file names; it is trained and kept where ``weights`` is absent."""
    task = load_task(name, data).task
    splits = read_splits(task)
    if splits.test is None or splits.train is None:
        raise SystemExit(f"{name}: a comparison needs train, val and test")
    with seeded(0):
        module = make_module(task, trained=not weights.exists())
    if weights.exists():
        module.load_state_dict(torch.load(weights, weights_only=True))
    else:
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), weights)
    return Subject(task, module.eval(), splits.train, splits.val, splits.test)


def accuracy(outputs: np.ndarray, labels: Any) -> float:
    """Share of decisions that are right."""
    return float((outputs.argmax(1) == np.asarray(labels)).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    subject = load(asked.name, asked.data, asked.out)
    print(f"{asked.name}: {sum(p.numel() for p in subject.module.parameters())} parameters, kept in {asked.out}")

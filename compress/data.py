"""Datasets as arrays: read once, checked, hashed, compared.

Small map-style datasets are held in memory as tensors, which makes an epoch of a small network several times
faster than asking for one example at a time. A train set that gives different examples each time (random
augmentation) or does not fit is asked anew every epoch instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from targets.errors import TaskError

MOST_BYTES = 2 * 10**9
"""A train set beyond this is not held in memory."""


@dataclass(frozen=True)
class Split:
    """Inputs (one tensor per network input, samples first), labels, and the hash of both."""

    inputs: tuple[Tensor, ...]
    labels: Any
    """A tensor, samples first."""
    digest: str

    def __len__(self) -> int:
        return len(self.inputs[0])

    def first(self, n: int) -> tuple[Tensor, ...]:
        """The first ``n`` inputs."""
        return tuple(x[:n] for x in self.inputs)

    def arrays(self, names: list[str]) -> dict[str, np.ndarray]:
        """Inputs as arrays by the ONNX file's input names."""
        return {name: x.numpy() for name, x in zip(names, self.inputs, strict=True)}


@dataclass(frozen=True)
class Stream:
    """A train set that is asked anew every epoch."""

    dataset: Any
    digest: str

    def __len__(self) -> int:
        return len(self.dataset)


def read(dataset: Any, name: str) -> Split:
    """All of a dataset as tensors. Raises TaskError naming the split and what is wrong with it."""
    _check_size(dataset, name)
    if isinstance(dataset, torch.utils.data.TensorDataset):
        *inputs, labels = dataset.tensors
        return _split(tuple(inputs), labels, name)
    items = [_item(dataset, i, name) for i in range(len(dataset))]
    try:
        inputs = tuple(torch.stack([item[0][k] for item in items]) for k in range(len(items[0][0])))
        labels = torch.utils.data.default_collate([item[1] for item in items])
    except (RuntimeError, IndexError, TypeError) as error:
        raise TaskError(f"{name}: examples do not fit together in one batch: {_line(error)}") from None
    return _split(inputs, labels, name)


def read_train(dataset: Any) -> Split | Stream:
    """The train set in memory where it is always the same and fits, else as a stream."""
    _check_size(dataset, "train")
    if isinstance(dataset, torch.utils.data.TensorDataset):
        return read(dataset, "train")
    probes = sorted({0, len(dataset) // 2, len(dataset) - 1})
    first = [_item(dataset, i, "train") for i in probes]
    again = [_item(dataset, i, "train") for i in probes]
    same = all(
        all(torch.equal(a, b) for a, b in zip(x[0], y[0], strict=True)) for x, y in zip(first, again, strict=True)
    )
    size = sum(x.nbytes for x in first[0][0]) * len(dataset)
    if same and size <= MOST_BYTES:
        return read(dataset, "train")
    # The same seedless stream cannot be hashed whole; its shape and size at least tell two apart.
    digest = hashlib.sha256(f"{len(dataset)} {[tuple(x.shape) for x in first[0][0]]}".encode()).hexdigest()[:16]
    return Stream(dataset, digest)


def batches(
    train: Split | Stream, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, tuple[Tensor, ...], Any]]:
    """One epoch in a seeded random order: (indices, inputs, labels). A last batch of one is left out (BatchNorm)."""
    order = torch.randperm(len(train), generator=generator)
    for chunk in order.split(size):
        if len(chunk) == 1 and len(order) > 1:
            continue
        if isinstance(train, Split):
            yield chunk, tuple(x[chunk] for x in train.inputs), train.labels[chunk]
        else:
            items = [_item(train.dataset, int(i), "train") for i in chunk]
            inputs = tuple(torch.stack([item[0][k] for item in items]) for k in range(len(items[0][0])))
            yield chunk, inputs, torch.utils.data.default_collate([item[1] for item in items])


def sample(train: Split | Stream, n: int, seed: int) -> tuple[tuple[Tensor, ...], Any]:
    """``n`` seeded random train examples."""
    generator = torch.Generator().manual_seed(seed)
    _, inputs, labels = next(batches(train, max(2, min(n, len(train))), generator))
    return inputs, labels


def overlaps(splits: dict[str, Split]) -> dict[tuple[str, str], int]:
    """Pairs of splits that share examples (the same input, byte for byte), and how many."""
    seen = {name: _example_hashes(split) for name, split in splits.items()}
    names = list(seen)
    found: dict[tuple[str, str], int] = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            shared = sum(1 for digest in seen[b] if digest in seen[a])
            if shared:
                found[a, b] = shared
    return found


def check_classes(splits: dict[str, Split], classes: int | None = None) -> None:
    """For classification: labels are whole, within the ``classes`` outputs if these are known, of more than one class."""
    for name, split in splits.items():
        labels = torch.as_tensor(split.labels)
        if labels.is_floating_point() or labels.dim() != 1:
            raise TaskError(
                f"{name}: labels are {labels.dtype} of shape {tuple(labels.shape)}; whole class numbers are needed"
            )
        low, high = int(labels.min()), int(labels.max())
        if low == high and name != "test":
            raise TaskError(f"{name}: all {len(split)} examples are of one class ({low}); at least two are needed")
        if classes is not None and (low < 0 or high >= classes):
            raise TaskError(f"{name}: labels run from {low} to {high}, but the model has {classes} outputs")


def _check_size(dataset: Any, name: str) -> None:
    if dataset is None:
        raise TaskError(f"{name} is None; give a map-style dataset of (input, label)")
    try:
        n = len(dataset)
    except TypeError:
        raise TaskError(
            f"{name}: {type(dataset).__name__} has no length; give a map-style dataset of (input, label)"
        ) from None
    if n == 0:
        raise TaskError(f"{name} is empty; it needs at least two examples")


def _item(dataset: Any, index: int, name: str) -> tuple[tuple[Tensor, ...], Any]:
    """One example as (tuple of tensors, label)."""
    example = dataset[index]
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        raise TaskError(f"{name}[{index}] is {type(example).__name__}, not a pair (input, label)")
    inputs, label = example
    inputs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    return tuple(torch.as_tensor(x) for x in inputs), label


def _split(inputs: tuple[Tensor, ...], labels: Any, name: str) -> Split:
    inputs = tuple(x.detach().cpu().contiguous() for x in inputs)
    labels = torch.as_tensor(labels).detach().cpu()
    for x in inputs:
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise TaskError(f"{name}: inputs hold NaN or infinite values; clean the data first")
    digest = hashlib.sha256()
    for tensor in (*inputs, labels):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return Split(inputs, labels, digest.hexdigest()[:16])


def _example_hashes(split: Split) -> list[bytes]:
    flat = [x.numpy().reshape(len(split), -1) for x in split.inputs]
    return [hashlib.blake2b(b"".join(x[i].tobytes() for x in flat), digest_size=16).digest() for i in range(len(split))]


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

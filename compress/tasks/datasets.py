"""Datasets as arrays: read once, checked, hashed, compared.

Small map-style datasets are held in memory as tensors, which makes an epoch of a small network several times
faster than asking for one example at a time. A train set that gives different examples each time (random
augmentation) or does not fit is asked anew every epoch instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.networks.fingerprints import tensor_hash
from compress.networks.plain_copies import single_precision
from compress.networks.running import seeded
from compress.tasks.fingerprints import dataset_hash
from compress.tasks.user_code import guarded
from compress.values.error_lines import one_line
from compress.values.serialization import stable_hash
from targets.errors import TaskError

MOST_BYTES = 2 * 10**9
"""A train set beyond this is not held in memory."""
_PROBES, _REPEATS = 16, 4
"""Examples read again, and how often, to see whether a train set is always the same: an augmentation that acts on
one example in ten is then missed once in a thousand."""


@dataclass(frozen=True)
class Split:
    """Inputs (one tensor per network input, samples first), labels, and the hash of both."""

    inputs: tuple[Tensor, ...]
    labels: Any
    """A tensor, samples first."""
    digest: str
    names: tuple[str, ...] = ()
    """Of the inputs, where the examples give them by name."""

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

    @cached_property
    def labels(self) -> Tensor:
        """Of every example, read once."""
        chunks = (range(i, min(i + 256, len(self))) for i in range(0, len(self), 256))
        labels = [label for chunk in chunks for _, label in _items(self.dataset, list(chunk), "train")]
        return _collate([((), label) for label in labels], "train")[1]


def read(dataset: Any, name: str) -> Split:
    """All of a dataset as tensors. Raises TaskError naming the split and what is wrong with it."""
    _check_size(dataset, name)
    if type(dataset) is torch.utils.data.TensorDataset:  # a subclass may augment
        if len(dataset.tensors) < 2:
            raise TaskError(f"{name}: a TensorDataset of one tensor has no labels; give TensorDataset(inputs, labels)")
        return _split(tuple(dataset.tensors[:-1]), dataset.tensors[-1], name)
    items = [_item(dataset, i, name) for i in range(len(dataset))]
    return _split(*_collate(items, name), name)


def read_train(dataset: Any) -> Split | Stream:
    """The train set in memory where it is always the same and fits, else as a stream."""
    _check_size(dataset, "train")
    if type(dataset) is torch.utils.data.TensorDataset:  # a subclass may augment
        return read(dataset, "train")
    made_of = dataset_hash(dataset)  # before it is asked anything: that may fill caches of its own
    probes = sorted({i * (len(dataset) - 1) // (_PROBES - 1) for i in range(_PROBES)})
    first = [_item(dataset, i, "train")[0] for i in probes]
    same = all(
        len(again) == len(before) and all(torch.equal(a, b) for a, b in zip(again, before, strict=True))
        for i, before in zip(probes, first, strict=True)
        for again in (_item(dataset, i, "train")[0] for _ in range(_REPEATS - 1))
    )
    size = sum(x.nbytes for x in first[0]) * len(dataset)
    if same and size <= MOST_BYTES:
        return read(dataset, "train")
    # What gives other examples each time cannot be hashed whole: what it is made of tells two apart, and what it gives
    # from the same seed, where that repeats.
    shapes = [tuple(x.shape) for x in first[0]]
    text = f"{len(dataset)} {shapes} {made_of} {_from_one_seed(dataset, probes)}"
    return Stream(dataset, hashlib.sha256(text.encode()).hexdigest()[:16])


def _from_one_seed(dataset: Any, indices: list[int]) -> str:
    """Hash of a few train examples drawn from a fixed seed; empty where the dataset does not go by that."""
    draws = []
    for _ in range(2):
        with seeded(0):
            items = [_item(dataset, index, "train") for index in indices]
        draws.append(stable_hash([[tensor_hash({"": x}) for x in inputs] for inputs, _ in items]))
    return draws[0] if draws[0] == draws[1] else ""


def batches(
    train: Split | Stream, size: int, generator: torch.Generator, weights: Tensor | None = None
) -> Iterator[tuple[Tensor, tuple[Tensor, ...], Any]]:
    """One epoch in a seeded random order: (indices, inputs, labels); with ``weights``, drawn with replacement by them.

    A last batch of one is left out, since BatchNorm cannot normalise it; not where batches of one were asked for.
    """
    if weights is None:
        order = torch.randperm(len(train), generator=generator)
    else:
        order = torch.multinomial(weights, len(train), replacement=True, generator=generator)
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        if len(chunk) == 1 and size > 1 and len(order) > 1:
            continue
        if isinstance(train, Split):
            yield chunk, tuple(x[chunk] for x in train.inputs), train.labels[chunk]
        else:
            yield chunk, *_collate(_items(train.dataset, chunk.tolist(), "train"), "train")


def sample(train: Split | Stream, n: int, seed: int) -> tuple[tuple[Tensor, ...], Any]:
    """``n`` seeded random train examples."""
    generator = torch.Generator().manual_seed(seed)
    _, inputs, labels = next(batches(train, max(2, min(n, len(train))), generator))
    return inputs, labels


def overlaps(splits: dict[str, Split]) -> dict[tuple[str, str], int]:
    """Pairs of splits that share examples (the same input, byte for byte), and how many of the second's."""
    hashes = {name: _example_hashes(split) for name, split in splits.items()}
    names = list(hashes)
    found: dict[tuple[str, str], int] = {}
    for i, a in enumerate(names):
        seen = set(hashes[a])
        for b in names[i + 1 :]:
            shared = sum(digest in seen for digest in hashes[b])
            if shared:
                found[a, b] = shared
    return found


def check_classes(splits: dict[str, Split], classes: int | None = None) -> None:
    """For classification: labels are whole, of more than one class, and within the ``classes`` outputs if known."""
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
    if n < 2:
        raise TaskError(f"{name} {'is empty' if n == 0 else 'has one example'}; it needs at least two")


def _items(dataset: Any, indices: list[int], name: str) -> list[tuple[tuple[Tensor, ...], Any]]:
    """Examples as (tuple of tensors, label): all at once where the dataset offers that, as torch's own loader does."""
    together = getattr(dataset, "__getitems__", None)
    if not callable(together):
        return [_item(dataset, index, name) for index in indices]
    examples = guarded(f"{name}.__getitems__", lambda: together(indices))
    if not isinstance(examples, (list, tuple)) or len(examples) != len(indices):
        got = f"{len(examples)} examples" if isinstance(examples, (list, tuple)) else type(examples).__name__
        raise TaskError(f"{name}.__getitems__ gave {got} for {len(indices)} indices; it must return a list, one each")
    return [_pair(example, index, name) for example, index in zip(examples, indices, strict=True)]


def _item(dataset: Any, index: int, name: str) -> tuple[tuple[Tensor, ...], Any]:
    """One example as (tuple of tensors, label)."""
    return _pair(guarded(f"{name}[{index}]", lambda: dataset[index]), index, name)


def _pair(example: Any, index: int, name: str) -> tuple[tuple[Tensor, ...], Any]:
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        raise TaskError(f"{name}[{index}] is {type(example).__name__}, not a pair (input, label)")
    inputs, label = example
    inputs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    try:
        return tuple(single_precision(torch.as_tensor(x)) for x in inputs), label
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = ", ".join(type(x).__name__ for x in inputs)
        raise TaskError(f"{name}[{index}]: the input ({kinds}) is no tensor: {one_line(error)}") from None


def _collate(items: list[tuple[tuple[Tensor, ...], Any]], name: str) -> tuple[tuple[Tensor, ...], Tensor]:
    """Examples as one batch: inputs and labels, samples first."""
    counts = {len(inputs) for inputs, _ in items}
    if len(counts) > 1:
        raise TaskError(f"{name}: examples have {sorted(counts)} inputs; all must have the same number")
    try:
        inputs = tuple(torch.stack([item[0][k] for item in items]) for k in range(len(items[0][0])))
        return inputs, torch.as_tensor(torch.utils.data.default_collate([item[1] for item in items]))
    except (RuntimeError, TypeError, ValueError) as error:
        raise TaskError(f"{name}: examples do not fit together in one batch: {one_line(error)}") from None


def _split(inputs: tuple[Tensor, ...], labels: Tensor, name: str) -> Split:
    inputs = tuple(single_precision(x.detach().cpu()).contiguous() for x in inputs)
    labels = labels.detach().cpu()
    for what, tensors in (("inputs", inputs), ("labels", (labels,))):
        if any(x.is_floating_point() and not torch.isfinite(x).all() for x in tensors):
            raise TaskError(f"{name}: {what} hold NaN or infinite values; clean the data first")
    digest = hashlib.sha256()
    for tensor in (*inputs, labels):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return Split(inputs, labels, digest.hexdigest()[:16])


def _example_hashes(split: Split) -> list[bytes]:
    flat = [x.numpy().reshape(len(split), -1) for x in split.inputs]
    return [hashlib.blake2b(b"".join(x[i].tobytes() for x in flat), digest_size=16).digest() for i in range(len(split))]

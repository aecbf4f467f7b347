"""Datasets as arrays: read once, checked, hashed, compared.

Small map-style datasets are held in memory as tensors, which makes an epoch of a small network several times
faster than asking for one example at a time. A train set that gives different examples each time (random
augmentation) or does not fit is asked anew every epoch instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.networks.fingerprints import tensor_hash
from compress.networks.plain_copies import full_precision, single_precision
from compress.networks.running import seeded
from compress.tasks import labels as of_labels
from compress.tasks.examples import Collate, Example, as_example, collated, raw_example, raw_examples, together
from compress.tasks.fingerprints import dataset_hash, source_hash
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
    labels: of_labels.Labels
    """A tensor, samples first, or one dict or list for each example."""
    digest: str
    names: tuple[str, ...] = ()
    """Of the inputs, where the examples give them by name."""

    def __len__(self) -> int:
        return len(self.inputs[0])

    def first(self, n: int) -> tuple[Tensor, ...]:
        """The inputs of the first ``n`` examples, one tensor for each input of the network, samples first."""
        return tuple(x[:n] for x in self.inputs)

    def arrays(self, names: list[str]) -> dict[str, np.ndarray]:
        """Inputs as arrays by the ONNX file's input names, which are in their order."""
        return {name: x.numpy() for name, x in zip(names, self.inputs, strict=True)}

    def in_single_precision(self) -> Split:
        """The same with inputs in double precision made float32; it stays the same data, by its digest."""
        return replace(self, inputs=tuple(map(single_precision, self.inputs)))

    def reordered(self, names: Sequence[str], name: str) -> Split:
        """The same with the inputs in the order of ``names``; raises TaskError where it has others."""
        example = Example(self.inputs, self.labels, self.names).ordered(tuple(names), name)
        return replace(self, inputs=example.inputs, names=example.names)


@dataclass(frozen=True)
class Stream:
    """A train set that is asked anew every epoch."""

    dataset: Any
    digest: str
    names: tuple[str, ...] = ()
    """Of the inputs, where the examples give them by name."""
    collate: Collate | None = None
    """The task's own, for examples that differ in length."""
    longest: tuple[Any, ...] = ()
    """Examples as they come that ``sample`` is put together with, so that it is as long as val is."""
    single: bool = False
    """Whether inputs in double precision are made float32, as a network takes them."""

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def labels(self) -> of_labels.Labels:
        """The labels of all examples, samples first; read once, when they are first asked for."""
        chunks = (range(i, min(i + 256, len(self))) for i in range(0, len(self), 256))
        labels = [label for chunk in chunks for label in self._labels(chunk)]
        return of_labels.together(labels)

    def _labels(self, indices: Sequence[int]) -> list[Any]:
        raw = raw_examples(self.dataset, indices, "train")
        if self.collate is not None:
            return list(collated(self.collate, raw, "train").label)
        return [as_example(one, f"train[{index}]").label for one, index in zip(raw, indices, strict=True)]

    def batch(self, indices: Sequence[int], *, as_long: bool = False) -> tuple[tuple[Tensor, ...], Any]:
        """Inputs and labels of the examples at ``indices``; ``as_long``: as those of val."""
        raw = raw_examples(self.dataset, indices, "train")
        if self.collate is None:
            rows = [as_example(one, f"train[{index}]") for one, index in zip(raw, indices, strict=True)]
            found = together(rows, "train")
        else:
            found = collated(self.collate, [*raw, *(self.longest if as_long else ())], "train")
        found = found.ordered(self.names, "train")
        inputs = tuple(single_precision(x) if self.single else x for x in found.inputs)
        return tuple(x[: len(raw)] for x in inputs), found.label[: len(raw)]


def read(dataset: Any, name: str) -> Split:
    """All of a dataset as tensors. Raises TaskError naming the split and what is wrong with it."""
    check_size(dataset, name)
    if type(dataset) is torch.utils.data.TensorDataset:  # a subclass may augment
        if len(dataset.tensors) < 2:
            raise TaskError(f"{name}: a TensorDataset of one tensor has no labels; give TensorDataset(inputs, labels)")
        return as_split(Example(tuple(dataset.tensors[:-1]), dataset.tensors[-1]), name)
    rows = [as_example(raw_example(dataset, i, name), f"{name}[{i}]") for i in range(len(dataset))]
    return as_split(together(rows, name), name)


def read_collated(datasets: Mapping[str, Any], collate: Collate) -> dict[str, Split]:
    """Datasets read whole and put together by ``collate`` in one batch, so that all are of one length."""
    raw = {name: [raw_example(data, i, name) for i in range(len(data))] for name, data in datasets.items()}
    whole = collated(collate, [one for rows in raw.values() for one in rows], " and ".join(raw))
    found, start = {}, 0
    for name, rows in raw.items():
        part = slice(start, start + len(rows))
        inputs = tuple(x[part] for x in whole.inputs)
        found[name] = as_split(Example(inputs, whole.label[part], whole.names), name)
        start += len(rows)
    return found


def read_train(dataset: Any) -> Split | Stream:
    """The train set in memory where it is always the same and fits, else as a stream."""
    check_size(dataset, "train")
    if type(dataset) is torch.utils.data.TensorDataset:  # a subclass may augment
        return read(dataset, "train")
    stream = as_stream(dataset)
    return read(dataset, "train") if stream is None else stream


def as_stream(dataset: Any, collate: Collate | None = None, longest: tuple[Any, ...] = ()) -> Stream | None:
    """A train set to be asked anew every epoch; None where it is always the same and fits in memory."""
    made_of = dataset_hash(dataset)  # before it is asked anything: that may fill caches of its own
    probes = sorted({i * (len(dataset) - 1) // (_PROBES - 1) for i in range(_PROBES)})
    first = [_item(dataset, i, collate) for i in probes]
    same = all(
        len(again) == len(before.inputs) and all(map(torch.equal, again, before.inputs))
        for i, before in zip(probes, first, strict=True)
        for again in (_item(dataset, i, collate).inputs for _ in range(_REPEATS - 1))
    )
    size = max(sum(x.nbytes for x in one.inputs) for one in first) * len(dataset)
    if same and size <= MOST_BYTES:
        return None
    # What gives other examples each time cannot be hashed whole: what it is made of tells two apart, and what it gives
    # from the same seed, where that repeats.
    shapes = [tuple(x.shape) for x in first[0].inputs]
    text = f"{len(dataset)} {shapes} {made_of} {_from_one_seed(dataset, probes, collate)}"
    if collate is not None:
        text += f" {source_hash(collate)}"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Stream(dataset, digest, first[0].names, collate, longest)


def _from_one_seed(dataset: Any, indices: list[int], collate: Collate | None) -> str:
    """Hash of a few train examples drawn from a fixed seed; empty where the dataset does not go by that."""
    draws = []
    for _ in range(2):
        with seeded(0):
            items = [_item(dataset, index, collate) for index in indices]
        draws.append(stable_hash([[tensor_hash({"": x}) for x in item.inputs] for item in items]))
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
            yield chunk, *train.batch(chunk.tolist())


def sample(train: Split | Stream, n: int, seed: int) -> tuple[tuple[Tensor, ...], Any]:
    """``n`` random train examples (at least two), drawn by ``seed``: inputs and labels, samples first.

    They are as long as those of val where a ``collate`` pads them.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(train, Stream) and train.collate is not None:
        return train.batch(torch.randperm(len(train), generator=generator)[: max(2, n)].tolist(), as_long=True)
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
        labels = split.labels
        if isinstance(labels, of_labels.RaggedLabels):
            raise TaskError(f"{name}: labels are {type(labels[0]).__name__}s; whole class numbers are needed")
        if labels.is_floating_point() or labels.dim() != 1:
            raise TaskError(
                f"{name}: labels are {labels.dtype} of shape {tuple(labels.shape)}; whole class numbers are needed"
            )
        low, high = int(labels.min()), int(labels.max())
        if low == high and name != "test":
            raise TaskError(f"{name}: all {len(split)} examples are of one class ({low}); at least two are needed")
        if classes is not None and (low < 0 or high >= classes):
            raise TaskError(f"{name}: labels run from {low} to {high}, but the model has {classes} outputs")


def check_size(dataset: Any, name: str) -> None:
    """Raise TaskError where a split is none, has no length, or holds fewer than two examples."""
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


def _item(dataset: Any, index: int, collate: Collate | None = None) -> Example:
    """One train example; with ``collate``, as a batch of one."""
    raw = raw_example(dataset, index, "train")
    return as_example(raw, f"train[{index}]") if collate is None else collated(collate, [raw], "train")


def as_split(batch: Example, name: str) -> Split:
    """All examples of a split, checked and hashed; raises TaskError for values that are not finite."""
    inputs = tuple(full_precision(x.detach().cpu()).contiguous() for x in batch.inputs)
    labels = of_labels.kept(batch.label)
    for what, tensors in (("inputs", inputs), ("labels", of_labels.tensors_of(labels))):
        if any(x.is_floating_point() and not torch.isfinite(x).all() for x in tensors):
            raise TaskError(f"{name}: {what} hold NaN or infinite values; clean the data first")
    digest = hashlib.sha256(repr(batch.names).encode() if batch.names else b"")
    for one in (*inputs, labels):
        of_labels.add_to(digest, one)
    return Split(inputs, labels, digest.hexdigest()[:16], batch.names)


def _example_hashes(split: Split) -> list[bytes]:
    flat = [x.numpy().reshape(len(split), -1) for x in split.inputs]
    return [hashlib.blake2b(b"".join(x[i].tobytes() for x in flat), digest_size=16).digest() for i in range(len(split))]

"""Datasets as users bring them: read, checked, hashed, compared."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from compress.networks.fingerprints import tensor_hash
from compress.tasks import datasets
from compress.tasks.datasets import Split, Stream, batches, check_classes, overlaps, read, read_train, sample
from targets.errors import TaskError

X = torch.arange(24.0).reshape(8, 3)
Y = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])


class Augmented(Dataset[Any]):
    """Adds noise from a generator of its own to one example in ``every``."""

    def __init__(self, n: int = 65, every: float = 1.0) -> None:
        self.n, self.every = n, every
        self.random = np.random.default_rng(0)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        noise = self.random.standard_normal(3) if self.random.random() < self.every else np.zeros(3)
        return torch.full((3,), float(i)) + torch.from_numpy(noise), i % 2


class Shifted(TensorDataset):
    """A TensorDataset that does something of its own."""

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return x + 1, y


def _pairs(n: int = 8) -> list[tuple[Any, Any]]:
    return [(X[i], int(Y[i])) for i in range(n)]


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(X, Y),
        _pairs(),
        [(x, y) for x, y in zip(X, Y, strict=True)],
        [(x.numpy(), np.int64(y)) for x, y in zip(X, Y, strict=True)],
        [((x,), y) for x, y in zip(X, Y, strict=True)],
        Subset(TensorDataset(X, Y), list(range(8))),
    ],
    ids=["tensors", "ints", "tensor labels", "numpy", "tuples of one", "subset"],
)
def test_every_form_of_a_dataset_reads_as_the_same(dataset: Any) -> None:
    split = read(dataset, "val")
    assert len(split.inputs) == 1
    assert torch.equal(split.inputs[0], X)
    assert torch.equal(split.labels, Y)
    assert split.digest == read(TensorDataset(X, Y), "val").digest


def test_labels_of_a_type_that_numpy_lacks() -> None:
    split = read(TensorDataset(X, X[:, 0].to(torch.bfloat16)), "val")
    assert split.labels.dtype == torch.float32
    hashes = {tensor_hash({"": (X + k).to(torch.bfloat16)}) for k in range(3)}
    assert len(hashes) == 3
    assert tensor_hash({"": torch.tensor(1.0, dtype=torch.bfloat16)})


def test_the_digest_is_of_the_content_and_does_not_drift() -> None:
    assert read(TensorDataset(X, Y), "val").digest == "224ecc1e13de28da"
    for other in (TensorDataset(X + 1, Y), TensorDataset(X, 1 - Y), TensorDataset(X.double(), Y)):
        assert read(other, "val").digest != "224ecc1e13de28da"


def test_tuples_are_several_inputs() -> None:
    split = read([((X[i], X[i, :2] * 2), i % 2) for i in range(8)], "val")
    assert [tuple(x.shape) for x in split.inputs] == [(8, 3), (8, 2)]
    arrays = split.arrays(["a", "b"])
    assert np.array_equal(arrays["b"], X[:, :2] * 2)
    assert [len(x) for x in split.first(3)] == [3, 3]
    assert [len(x) for x in read(TensorDataset(X, X, Y), "val").inputs] == [8, 8]


def test_a_subclass_of_tensor_dataset_is_asked_for_its_items() -> None:
    assert torch.equal(read(Shifted(X, Y), "val").inputs[0], X + 1)
    train = read_train(Shifted(X, Y))
    assert isinstance(train, Split)
    assert torch.equal(train.inputs[0], X + 1)


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        raise OSError("disk gone")


NAN = X.clone()
NAN[3, 1] = float("nan")


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (None, "val is None"),
        ([], "val is empty"),
        ([(X[0], 0)], "val has one example"),
        (TensorDataset(X), "no labels"),
        (iter(_pairs()), "has no length"),
        ([X[0], X[1]], r"val\[0\] is Tensor, not a pair"),
        ([(X[0], 1, 2), (X[1], 1, 2)], r"val\[0\] is tuple, not a pair"),
        ([{"x": X[0], "y": 1}] * 2, r"val\[0\] is a dict of 'x', 'y' without a label"),
        ([("some text", 1)] * 2, r"val\[0\]: the input \(str\) is no tensor"),
        ([(X[0], 1), (X[1, :2], 0)], "do not fit together"),
        ([(X[0], 1), ((X[1], X[1]), 0)], r"examples have \[1, 2\] inputs"),
        ([(X[0], 1), (X[1], [1, 2])], "do not fit together"),
        ([(X[0], None), (X[1], None)], "do not fit together"),
        ([(X[0], "cat"), (X[1], "dog")], "do not fit together"),
        (TensorDataset(NAN, Y), "inputs hold NaN"),
        ([(NAN[i], 0) for i in range(8)], "inputs hold NaN"),
        (TensorDataset(X, NAN[:, 1]), "labels hold NaN"),
        (TensorDataset(X / 0, Y), "NaN or infinite"),
        (Broken(), r"val\[0\] raised OSError: disk gone .*test_datasets.py:\d+"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    dataset: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the stack trace goes
    with pytest.raises(TaskError, match=said) as caught:
        read(dataset, "val")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.zeros(8, dtype=torch.long), "of one class"),
        (torch.tensor([0, 1, 2, 3, 4, 5, 6, 10]), "run from 0 to 10, but the model has 10 outputs"),
        (torch.tensor([0, 1, 2, 3, 4, 5, 6, -1]), "run from -1 to 6"),
        (Y.float(), "whole class numbers"),
        (Y[:, None], r"shape \(8, 1\)"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: Tensor, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        check_classes({"val": read(TensorDataset(X, labels), "val")}, 10)


def test_test_may_be_of_one_class_and_bool_labels_are_classes() -> None:
    check_classes({"test": read(TensorDataset(X, torch.zeros(8, dtype=torch.long)), "test")}, 2)
    check_classes({"val": read(TensorDataset(X, Y.bool()), "val")}, 2)


def test_overlaps_count_the_examples_that_are_shared() -> None:
    train = read(TensorDataset(X, Y), "train")
    val = read(TensorDataset(torch.cat([X[:2], X + 100, X[1:2]]), torch.zeros(11)), "val")
    test = read(TensorDataset(X + 200, Y), "test")
    assert overlaps({"train": train, "val": val, "test": test}) == {("train", "val"): 3}
    assert overlaps({"train": test, "val": val}) == {}


def test_examples_are_compared_in_all_their_inputs() -> None:
    a = read(TensorDataset(X, X, Y), "a")
    b = read(TensorDataset(X, X + 1, Y), "b")
    assert overlaps({"a": a, "b": b}) == {}


def test_a_train_set_that_changes_is_a_stream() -> None:
    assert isinstance(read_train(Augmented()), Stream)
    assert isinstance(read_train(Augmented(every=0.3)), Stream), "also where most examples are left as they are"
    assert isinstance(read_train(Augmented(every=0.0)), Split)
    assert read_train(Augmented()).digest == read_train(Augmented()).digest
    assert read_train(Augmented()).digest != read_train(Augmented(64)).digest


def test_a_train_set_is_kept_in_memory_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the inputs alone, as the largest of a few examples is."""
    same = [(torch.zeros(3), 0), (torch.zeros(3), 1)] * 10
    monkeypatch.setattr(datasets, "MOST_BYTES", 20 * 3 * 4)
    assert isinstance(read_train(same), Split)
    monkeypatch.setattr(datasets, "MOST_BYTES", 20 * 3 * 4 - 1)
    assert isinstance(read_train(same), Stream)


def test_a_stream_gives_batches() -> None:
    found = list(batches(read_train(Augmented()), 64, torch.Generator().manual_seed(0)))
    assert [len(indices) for indices, _, _ in found] == [64]
    indices, inputs, labels = found[0]
    assert torch.equal(labels, indices % 2)
    assert (inputs[0].mean(1) - indices).abs().max() < 5


class Together(Augmented):
    """Gives whole batches, and counts how often it is asked."""

    def __init__(self, short: bool = False) -> None:
        super().__init__()
        self.asked, self.short = 0, short

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        self.asked += 1
        return [self[i] for i in indices][int(self.short) :]


def test_a_stream_that_can_is_asked_for_whole_batches() -> None:
    dataset = Together()
    found = list(batches(read_train(dataset), 16, torch.Generator().manual_seed(0)))
    assert dataset.asked == len(found) == 4
    for indices, inputs, labels in found:
        assert torch.equal(labels, indices % 2)
        assert (inputs[0].mean(1) - indices).abs().max() < 5


def test_a_batch_that_lacks_examples_is_refused() -> None:
    with pytest.raises(TaskError, match=r"train.__getitems__ gave 15 examples for 16 indices"):
        list(batches(read_train(Together(short=True)), 16, torch.Generator().manual_seed(0)))


@given(st.integers(2, 200), st.integers(1, 70), st.integers(0, 5))
def test_an_epoch_has_every_example_once_but_a_last_batch_of_one(n: int, size: int, seed: int) -> None:
    train = Split((torch.arange(float(n))[:, None],), torch.arange(n), "")
    found = list(batches(train, size, torch.Generator().manual_seed(seed)))
    seen = torch.cat([indices for indices, _, _ in found])
    assert len(seen) == (n - 1 if size > 1 and n % size == 1 else n)
    assert len(set(seen.tolist())) == len(seen)
    assert all(len(i) > 1 or size == 1 for i, _, _ in found)
    for indices, inputs, labels in found:
        assert torch.equal(inputs[0][:, 0], indices.float())
        assert torch.equal(labels, indices)


def test_the_order_follows_the_seed() -> None:
    train = read(TensorDataset(X, Y), "train")

    def order(seed: int) -> list[int]:
        return [int(i) for b in batches(train, 3, torch.Generator().manual_seed(seed)) for i in b[0]]

    assert order(1) == order(1) != order(2)


def test_samples_are_seeded_and_at_most_all() -> None:
    train = read(TensorDataset(X, Y), "train")
    inputs, labels = sample(train, 5, 0)
    assert len(inputs[0]) == len(labels) == 5
    assert torch.equal(inputs[0], sample(train, 5, 0)[0][0])
    assert len(sample(train, 100, 0)[1]) == 8
    assert len(sample(read_train(Augmented()), 10, 0)[1]) == 10


@pytest.mark.parametrize("kind", [torch.uint16, torch.uint32, torch.uint64])
def test_labels_without_a_sign_are_whole_numbers(kind: torch.dtype) -> None:
    split = read(TensorDataset(X, Y.to(kind)), "val")
    assert split.labels.dtype == torch.int64
    check_classes({"val": split}, 10)
    assert torch.equal(split.labels, Y.long())

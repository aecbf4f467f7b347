"""Labels that are no one tensor: kept one by one, handed on as they are, told apart by what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

import compress
from compress.tasks.datasets import Stream, batches, read, sample
from compress.tasks.labels import RaggedLabels
from compress.tasks.splits import read_splits
from targets.errors import TaskError

IMAGES = torch.arange(8 * 3 * 4 * 4, dtype=torch.float32).reshape(8, 3, 4, 4)


def label(i: int) -> dict[str, Any]:
    """``i % 3`` boxes, as arrays and tensors mixed, with a name that is no number."""
    boxes = np.array([[0.0, 0.0, 1.0 + k, 2.0] for k in range(i % 3)], dtype=np.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.arange(i % 3), "name": f"image {i}"}


OWN = compress.Metric("own", lambda *_: 0.0)
EXAMPLES = [(IMAGES[i], label(i)) for i in range(8)]


def test_each_example_keeps_its_own() -> None:
    split = read(EXAMPLES, "val")
    assert isinstance(split.labels, RaggedLabels)
    assert [tuple(one["boxes"].shape) for one in split.labels] == [(i % 3, 4) for i in range(8)]
    assert isinstance(split.labels[1]["boxes"], Tensor)
    assert split.labels[5]["name"] == "image 5"
    objects = split.labels.numpy()
    assert objects.shape == (8,)
    assert isinstance(objects[2]["boxes"], np.ndarray)
    assert [one["name"] for one in objects[np.array([4, 4])]] == ["image 4", "image 4"]


def test_lists_and_tensors_of_uneven_shapes_are_kept_too() -> None:
    tensors = read([(IMAGES[i], torch.ones(i % 3, 5)) for i in range(8)], "val").labels
    assert [tuple(one.shape) for one in tensors] == [(i % 3, 5) for i in range(8)]
    lists = read([(IMAGES[i], [{"bbox": [0.0, 1.0, 2.0, 3.0]}] * (i % 3)) for i in range(8)], "val").labels
    assert lists[4] == [{"bbox": [0.0, 1.0, 2.0, 3.0]}]


def test_batches_hold_the_labels_of_their_inputs() -> None:
    train = read(EXAMPLES, "train")
    seen = 0
    for indices, inputs, labels in batches(train, 3, torch.Generator().manual_seed(0)):
        assert torch.equal(inputs[0], IMAGES[indices])
        assert isinstance(labels, tuple)
        assert [one["name"] for one in labels] == [f"image {i}" for i in indices.tolist()]
        seen += len(labels)
    assert seen == 8
    inputs, labels = sample(train, 4, 0)
    assert len(labels) == len(inputs[0]) == 4


class Augmented(Dataset[Any]):
    """Other images each time."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        return IMAGES[i] + torch.rand(()), label(i)


def test_a_train_set_that_changes_gives_them_batch_by_batch() -> None:
    data: dict[str, Any] = {"val": EXAMPLES, "metric": OWN}
    found = read_splits(compress.Task("x", torch.nn.Identity(), train=Augmented(), **data))
    assert isinstance(found.train, Stream)
    indices, _, labels = next(batches(found.train, 5, torch.Generator().manual_seed(0)))
    assert [one["name"] for one in labels] == [f"image {i}" for i in indices.tolist()]


def test_a_collate_may_give_them_one_by_one() -> None:
    def collate(examples: list[Any]) -> Any:
        return torch.stack([image for image, _ in examples]), tuple(found for _, found in examples)

    task = compress.Task("x", torch.nn.Identity(), train=EXAMPLES, val=EXAMPLES[:4], metric=OWN, collate=collate)
    splits = read_splits(task)
    assert splits.val.labels[2]["name"] == "image 2"
    assert read(EXAMPLES[:4], "val").digest == splits.val.digest
    wrong = compress.Task(
        "x", torch.nn.Identity(), train=EXAMPLES, val=EXAMPLES[:4], metric=OWN,
        collate=lambda examples: (collate(examples)[0], {"boxes": torch.zeros(len(examples), 4)}),
    )  # fmt: skip
    with pytest.raises(TaskError, match="not one dict or list for each example"):
        read_splits(wrong)


def test_other_labels_are_other_data() -> None:
    def digest(change: dict[str, Any]) -> str:
        return read([(image, {**found, **change}) for image, found in EXAMPLES], "val").digest

    assert digest({}) == digest({})
    assert len({digest({}), digest({"name": "x"}), digest({"boxes": torch.zeros(1, 4)}), digest({"more": 1})}) == 4


def test_what_they_hold_is_checked() -> None:
    bad = [(image, {**found, "boxes": torch.full((1, 4), torch.nan)}) for image, found in EXAMPLES]
    with pytest.raises(TaskError, match="val: labels hold NaN"):
        read(bad, "val")


def task(**changes: Any) -> compress.Task:
    return compress.Task(**{"name": "x", "model": torch.nn.Identity(), "train": EXAMPLES, "val": EXAMPLES, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "val: the labels are one dict for each example, and metric 'accuracy' takes one tensor"),
        (
            {"metric": "map50", "val": [(image, 1) for image in IMAGES], "decode": list},
            r"val: metric 'map50' takes a dict of 'boxes' and 'labels' for each example, not labels of shape \(8,\)",
        ),
        (
            {"metric": "map50", "val": [(IMAGES[0], {"boxes": [[0, 0, 1, 1]], "labels": [0, 1]})] * 8, "decode": list},
            r"val: the label of example 0: 'labels' are of shape \(2,\) for 1 boxes",
        ),
        (
            {"metric": "map50", "val": [(IMAGES[0], {"boxes": [[5, 5, 9, 9]], "labels": [0]})] * 8, "decode": list},
            r"val: the label of example 0: the box \(5, 5, 9, 9\) lies outside of its image",
        ),
    ],
)
def test_labels_that_the_metric_does_not_take_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said) as caught:
        read_splits(task(**changes))
    assert "\n" not in str(caught.value)

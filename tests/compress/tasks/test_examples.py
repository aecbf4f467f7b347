"""Examples as datasets give them: pairs and dicts, inputs by name, and what a collate makes of ragged ones."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.tasks.datasets import Split, Stream, batches, read, read_train, sample
from compress.tasks.splits import read_splits
from targets.errors import TaskError

WORDS = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 1], [2, 2]] * 4
LABELS = [0, 1, 0, 1, 1] * 4


def named(row: Sequence[int], width: int = 4) -> dict[str, Any]:
    ids = list(row) + [0] * (width - len(row))
    return {"input_ids": ids, "attention_mask": [int(i > 0) for i in ids]}


PAIRS = [(named(row), label) for row, label in zip(WORDS, LABELS, strict=True)]
RAGGED: list[dict[str, Any]] = [
    {"input_ids": torch.tensor(row), "labels": label} for row, label in zip(WORDS, LABELS, strict=True)
]


def pad(examples: list[dict[str, Any]]) -> Any:
    """As tokenizers' collators do: to the longest of the batch, in a mapping that is no dict."""
    width = max(len(one["input_ids"]) for one in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    for row, one in zip(ids, examples, strict=True):
        row[: len(one["input_ids"])] = one["input_ids"]
    return UserDict(
        input_ids=ids, attention_mask=(ids > 0).long(), labels=torch.tensor([one["labels"] for one in examples])
    )


class Augmented(list[Any]):
    """Gives other words every time."""

    def __getitem__(self, index: Any) -> Any:
        one = dict(super().__getitem__(index))
        return one | {"input_ids": one["input_ids"] + torch.randint(0, 50, ())}


class Renamed(list[Any]):
    """Gives other words every time, under another name."""

    def __getitem__(self, index: Any) -> Any:
        return {"ids": torch.randint(0, 50, (4,))}, super().__getitem__(index)[1]


def task(train: Any = RAGGED, val: Any = RAGGED[:6], test: Any = None, **more: Any) -> compress.Task:
    return compress.Task("words", nn.Linear(1, 1), train, val, test, **more)


@pytest.mark.parametrize("key", ["labels", "label", "label_ids"])
def test_a_dict_with_its_label_is_as_good_as_a_pair(key: str) -> None:
    whole = read([{**inputs, key: label} for inputs, label in PAIRS], "val")
    assert whole.names == ("input_ids", "attention_mask")
    assert whole.digest == read(PAIRS, "val").digest
    assert whole.inputs[0].shape == (20, 4)
    assert whole.labels.tolist() == LABELS


def test_names_are_part_of_what_data_is() -> None:
    other = [({"ids": x["input_ids"], "attention_mask": x["attention_mask"]}, y) for x, y in PAIRS]
    plain = [((x["input_ids"], x["attention_mask"]), y) for x, y in PAIRS]
    assert len({read(data, "val").digest for data in (PAIRS, other, plain)}) == 3


def test_inputs_are_told_by_their_names_not_by_their_order() -> None:
    turned = [(dict(reversed(list(x.items()))), y) for x, y in PAIRS]
    mixed = [turned[k] if k % 2 else PAIRS[k] for k in range(len(PAIRS))]
    assert read(mixed, "val").digest == read(PAIRS, "val").digest
    splits = read_splits(task(turned, PAIRS[:6], turned[:4]))
    assert splits.train is not None
    assert splits.test is not None
    assert splits.train.names == splits.test.names == ("input_ids", "attention_mask")
    assert int(splits.train.inputs[1].max()) == 1


def test_ragged_examples_are_padded_alike_in_all_splits() -> None:
    splits = read_splits(task(RAGGED, RAGGED[:3], RAGGED[4:6], collate=pad))
    train = splits.train
    assert isinstance(train, Split)
    assert [x.inputs[0].shape for x in (train, splits.val)] == [(20, 4), (3, 4)], "the longest is in train"
    assert splits.val.inputs[0].tolist() == [[1, 2, 3, 0], [4, 5, 0, 0], [6, 0, 0, 0]]
    assert splits.val.labels.tolist() == LABELS[:3]
    assert splits.val.names == ("input_ids", "attention_mask")


def test_a_stream_is_padded_batch_by_batch_and_samples_of_it_as_val_is() -> None:
    splits = read_splits(task(Augmented(RAGGED[:3] * 4), RAGGED, collate=pad))
    train = splits.train
    assert isinstance(train, Stream)
    _, inputs, labels = next(batches(train, 4, torch.Generator().manual_seed(0)))
    assert inputs[0].shape[0] == len(labels) == 4
    assert inputs[0].shape[1] <= 3
    inputs, labels = sample(train, 5, 0)
    assert (inputs[0].shape, labels.shape) == ((5, 4), (5,))
    assert train.labels.tolist() == LABELS[:3] * 4


def test_another_collate_is_another_train_set() -> None:
    def pad_more(examples: list[dict[str, Any]]) -> Any:
        return {name: torch.cat([x, x * 0], -1) if x.ndim > 1 else x for name, x in pad(examples).items()}

    found = [read_splits(task(Augmented(RAGGED), collate=one)).train for one in (pad, pad, pad_more)]
    digests = [one.digest for one in found if one is not None]
    assert digests[0] == digests[1] != digests[2]


def test_a_collate_may_return_a_pair_as_its_examples_are() -> None:
    def stacked(examples: list[tuple[Any, int]]) -> Any:
        inputs = {name: torch.tensor([x[name] for x, _ in examples]) for name in examples[0][0]}
        return inputs, torch.tensor([y for _, y in examples])

    splits = read_splits(task(PAIRS, PAIRS[:6], collate=stacked))
    assert splits.val.digest == read(PAIRS[:6], "val").digest


def refused(said: str, **given: Any) -> None:
    with pytest.raises(TaskError, match=said) as caught:
        read_splits(task(**given))
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    refused("collate= that pads", train=RAGGED)
    refused(r"val\[0\] is a dict of 'input_ids' without a label", val=[{"input_ids": [1]}] * 4)
    texts = [({"input_ids": [1], "text": "words"}, y) for _, y in PAIRS]
    refused("the input 'text' .str. is no tensor.*leave out", val=texts)
    refused("give the same", val=PAIRS, train=[({"input_ids": x["input_ids"]}, y) for x, y in PAIRS])
    refused(
        r"train has the inputs \['ids'\], val has \['attention_mask', 'input_ids'\]", train=Renamed(PAIRS), val=PAIRS
    )
    refused("the labels are no tensor", collate=lambda examples: pad(examples) | {"labels": ["a"] * len(examples)})
    refused("must return one of each", collate=lambda examples: pad(examples[:1]))
    refused("collate raised ZeroDivisionError", collate=lambda _: 1 / 0)
    with pytest.raises(TaskError, match="collate is int"):
        task(collate=3)


def test_a_file_gets_its_inputs_by_its_own_names(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.head((self.embed(input_ids) * attention_mask.unsqueeze(-1)).sum(1))

    few = {name: torch.tensor([x[name] for x, _ in PAIRS[:3]]) for name in ("input_ids", "attention_mask")}
    compress.export(Both(), few, tmp_path / "m.onnx")
    turned = [(dict(reversed(list(x.items()))), y) for x, y in PAIRS]
    splits = read_splits(compress.Task("file", tmp_path / "m.onnx", None, turned))
    assert splits.val.names == ("input_ids", "attention_mask")
    assert np.array_equal(splits.val.inputs[0][0].numpy(), PAIRS[0][0]["input_ids"])


def test_a_train_set_of_dicts_that_stays_the_same_is_kept() -> None:
    assert isinstance(read_train(PAIRS), Split)

"""What a task cannot do without, and what does not fit its data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import compress
from compress.tasks.splits import read_splits
from targets.errors import TaskError

ROWS = TensorDataset(torch.randn(12, 3), torch.arange(12) % 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": None}, "task 'rows': model is None; give an nn.Module, a function or an .onnx path"),
        ({"val": None}, "task 'rows': val is None; the search needs validation data to steer by"),
        ({"train": None}, "task 'rows': train is None; fine-tuning needs training data"),
        (
            {"slices": {"sex": ["f"] * 11}},
            r"slices\['sex'\] has 11 labels, test has 12 examples; one for each is needed",
        ),
    ],
)
def test_a_task_without_what_it_needs_is_refused(given: dict[str, Any], said: str) -> None:
    whole: dict[str, Any] = {"model": nn.Linear(3, 2), "train": ROWS, "val": ROWS, "test": ROWS}
    assert read_splits(compress.Task("rows", **whole)).test is not None
    with pytest.raises(TaskError, match=said):
        read_splits(compress.Task("rows", **{**whole, **given}))

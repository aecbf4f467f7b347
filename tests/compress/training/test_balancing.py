"""Rare classes count as much as frequent ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from compress.tasks.datasets import batches, read, read_train
from compress.training.balancing import class_weights, example_weights
from compress.training.objectives import Objective
from targets.errors import TrainingError
from training import CROSS, tune


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_weights_are_scikit_learns_balanced_ones(labels: list[int]) -> None:
    found, there = class_weights(torch.tensor(labels)), sorted(set(labels))
    expected = compute_class_weight("balanced", classes=np.array(there), y=np.array(labels))
    assert found[there].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert all(found[c] == 1.0 for c in range(len(found)) if c not in there)
    assert float(example_weights(torch.tensor(labels)).mean()) == pytest.approx(1.0, rel=1e-4)


def _uneven() -> Any:
    """90 of class 0, 10 of class 1."""
    torch.manual_seed(0)
    labels = torch.tensor([0] * 90 + [1] * 10)
    return read(TensorDataset(torch.randn(100, 4) + labels[:, None], labels), "train")


def test_the_loss_is_weighted() -> None:
    module, data = nn.Linear(4, 3), _uneven()
    with torch.no_grad():
        expected = F.cross_entropy(
            module(data.inputs[0]), data.labels, weight=torch.tensor([100 / 180, 100 / 20, 1.0]), label_smoothing=0.1
        )
    history = tune(module, data, epochs=1, batch_size=100, balance="loss", label_smoothing=0.1)
    assert history.loss[0] == pytest.approx(float(expected), rel=1e-5)


def test_the_sampler_draws_classes_evenly() -> None:
    data = _uneven()
    seen: list[torch.Tensor] = []

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(labels)
        return F.cross_entropy(outputs, labels)

    history = tune(nn.Linear(4, 2), data, objective=Objective(loss, "own"), epochs=20, batch_size=25, balance="sampler")
    drawn = torch.cat(seen)
    assert len(drawn) == 20 * 100, "epochs are as long as before"
    assert float((drawn == 1).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert len(history.loss) == 20


def test_inputs_and_labels_drawn_belong_together() -> None:
    data = _uneven()
    weights = example_weights(data.labels)
    for indices, (x,), y in batches(data, 10, torch.Generator().manual_seed(0), weights):
        assert torch.equal(x, data.inputs[0][indices])
        assert torch.equal(y, data.labels[indices])


class Shifting(Dataset[Any]):
    """Never twice the same."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        return torch.randn(4), int(i >= 36)


@pytest.mark.parametrize("balance", ["loss", "sampler"])
def test_labels_of_a_stream_are_read_once(balance: str) -> None:
    dataset = Shifting()
    data = read_train(dataset)
    for _ in range(2):
        dataset.reads = 0
        tune(nn.Linear(4, 2), data, epochs=1, balance=balance)
    assert dataset.reads == 40


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.zeros(8), r"labels are torch.float32 of shape \(8,\)"),
        (torch.zeros(8, 3, dtype=torch.int64), r"labels are torch.int64 of shape \(8, 3\)"),
        (torch.full((8,), -1), r"labels are torch.int64 of shape \(8,\)"),
    ],
)
@pytest.mark.parametrize("balance", ["loss", "sampler"])
def test_other_labels_are_refused(labels: torch.Tensor, said: str, balance: str) -> None:
    data = read(TensorDataset(torch.randn(8, 4), labels), "train")
    with pytest.raises(TrainingError, match=rf"balance: {said}.*; set balance='none'"):
        tune(nn.Linear(4, 3), data, objective=CROSS, epochs=1, balance=balance)


def test_a_loss_of_the_tasks_own_cannot_be_weighted() -> None:
    with pytest.raises(TrainingError, match="balance='loss' cannot weight a loss of the task's own; use balance="):
        tune(nn.Linear(4, 2), _uneven(), objective=Objective(F.cross_entropy, "own"), epochs=1, balance="loss")

"""The loss that is minimised, for every kind of labels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from compress.tasks.datasets import Split, read
from compress.training.objectives import Objective, make_objective
from targets.errors import TaskError
from training import CROSS, linear, tune


class OneNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("kind", ["mse", "l1", "own"])
@pytest.mark.parametrize("column", [True, False])
def test_regression(kind: str, column: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 3.0]) + 1
    data = read(TensorDataset(x, y[:, None].double() if column else y), "train")
    module = OneNumber()
    history = tune(module, data, objective=Objective(None, kind), epochs=40, lr=0.1)
    assert history.loss[-1] < 0.05 * history.loss[0]
    assert torch.allclose(module(x)[:, 0], y, atol=0.3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_class_numbers_of_any_whole_type(few: Split, dtype: torch.dtype) -> None:
    history = tune(linear(), Split(few.inputs, few.labels.to(dtype), ""), epochs=3)
    assert history.loss[-1] < history.loss[0]


def test_an_unknown_loss_is_no_number_rather_than_a_wrong_one() -> None:
    own = Objective(None, "own")
    assert math.isnan(own.value(torch.zeros(4, 3), torch.zeros(4, 7), 0.0))
    outputs, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert own.value(outputs, labels, 0.0) == F.cross_entropy(outputs, labels)
    assert own.value(torch.ones(4, 1), torch.tensor([1, 1, 0, 0]), 0.0) == 0.5


def test_objectives() -> None:
    assert make_objective(None, "mse", "mse") == Objective(None, "mse")
    loss = F.cross_entropy
    assert make_objective(loss, "mse", "mse") == Objective(loss, "own")
    with pytest.raises(TaskError, match="metric 'mine' has no usual loss to train with; give the task a loss="):
        make_objective(None, None, "mine")


def test_labels_of_which_several_hold() -> None:
    outputs, labels = torch.randn(6, 4), torch.randint(0, 2, (6, 4))
    several = Objective(None, "bce")
    expected = F.binary_cross_entropy_with_logits(outputs, labels.float())
    assert torch.allclose(several.value(outputs, labels, 0.0), expected)
    smooth = F.binary_cross_entropy_with_logits(outputs, labels * 0.9 + 0.05)
    assert torch.allclose(several.value(outputs, labels, 0.1), smooth)
    assert torch.allclose(
        several.value(outputs[:, :1], labels[:, 0], 0.0), several.value(outputs[:, :1], labels[:, :1], 0.0)
    )


def test_the_divergence_of_yes_and_no_is_zero_at_the_teacher_only() -> None:
    several, teacher = Objective(None, "bce"), torch.randn(6, 4)
    student = teacher.clone().requires_grad_()
    found = several.divergence((student,), (teacher,), None, 3.0)
    found.backward()  # type: ignore[no-untyped-call]
    assert float(found) == pytest.approx(0.0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6
    p, q = torch.sigmoid(teacher / 2.0), torch.sigmoid((teacher + 1.0) / 2.0)
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean() * 4.0
    assert float(several.divergence((teacher + 1.0,), (teacher,), None, 2.0)) == pytest.approx(float(kl), rel=1e-4)


def test_classes_of_tokens_may_stand_last() -> None:
    outputs, labels = torch.randn(3, 7, 5), torch.randint(0, 5, (3, 7))
    labels[0, 3:] = -100
    expected = F.cross_entropy(outputs.reshape(21, 5), labels.reshape(21))
    assert torch.allclose(CROSS.value(outputs, labels, 0.0), expected)
    assert torch.allclose(CROSS.value(outputs.transpose(1, 2), labels, 0.0), expected)
    teacher = torch.randn(3, 7, 5)
    last = CROSS.divergence((outputs,), (teacher,), labels, 2.0)
    first = CROSS.divergence((outputs.transpose(1, 2),), (teacher.transpose(1, 2),), labels, 2.0)
    assert torch.allclose(last, first)


def test_where_both_axes_fit_the_classes_are_on_the_first() -> None:
    outputs, labels = torch.randn(3, 4, 4), torch.randint(0, 4, (3, 4))
    assert torch.equal(CROSS.value(outputs, labels, 0.0), F.cross_entropy(outputs, labels))


@pytest.mark.parametrize("kind", ["mse", "l1", "bce"])
def test_labels_that_do_not_fit_the_outputs_are_said(kind: str) -> None:
    with pytest.raises(TaskError, match=r"labels of shape \(4, 12\) do not fit outputs of shape \(4, 3\)"):
        Objective(None, kind).value(torch.zeros(4, 3), torch.zeros(4, 12), 0.0)

"""The teacher: its outputs pull the student, and so does where it looks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.tasks.datasets import Split
from compress.training.distilling import Features, Layer, attention_map, make_teacher, matching, predict
from compress.training.objectives import Objective
from training import CPU, accuracy, linear, same, tune


@pytest.mark.parametrize("kind", ["cross_entropy", "mse", "own"])
def test_distillation_alone_pulls_towards_the_teacher(few: Split, cnn: nn.Module, kind: str) -> None:
    """With weight 1 the labels do not count: they are all wrong here."""
    wrong = Split(few.inputs, (few.labels + 1) % 10, "")
    student = linear()
    x = few.inputs[0]
    teacher = make_teacher(cnn, few, CPU)

    def distance(module: nn.Module) -> float:
        with torch.no_grad():
            a, b = module(x), cnn(x)
            kl = F.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean")
            return float(kl if kind == "cross_entropy" else F.mse_loss(a, b))

    before = distance(student)
    objective = Objective((lambda y, t: F.cross_entropy(y, t)) if kind == "own" else None, kind)
    settings = {"epochs": 40, "batch_size": 32, "lr": 1e-2, "distill_weight": 1.0, "temperature": 2.0}
    tune(student, wrong, objective=objective, teacher=teacher, **settings)
    assert distance(student) < 0.2 * before
    assert accuracy(student, (x, few.labels)) > 0.8


def test_the_loss_is_the_formula(few: Split, cnn: nn.Module) -> None:
    """(1 - w) * cross-entropy + w * T^2 * KL(teacher / T, student / T), on one batch of all, before any step."""
    student = linear()
    x, y = few.inputs[0], few.labels
    with torch.no_grad():
        p, q = F.softmax(cnn(x) / 3.0, 1), F.softmax(student(x) / 3.0, 1)
        expected = 0.25 * F.cross_entropy(student(x), y) + 0.75 * 9.0 * (p * (p / q).log()).sum(1).mean()
    teacher = make_teacher(cnn, few, CPU)
    history = tune(student, few, epochs=1, batch_size=128, teacher=teacher, distill_weight=0.75, temperature=3.0)
    assert history.loss[0] == pytest.approx(float(expected), rel=1e-4)


def test_the_teacher_is_not_asked_where_its_share_is_nothing(few: Split, cnn: nn.Module) -> None:
    a, b = linear(), linear()
    tune(a, few, epochs=1, teacher=make_teacher(cnn, few, CPU), distill_weight=0.0)
    tune(b, few, epochs=1)
    assert same(a, b)
    tune(a, few, epochs=1, distill_weight=1.0)  # without a teacher the labels are all there is
    assert not same(a, b)


def test_predictions_are_of_eval_mode_for_all_inputs(cnn: nn.Module, digits: Any) -> None:
    cnn.train()
    before = copy.deepcopy(cnn.state_dict())
    (found,) = predict(cnn, (digits.val[0],), CPU, batch=77)
    assert cnn.training
    assert all(torch.equal(x, before[name]) for name, x in cnn.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(found, cnn.eval()(digits.val[0]), atol=1e-5)


class Stages(nn.Module):
    """Two stages of two blocks, one with a shortcut, one module called twice; a pooled linear head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.twice = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x)) + x
        x = self.twice(torch.relu(self.twice(self.down(x))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class Recurrent(nn.Module):
    """Frames to a recurrent layer, whose output is a tuple; two outputs."""

    def __init__(self, width: int, first: bool = True) -> None:
        super().__init__()
        self.first = first
        self.rnn = nn.GRU(5, width, batch_first=first)
        self.head, self.other = nn.Linear(width, 3), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.rnn(x if self.first else x.transpose(0, 1))[0]
        last = x[:, -1] if self.first else x[-1]
        return self.head(last), self.other(last)


def _found(student: nn.Module, teacher: nn.Module, *shape: int) -> list[tuple[str, int, int]]:
    return [(x.name, x.call, x.axis) for x in matching(student, teacher, (torch.randn(3, *shape),))]


def test_the_last_layer_of_each_stage_is_compared() -> None:
    assert _found(Stages(4), Stages(8), 1, 8, 8) == [("block", 0, 1), ("twice", 1, 1)]


def test_layers_that_only_one_network_has_are_left_out() -> None:
    student = Stages(4)
    student.block[2] = nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=1))
    student.down.stride = (4, 4)
    found = _found(student, Stages(8), 1, 8, 8)
    assert found == [("block", 0, 1)], "its second stage has other positions"


def test_sequences_are_compared_by_time_step() -> None:
    assert _found(Recurrent(4), Recurrent(8), 7, 5) == [("rnn", 0, 2)]
    # Samples on the second axis are not taken for time steps, not even where there are as many.
    assert _found(Recurrent(4, False), Recurrent(8, False), 7, 5) == []
    assert _found(Recurrent(4, False), Recurrent(8, False), 3, 5) == []


def test_a_transformer_is_compared_by_token() -> None:
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    (found,) = _found(copy.deepcopy(layer), layer, 6, 8)
    assert found[2] == 2


def test_without_positions_there_is_nothing_to_compare() -> None:
    assert _found(linear(), linear(), 1, 8, 8) == []


def test_an_attention_map_is_the_mean_square_over_channels_at_unit_length() -> None:
    x = torch.randn(2, 5, 3, 4)
    expected = (x**2).mean(1).reshape(2, 12)
    found = attention_map(x, 1)
    assert torch.allclose(found, expected / expected.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.allclose(attention_map(x[:, [3, 1, 0, 2, 4]] * -2.0, 1), found, atol=1e-6)


def test_the_distance_is_between_the_maps_of_the_same_batch() -> None:
    torch.manual_seed(0)
    student, teacher, x = Stages(4).eval(), Stages(8).eval(), torch.randn(5, 1, 8, 8)
    features = Features(student, teacher, (Layer("twice", 1, 1),))
    with features.student.recording(), features.teacher.recording():
        student(x), teacher(x)
    maps = [attention_map(n.twice(torch.relu(n.twice(n.down(n.block(n.stem(x)) + x)))), 1) for n in (student, teacher)]
    expected = (maps[0] - maps[1]).square().sum(1).mean()
    assert features.distance().item() == pytest.approx(expected.item(), rel=1e-4)
    features.close()
    assert not any(m._forward_hooks for n in (student, teacher) for m in n.modules())


def test_feature_weight_pulls_the_maps_together(few: Split) -> None:
    """With no weight on labels or outputs, the maps are all there is to learn."""
    torch.manual_seed(0)
    student, whole = Stages(4), Stages(8)
    teacher = make_teacher(whole, few, CPU)
    before, weight = copy.deepcopy(whole.state_dict()), student.head.weight.detach().clone()
    zero = Objective(lambda outputs, _: outputs.sum() * 0.0, "own")
    history = tune(student, few, objective=zero, teacher=teacher, feature_weight=1.0, epochs=12, batch_size=16, lr=1e-2)
    assert history.features == ["block", "twice"]
    assert history.loss[-1] < 0.7 * history.loss[0]
    assert torch.equal(student.head.weight, weight)
    assert all(torch.equal(x, before[name]) for name, x in whole.state_dict().items())
    assert not any(m._forward_hooks for n in (student, whole) for m in n.modules())


def test_a_network_without_maps_trains_as_before_and_says_so(
    few: Split, cnn: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = linear(), linear()
    teacher = make_teacher(cnn, few, CPU)
    history = tune(a, few, epochs=1, teacher=teacher, feature_weight=1.0)
    tune(b, few, epochs=1, teacher=teacher)
    assert history.features == []
    assert same(a, b)
    assert "feature_weight: no layer with positions" in capsys.readouterr().err

"""L1, weight decay, dropout and label smoothing each do what they say, and are gone afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.tasks.datasets import Split
from compress.training.objectives import Objective
from training import CROSS, linear, same, tune, weights


def test_l1_makes_weights_smaller(few: Split) -> None:
    free, bound = linear(), linear()
    tune(free, few, epochs=5, lr=1e-2)
    tune(bound, few, epochs=5, lr=1e-2, l1=0.1)
    assert weights(bound).abs().mean() < 0.8 * weights(free).abs().mean()


def test_weight_decay_shrinks_norms_but_not_biases(few: Split) -> None:
    free, bound = linear(), linear()
    for module in (free, bound):
        nn.init.constant_(module[3].bias, 1.0)
        tune(module, few, epochs=3, weight_decay=0.0 if module is free else 10.0, lr=1e-2)
    assert weights(bound).norm() < 0.9 * weights(free).norm()
    assert bound[3].bias.mean() > 0.9, "ten per cent a step would have left 0.5"


class Recorded(nn.Module):
    """Hands on what it gets, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, x.detach().clone()))
        return x


def test_the_rate_of_own_dropout_layers_is_the_configs(few: Split) -> None:
    record = Recorded()
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Dropout(0.1), record, nn.Linear(64, 10))
    nn.init.constant_(module[1].bias, 5.0)
    hooks = len(module[4]._forward_pre_hooks)
    tune(module, few, epochs=1, dropout=0.6)
    zeros = torch.cat([(x == 0).float().flatten() for training, x in record.seen if training])
    assert float(zeros.mean()) == pytest.approx(0.6, abs=0.05)
    assert module[2].p == 0.1
    record.seen.clear()
    tune(module, few, epochs=1, dropout=0.0)
    assert all((x != 0).any() and (x == 0).float().mean() < 0.01 for _, x in record.seen)
    assert module[2].p == 0.1
    assert len(module[4]._forward_pre_hooks) == hooks, "its own layers are enough"


class Seen(nn.Linear):
    """A linear layer that keeps what it gets."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, x.detach().clone()))
        return super().forward(x)


def test_without_dropout_layers_it_acts_before_the_last_linear_layer(few: Split) -> None:
    first, last = Seen(64, 64), Seen(64, 10)
    module = nn.Sequential(nn.Flatten(), first, last)
    nn.init.constant_(first.bias, 5.0)
    tune(module, few, epochs=1, dropout=0.4)
    share = [float((x == 0).float().mean()) for training, x in last.seen if training]
    assert sum(share) / len(share) == pytest.approx(0.4, abs=0.05)
    assert sum(float((x == 0).sum()) for _, x in first.seen) == float((few.inputs[0] == 0).sum()), "only there"
    assert not last._forward_pre_hooks
    last.seen.clear()
    module.train()(few.inputs[0])
    assert (last.seen[0][1] != 0).float().mean() > 0.99, "gone afterwards"


def test_dropout_is_put_back_where_training_fails(few: Split) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))
    bare = linear()
    for network in (module, bare):
        with pytest.raises(ZeroDivisionError):
            tune(network, few, objective=Objective(lambda *_: 1 / 0, "own"), epochs=1, dropout=0.5)  # type: ignore[arg-type, return-value]
        assert not network.training
    assert module[1].p == 0.2
    assert not bare[3]._forward_pre_hooks


def test_label_smoothing_changes_the_loss(few: Split) -> None:
    outputs, labels = torch.randn(9, 10), torch.arange(9)
    for smoothing in (0.0, 0.2):
        expected = F.cross_entropy(outputs, labels, label_smoothing=smoothing)
        assert CROSS.value(outputs, labels, smoothing) == expected
    sharp, smooth = linear(), linear()
    a = tune(sharp, few, epochs=1)
    b = tune(smooth, few, epochs=1, label_smoothing=0.3)
    assert a.loss != b.loss
    assert not same(sharp, smooth)

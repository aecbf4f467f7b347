"""The average of the weights is what it says, is shown for a while, and is what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compress.tasks.datasets import Split
from compress.training.averaging import Average
from training import linear, same, tune


def test_the_average_is_the_recurrence() -> None:
    module = nn.Linear(1, 1, bias=False)
    average, expected = Average(module, 0.5), module.weight.item()
    for step in range(1, 12):
        with torch.no_grad():
            module.weight.fill_(float(step**2))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step**2
    average.take()
    assert module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_a_mask_of_infinities_stays_as_it_is() -> None:
    module = nn.Linear(1, 1)
    module.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    average = Average(module, 0.5)
    average.update()
    average.take()
    assert module.state_dict()["mask"].tolist() == [0.0, float("-inf")]


def test_statistics_are_averaged_and_counters_copied() -> None:
    module = nn.BatchNorm1d(2, momentum=1.0)
    average = Average(module, 0.9)
    module.train()(torch.tensor([[0.0, 2.0], [4.0, 2.0]]))
    average.update()
    average.take()
    decay = 2 / 11
    assert module.running_mean is not None
    assert module.running_mean.tolist() == pytest.approx([(1 - decay) * 2.0, (1 - decay) * 2.0])
    assert int(module.num_batches_tracked) == 1


def test_the_average_is_shown_for_a_while_only() -> None:
    module: Any = linear()
    average = Average(module, 0.9)
    own = module[1].weight.detach().clone()
    with torch.no_grad():
        module[1].weight += 1.0
    with average.shown():
        assert torch.equal(module[1].weight, own)
    assert torch.equal(module[1].weight, own + 1.0)


def test_tied_weights_stay_tied() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    average = Average(module, 0.9)
    with torch.no_grad():
        module[0].weight.fill_(1.0)
    average.update()
    average.take()
    assert module[1].weight is module[0].weight


def test_val_sees_the_average_and_it_is_what_is_kept(few: Split) -> None:
    seen: list[torch.Tensor] = []

    def quality(network: nn.Module) -> float:
        seen.append(network.state_dict()["1.weight"].clone())
        return float(len(seen))

    module: Any = linear()
    history = tune(module, few, epochs=3, lr=1e-2, schedule="constant", ema=0.9, patience=2, val_quality=quality)
    assert history.kept_epoch == 3
    assert torch.equal(module[1].weight, seen[-1])
    last, averaged = linear(), linear()
    tune(last, few, epochs=3, lr=1e-2, schedule="constant")
    tune(averaged, few, epochs=3, lr=1e-2, schedule="constant", ema=0.9)
    assert same(averaged, module)
    assert not same(averaged, last)

"""Mixup: what is mixed, whose labels count how much, and what cannot be mixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.tasks.datasets import Split
from compress.training.distilling import make_teacher
from compress.training.mixing import Mixer
from compress.training.objectives import Objective
from targets.errors import TrainingError
from training import CPU, linear, same, tune


def test_every_input_is_mixed_with_the_same_partner() -> None:
    first, second = torch.randn(6, 3), torch.randn(6, 2, 2)
    mixed = Mixer(0.4, seed=3).mix((first, second))
    assert sorted(mixed.partner.tolist()) == list(range(6))
    assert 0.0 <= mixed.share <= 1.0
    for before, after in zip((first, second), mixed.inputs, strict=True):
        assert torch.allclose(after, mixed.share * before + (1 - mixed.share) * before[mixed.partner], atol=1e-6)


def test_shares_are_of_the_beta_distribution() -> None:
    mixer = Mixer(2.0, seed=0)
    shares = np.array([mixer.mix((torch.zeros(2, 1),)).share for _ in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / 20, abs=0.005), "of Beta(a, a): 1 / (4 * (2 a + 1))"


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_cannot_be_mixed(dtype: torch.dtype) -> None:
    tokens = Split((torch.zeros(8, 4), torch.zeros(8, 4, dtype=dtype)), torch.arange(8) % 2, "")
    with pytest.raises(TrainingError, match=r"mixup: input 1 holds \w+, which cannot be mixed; set mixup=0"):
        tune(nn.Linear(4, 2), tokens, epochs=1, mixup=0.2)


def test_the_loss_is_that_of_both_labels(few: Split) -> None:
    """One batch of all, before any step; the loss is one of the user's own, which knows no soft labels."""
    module: Any = linear()
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    x, y = few.inputs[0][order], few.labels[order]
    mixed = Mixer(0.3, seed=0).mix((x,))
    with torch.no_grad():
        out = module(mixed.inputs[0])
        sides = [float(F.multi_margin_loss(out, side)) for side in (y, y[mixed.partner])]
    history = tune(module, few, objective=Objective(F.multi_margin_loss, "own"), epochs=1, batch_size=128, mixup=0.3)
    assert history.loss[0] == pytest.approx(mixed.share * sides[0] + (1 - mixed.share) * sides[1], rel=1e-5)


class Asked(nn.Module):
    """A teacher that keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(64, 10), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        y: Tensor = self.layer(x.flatten(1))
        return y


def test_the_teacher_says_what_it_makes_of_mixed_examples(few: Split) -> None:
    module: Any = linear()
    teacher = make_teacher(Asked(), few, CPU)
    asked: Any = teacher.module
    teacher.prepare()
    asked.seen.clear()
    tune(module, few, epochs=1, batch_size=64, teacher=teacher, distill_weight=0.5)
    assert not asked.seen, "in memory, unmixed: looked up"
    tune(module, few, epochs=1, batch_size=64, teacher=teacher, distill_weight=0.5, mixup=1.0)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    mixer = Mixer(1.0, seed=0)
    expected = [mixer.mix((few.inputs[0][chunk],)).inputs[0] for chunk in order.split(64)]
    assert all(torch.equal(a, b) for a, b in zip(asked.seen, expected, strict=True))


def test_the_seed_decides(few: Split) -> None:
    a, b, c = linear(), linear(), linear()
    tune(a, few, 1, epochs=1, mixup=0.2)
    tune(b, few, 1, epochs=1, mixup=0.2)
    tune(c, few, 1, epochs=1)
    assert same(a, b)
    assert not same(a, c)

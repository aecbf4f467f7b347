"""Layers that work in training mode only: what was pruned must still train, and compute there what it should."""

from __future__ import annotations

import copy
import random
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import compress
from compress.networks.running import forward_in_training
from compress.pruning.cutting import zero
from targets.runtimes.fake.fake_target import FakeTarget

Outputs = namedtuple("Outputs", ["logits", "aux"])


def block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Auxiliary(nn.Module):
    """A head beside the second stage, with layers and a dropout of its own, as GoogLeNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = block(3, 16), block(16, 24), nn.Linear(24, 4)
        self.reduce, self.hidden, self.aux = block(16, 8), nn.Linear(32, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        logits = self.head(F.dropout(self.b(y).mean((2, 3)), 0.2, self.training))
        if not self.training:
            return logits
        hidden = F.relu(self.hidden(F.adaptive_avg_pool2d(self.reduce(y), 2).flatten(1)))
        return Outputs(logits, self.aux(F.dropout(hidden, 0.7)))


class SharedHead(nn.Module):
    """One head for two stages: in training mode their channels belong together, in eval mode they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = block(3, 16), block(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        z = self.b(y)
        out = self.head(z.mean((2, 3)))
        return (out, self.head(y.mean((2, 3)))) if self.training else out


class Joined(nn.Module):
    """A branch that is added in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = block(3, 12), block(12, 16), block(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = self.a(y)
        return self.head((z + self.b(y) if self.training else z).mean((2, 3)))


class WantsLabels(nn.Module):
    """Does not run in training mode on inputs alone, as detectors do not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = block(3, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.training and labels is None:
            raise ValueError("labels are needed")
        return self.head(self.a(x).mean((2, 3)))


def made(kind: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return kind().eval(), torch.randn(4, 3, 10, 10)


@pytest.mark.parametrize("kind", [Auxiliary, SharedHead, Joined])
def test_what_is_pruned_trains_and_computes_what_it_should(kind: Callable[[], nn.Module]) -> None:
    network, x = made(kind)
    groups = compress.find_groups(network, x)
    small = compress.prune(network, x, 0.5, groups=groups)
    masked = copy.deepcopy(network)
    zero(masked, [(group, small.removed.get(group.name, ())) for group in groups.prunable])
    for found, expected in zip(forward_in_training(small.module, (x,)), forward_in_training(masked, (x,)), strict=True):
        assert torch.allclose(found, expected, atol=1e-4)
    outputs = small.module.train()(x)
    sum(out.sum() for out in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    assert all(p.grad is not None for p in small.module.parameters())


def test_what_only_trains_keeps_its_own_width() -> None:
    assert {name for name, _, _ in compress.prune(*made(Auxiliary)).pruned} == {"a.0", "b.0"}
    assert [name for name, _, _ in compress.prune(*made(SharedHead)).pruned] == ["a.0"], "both stages are one group"


def test_one_example_is_enough_and_the_network_stays_as_it_is() -> None:
    network, x = made(Auxiliary)
    before = copy.deepcopy(network.state_dict())
    compress.prune(network, x[:1], 0.5).module.train()(x)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())


def test_a_network_that_wants_labels_in_training_is_pruned_as_it_evaluates() -> None:
    network, x = made(WantsLabels)
    small = compress.prune(network, x, 0.5)
    assert small.pruned == [("a.0", 16, 8)]
    assert small.module.train()(x, torch.zeros(4)).shape == (4, 4)


class SkipsBlocks(nn.Module):
    """Leaves whole blocks out at random while it trains: a difference, but no branch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = block(3, 16), block(16, 16), block(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for layer in (self.a, self.b):
            y = y if self.training and random.random() < 0.5 else y + layer(y)
        return self.head(y.mean((2, 3)))


def test_blocks_that_are_left_out_at_random_are_no_branch() -> None:
    network, x = made(SkipsBlocks)
    for seed in range(4):
        random.seed(seed)
        before = random.getstate()
        assert len(compress.prune(network, x, 0.5).pruned) == 1, seed
        assert random.getstate() == before


def test_a_search_trains_it_with_a_teacher_that_has_one_output(tmp_path: Path) -> None:
    network, _ = made(Auxiliary)
    x = torch.randn(60, 3, 10, 10)
    data: Any = TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())
    space = compress.SearchSpace(epochs=1, prune_ratio=0.5, precision="fp32", distill_weight=0.5)
    task = compress.Task("auxiliary", network, data, data, None)
    result = compress.search(
        task, FakeTarget(), trials=1, space=space, out=tmp_path / "run", constraints=["quality_drop<=1"]
    )
    assert not result.report["failures"]
    assert len(result.candidates()) > 1

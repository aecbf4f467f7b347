"""Layers that a network holds under several names or applies several times: cut once, and right everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import compress
from compress.networks.running import forward
from compress.pruning.cutting import zero
from compress.pruning.importance import scores, taylor
from targets.runtimes.fake.fake_target import FakeTarget


class TwoNames(nn.Module):
    """An encoder that is kept whole, and whose stages are attributes as well."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3))
        self.stem, self.rest, self.head = self.encoder[0], self.encoder[1:], nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rest(self.stem(x)).relu().mean((2, 3)))


class Thrice(nn.Module):
    """One residual block applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)
        self.block = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1))
        self.blocks = nn.ModuleList([self.block] * 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class SharedWeights(nn.Module):
    """Two layers of one weight, beside norms of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.b.weight = self.a.weight
        self.bn1, self.bn2, self.head = nn.BatchNorm2d(16), nn.BatchNorm2d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.a(self.stem(x).relu())).relu()
        return self.head(self.bn2(self.b(x)).relu().mean((2, 3)))


class AttentionTwice(nn.Module):
    """An attention layer of torch's, in a list and as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 16, 2, 2), nn.Linear(16, 4)
        self.layers = nn.ModuleList([nn.MultiheadAttention(16, 4, batch_first=True)])
        self.last = self.layers[0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for layer in (*self.layers, self.last):
            x = x + layer(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


KINDS: list[Callable[[], nn.Module]] = [TwoNames, Thrice, SharedWeights, AttentionTwice]


def made(kind: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return kind().eval(), torch.randn(4, 3, 10, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_removed_reads_as_nothing_in_the_original(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    network, x = made(kind)
    groups = compress.find_groups(network, x)
    small = compress.prune(network, x, 0.5, groups=groups)
    assert len(small.pruned) >= 1
    masked = copy.deepcopy(network)
    zero(masked, [(group, small.removed.get(group.name, ())) for group in groups.prunable])
    found, expected = forward(small.module, (x,))[0], forward(masked, (x,))[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, forward(network, (x,))[0], atol=1e-3)
    assert compress.export(small.module, x, tmp_path / "small.onnx").max_abs < 1e-4


def test_what_was_one_object_stays_one() -> None:
    small = compress.prune(*made(TwoNames)).module
    assert small.stem is small.encoder[0]
    assert small.rest[0] is small.encoder[1]
    small = compress.prune(*made(Thrice)).module
    assert small.blocks[0] is small.blocks[2] is small.block
    small = compress.prune(*made(SharedWeights)).module
    assert small.a.weight is small.b.weight
    small = compress.prune(*made(AttentionTwice)).module
    assert small.last is small.layers[0]


def test_a_layer_may_be_kept_by_any_of_its_names() -> None:
    for name in ("stem", "encoder.0"):
        small = compress.prune(*made(TwoNames), keep=[name])
        assert [channels for _, channels, _ in small.pruned] == [24], name


def test_a_layer_with_two_names_counts_once() -> None:
    network, x = made(TwoNames)
    class_of = nn.functional.cross_entropy
    single = nn.Sequential(network.encoder, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.head)
    batches = [(x, torch.arange(4) % 4)]
    for importance in ("l2", "bn", "fpgm"):
        first, other = compress.find_groups(network, x).prunable[0], compress.find_groups(single, x).prunable[0]
        assert scores(network, first, importance) == pytest.approx(scores(single, other, importance))
    found, expected = (
        list(taylor(net, compress.find_groups(net, x), batches, class_of).values()) for net in (network, single)
    )
    assert found[0] == pytest.approx(expected[0], rel=1e-4)


@pytest.mark.parametrize("kind", [TwoNames, Thrice])
def test_a_search_prunes_trains_and_ships_it(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    network, _ = made(kind)
    x = torch.randn(60, 3, 10, 10)
    data: Any = TensorDataset(x, (x.mean((1, 2, 3)) > 0).long())
    task = compress.Task("shared", network, data, data, None)
    space = compress.SearchSpace(epochs=1, prune_ratio=0.5, precision="fp32")
    result = compress.search(
        task, FakeTarget(), trials=1, space=space, out=tmp_path / "run", constraints=["quality_drop<=1"]
    )
    assert not result.report["failures"]
    smaller = next(one for one in result.candidates() if one.id != "baseline").module()
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in network.parameters())
    assert smaller(x[:2]).shape == (2, 4)

"""Weights that a layer computes at each call: pruned as the ordinary weights that they are now, or left as they are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compress
from compress.networks.computed_weights import ordinary_layer
from compress.networks.prepared_modules import ready
from compress.networks.running import forward
from compress.pruning.cutting import zero


class Standardised(nn.Conv2d):
    """Each filter less its mean, over its deviation."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Scaled(nn.Conv2d):
    """The same by a batch norm over the filters, with a gain of its own, as networks without norms have it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, padding: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=padding)
        self.gain, self.scale = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5), self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        flat, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * self.scale).view(-1)
        w = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Masked(nn.Conv2d):
    """Looks at the left only: trained on as an ordinary weight, it would look everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones_like(self.weight)
        mask[..., 2:] = 0
        return F.conv2d(x, self.weight * mask, self.bias, self.stride, self.padding)


class Normless(nn.Module):
    """A residual block of convolutions of one kind."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.stem, self.a, self.b = kind(3, 16, 3, padding=1), kind(16, 24, 3, padding=1), kind(24, 16, 3, padding=1)
        self.alpha, self.head = nn.Parameter(torch.ones(())), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + 0.2 * self.alpha * self.b(F.gelu(self.a(F.gelu(x))))).mean((2, 3)))


class ByHand(nn.Module):
    """A direction and a size for each row; ``kept``: the weight stays behind as an attribute, which nothing copies."""

    def __init__(self, kept: bool) -> None:
        super().__init__()
        self.v, self.g, self.kept = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.rand(16, 1) + 0.5), kept
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        w = self.g * self.v / self.v.norm(dim=1, keepdim=True)
        if self.kept:
            self.w = w
        return self.head(F.linear(x, w).relu())


def parametrized(*args: int, padding: int) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(*args, padding=padding))


def pruned_right(network: nn.Module, x: Tensor) -> compress.Pruned:
    """What is pruned, after a check that it computes what the network does without those channels."""
    groups = compress.find_groups(network, x)
    small = compress.prune(network, x, 0.5, groups=groups)
    whole = copy.deepcopy(ready(network, x)[0])
    zero(whole, [(group, small.removed.get(group.name, ())) for group in groups.prunable])
    assert torch.allclose(forward(small.module, (x,))[0], forward(whole, (x,))[0], atol=1e-4)
    return small


@pytest.mark.parametrize("kind", [Standardised, Scaled, parametrized])
def test_standardised_weights_are_pruned_and_exported(kind: Callable[..., nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Normless(kind).eval(), torch.randn(4, 3, 9, 9)
    before = copy.deepcopy(network.state_dict())
    small = pruned_right(network, x)
    assert small.pruned == [("stem", 16, 8), ("a", 24, 12)]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert compress.export(small.module, x, tmp_path / "m.onnx").max_abs < 1e-4
    assert torch.equal(pickle.loads(pickle.dumps(small.module))(x), small.module(x))  # noqa: S301
    small.module.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.module.parameters())


def test_what_stays_a_function_of_its_weight_is_left_alone() -> None:
    torch.manual_seed(0)
    assert ordinary_layer(Masked(3, 8, 3, padding=1)) is None
    assert ordinary_layer(nn.Conv2d(3, 8, 3)) is None
    plain = ordinary_layer(Standardised(3, 8, 3, padding=1, stride=2))
    assert type(plain) is nn.Conv2d
    assert [name for name, _ in plain.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("kept", [False, True])
def test_weights_made_of_parameters_by_hand(kept: bool) -> None:
    torch.manual_seed(0)
    network, x = ByHand(kept).eval(), torch.randn(4, 8)
    expected = network(x).detach()
    small = compress.prune(network, x, 0.5)
    assert small.pruned == [("v", 16, 8)]
    left = [k for k in range(16) if k not in small.removed["v"]]
    w = (network.g * network.v / network.v.norm(dim=1, keepdim=True))[left]
    assert torch.allclose(
        small.module(x), F.linear(F.linear(x, w).relu(), network.head.weight[:, left], network.head.bias)
    )
    assert torch.equal(network(x), expected)

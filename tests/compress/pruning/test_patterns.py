"""What a pattern says of its networks is what the really cut network has."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import zoo
from compress.networks.counting import macs_and_parameters
from compress.pruning.blocks import Blocks, find_blocks, groups_without, without_blocks
from compress.pruning.grouping import find_groups
from compress.pruning.groups import Groups
from compress.pruning.layers import matrices
from compress.pruning.patterns import dropped_sets, network_pattern, network_patterns
from compress.pruning.pruning import prune
from compress.values.networks import Pattern
from recipes.keyword_spotting import network as keyword_spotter
from targets.errors import SpaceError

NOTHING = Blocks((), ())
PRODUCTS_OF_ACTIVATIONS = {"vit", "vit-chunk", "vit-fused", "multihead", "transformer"}
"""Attention multiplies what it computed: no layer's, so torch's counter has more."""


def _check(pattern: Pattern, module: nn.Module, inputs: tuple[Tensor, ...], groups: Groups, rng: random.Random) -> int:
    """Cut ``module`` to random widths of the pattern, compare every layer; what it computes then."""
    widths = {group.name: rng.choice(group.widths) for group in pattern.groups}
    small = prune(module, inputs, widths=widths, groups=groups)
    found = matrices(small.module.eval(), inputs)
    assert [matrix.name for matrix in found] == [layer.name for layer in pattern.layers]
    total = 0
    for layer, matrix in zip(pattern.layers, found, strict=True):
        assert layer.channels(widths, pattern.full) == (matrix.inputs, matrix.outputs), layer.name
        assert layer.places(widths, pattern.full) == matrix.positions, layer.name
        total += layer.macs(matrix.inputs, matrix.outputs, matrix.positions)
    assert pattern.macs(widths) == total
    return total


@pytest.mark.parametrize(
    "name",
    [
        "plain", "resnet", "mobilenet", "dscnn", "resnext", "densenet", "unet", "groupnorm", "split", "chunk",
        "shuffle", "pad", "lstm", "bi-gru-stacked", "conv-gru", "mobilenet-v3", "shufflenet", "cell-loop",
        "layernorm", "conv-autoencoder", "vit", "vit-chunk", "vit-fused", "multihead", "transformer",
    ],
)  # fmt: skip
def test_layers_and_macs_are_those_of_the_cut_network(name: str) -> None:
    module, inputs = zoo.made(name)
    groups, rng = find_groups(module, inputs), random.Random(0)
    pattern = network_pattern(module, inputs, groups, NOTHING, ())
    assert [group.name for group in pattern.groups] == [group.name for group in groups.prunable]
    assert all(len(group.widths) > 1 for group in pattern.groups), "nothing is held back"
    for _ in range(2):
        assert _check(pattern, module, inputs, groups, rng) <= pattern.macs(pattern.full)
    whole = macs_and_parameters(module, inputs)[0]
    if name in PRODUCTS_OF_ACTIVATIONS:
        assert pattern.macs(pattern.full) < whole
    else:
        assert pattern.macs(pattern.full) == whole


def test_torch_counts_the_same_for_cut_networks() -> None:
    for name in ("mobilenet", "resnext", "lstm", "chunk"):
        module, inputs = zoo.made(name)
        groups, rng = find_groups(module, inputs), random.Random(1)
        pattern = network_pattern(module, inputs, groups, NOTHING, ())
        widths = {group.name: rng.choice(group.widths) for group in pattern.groups}
        assert pattern.macs(widths) == prune(module, inputs, widths=widths, groups=groups).macs, name


def test_the_patterns_of_a_ds_cnn() -> None:
    torch.manual_seed(0)
    module, inputs, rng = keyword_spotter(32).eval(), (torch.randn(2, 1, 49, 10),), random.Random(0)
    groups, blocks = find_groups(module, inputs), find_blocks(module, inputs)
    some = replace(blocks, removable=blocks.removable[:2])
    patterns = network_patterns(module, inputs, groups, some, 16)
    assert [pattern.dropped for pattern in patterns] == [(), ("3..8",), ("9..14",), ("3..8", "9..14")]
    assert {group.widths for pattern in patterns for group in pattern.groups} == {(16, 32)}
    assert [len(pattern.groups) for pattern in patterns] == [5, 4, 4, 3]
    assert [len(pattern.layers) for pattern in patterns] == [10, 8, 8, 6]
    for pattern in patterns:
        left = groups_without(module, inputs, groups, blocks, pattern.dropped)
        small = without_blocks(module, blocks.named(pattern.dropped))
        assert _check(pattern, small, inputs, left, rng) < patterns[0].macs(patterns[0].full)
    remembered = network_patterns(module, inputs, groups, some, 16, without=lambda _: Groups((), ()))
    assert [len(pattern.groups) for pattern in remembered] == [5, 0, 0, 0]


def test_residual_blocks_make_patterns_as_well() -> None:
    module, inputs = zoo.made("resnet")
    patterns = network_patterns(module, inputs, find_groups(module, inputs), find_blocks(module, inputs))
    assert [pattern.dropped for pattern in patterns] == [(), ("1",)]
    assert {layer.name for layer in patterns[0].layers} > {layer.name for layer in patterns[1].layers}


def test_which_blocks_are_dropped_together() -> None:
    assert dropped_sets([]) == [()]
    assert dropped_sets("abc", most=8)[-1] == tuple("abc")
    assert dropped_sets("abc", most=7)[-1] == ("b", "c")
    assert len(dropped_sets([str(i) for i in range(40)])) == 1 + 40 + 780


def test_widths_are_what_step_and_blocks_of_channels_allow() -> None:
    module, inputs = zoo.made("resnext")
    groups = find_groups(module, inputs)
    pattern = network_pattern(module, inputs, groups, NOTHING, (), 4)
    multiples = {group.name: group.multiple for group in groups.prunable}
    for ladder in pattern.groups:
        assert ladder.widths == tuple(sorted(ladder.widths))
        assert ladder.widths[-1] == ladder.channels
        assert all(width % multiples[ladder.name] == 0 and width % 4 == 0 for width in ladder.widths)
    with pytest.raises(SpaceError, match="width step is 0"):
        network_pattern(module, inputs, groups, NOTHING, (), 0)


class Particular(nn.Module):
    """Two convolutions and a layer behind them; once it is ``strict``, its first one has to be ``width`` wide."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 3)
        self.head = nn.Linear(16, 4)
        self.strict = False

    def forward(self, x: Tensor) -> Tensor:
        """Takes images of (N, 3, H, W) and gives (N, 4)."""
        x = torch.relu(self.first(x))
        if self.strict:
            x = x.reshape(len(x), 12, *x.shape[2:])
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def test_a_group_without_half_of_which_nothing_runs_keeps_its_width() -> None:
    module, inputs = Particular().eval(), (torch.rand(2, 3, 8, 8),)
    groups = find_groups(module, inputs)
    assert [group.name for group in groups.prunable] == ["first", "second"]
    module.strict = True
    pattern = network_pattern(module, inputs, groups, NOTHING, (), 4)
    assert {group.name: group.widths for group in pattern.groups} == {"first": (12,), "second": (4, 8, 12, 16)}

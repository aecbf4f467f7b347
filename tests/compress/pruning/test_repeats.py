"""Repeats in a Sequential: found where they keep the shape, dropped like residual blocks, channels traceable."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import compress
import zoo
from compress.networks.running import forward
from compress.onnx_files import exporting
from compress.pruning.blocks import find_blocks, groups_without, without_blocks
from compress.pruning.grouping import find_groups
from compress.pruning.pruning import prune
from compress.pruning.repeats import Repeat
from recipes.keyword_spotting import network as keyword_spotter
from targets.errors import SpaceError


def _names(module: nn.Module, x: Tensor) -> list[str]:
    return [block.name for block in find_blocks(module, x).removable]


@pytest.fixture(scope="module")
def spotter() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return keyword_spotter(16).eval(), torch.randn(2, 1, 49, 10)


def test_a_ds_cnn_has_four(spotter: tuple[nn.Module, Tensor]) -> None:
    """The recipe's is one flat Sequential; the zoo's has a module for each half of a block."""
    assert _names(*spotter) == ["3..8", "9..14", "15..20", "21..26"]
    network, (x,) = zoo.made("dscnn")
    assert _names(network, x) == ["4..5", "6..7", "8..9", "10..11"]


def test_what_is_dropped_does_not_run_and_names_stay(spotter: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    network, x = spotter
    small = compress.drop_blocks(network, x, ["9..14", "21..26"])
    layers = list(network)
    by_hand = nn.Sequential(*layers[:9], *layers[15:21], *layers[27:])
    torch.testing.assert_close(forward(small, (x,)), forward(by_hand, (x,)))
    assert small.state_dict().keys() < network.state_dict().keys()
    assert not any(name.startswith(("9.", "12.", "21.", "24.")) for name in small.state_dict())
    exporting.export(small, x, tmp_path / "small.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node].count("Conv") == 5
    with pytest.raises(SpaceError, match=r"'9..13' is no removable residual block; removable are 9..14"):
        compress.drop_blocks(network, x, ["9..13"])


class Doubled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


def _layer(width: int = 8, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(width, width, 3, stride, 1), nn.ReLU()]


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (nn.Sequential(*_layer(), *_layer(), *_layer()), ["0..1", "2..3", "4..5"]),
        (nn.Sequential(nn.ReLU(), *_layer(), *_layer()), ["1..2", "3..4"]),
        (nn.Sequential(*_layer(), nn.MaxPool2d(2), *_layer()), []),
        (nn.Sequential(*_layer(stride=2), *_layer(stride=2)), []),
        (nn.Sequential(*_layer(), *_layer(), nn.MaxPool2d(2), *_layer(), *_layer()), ["0..1", "2..3", "5..6", "7..8"]),
        (nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)), []),
        (nn.Sequential(nn.Sequential(*_layer(), *_layer()), nn.Sequential(*_layer(), *_layer())), ["0", "1"]),
        (nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(8)), []),
        (Doubled(*_layer(), *_layer()), []),
        (nn.Sequential(*_layer()[:1] * 2), []),
    ],
)
def test_only_equal_stretches_that_keep_the_shape(network: nn.Module, found: list[str]) -> None:
    assert _names(network, torch.randn(2, 8, 8, 8)) == found


def test_a_repeat_that_is_a_residual_block_goes_as_one() -> None:
    network, inputs = zoo.made("resnet")
    assert not any(isinstance(block, Repeat) for block in find_blocks(network, inputs).removable)


def test_both_kinds_go_together() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(zoo.block(3, 8), zoo.Residual(8, 8), *_layer(), *_layer(), nn.Flatten(), nn.Linear(512, 4))
    x = torch.randn(2, 3, 8, 8)
    blocks = find_blocks(network, x)
    assert [block.name for block in blocks.removable] == ["1", "2..3", "4..5"]
    groups = groups_without(network, x, find_groups(network, x), blocks, ["1", "4..5"])
    small = without_blocks(network, blocks.named(["1", "4..5"]))
    assert [(g.name, g.channels) for g in groups.prunable] == [("0.0", 8), ("2", 8)]
    assert prune(small, x, 0.5, groups=groups).macs < compress.prune(small, x, 0.0).macs


def test_widths_on_both_sides_become_one_and_channels_are_the_baselines(spotter: tuple[nn.Module, Tensor]) -> None:
    network, x = spotter
    groups, blocks = find_groups(network, x), find_blocks(network, x)
    assert groups_without(network, x, groups, blocks, ()) is groups
    left = groups_without(network, x, groups, blocks, ["9..14"])
    assert [group.name for group in left.prunable] == ["0", "6", "18", "24"]
    assert {"6", "15"} <= set(left.prunable[1].members)
    small = without_blocks(network, blocks.named(["9..14"]))
    pruned = prune(small, x, widths={"6": 4, "18": 8}, groups=left)
    kept = [i for i in range(16) if i not in pruned.removed["6"]]
    for name in ("6.weight", "7.bias", "15.weight"):
        assert torch.equal(pruned.module.state_dict()[name], network.state_dict()[name][kept]), name
    torch.testing.assert_close(
        pruned.module.state_dict()["18.weight"],
        network.state_dict()["18.weight"][:, kept][[i for i in range(16) if i not in pruned.removed["18"]]],
    )
    again = prune(small, x, removed=pruned.removed, groups=left).module
    again.load_state_dict(copy.deepcopy(pruned.module).state_dict())


def test_layers_that_are_to_keep_their_width_keep_it_without_a_repeat(spotter: tuple[nn.Module, Tensor]) -> None:
    network, x = spotter
    groups, blocks = find_groups(network, x, keep=["18"]), find_blocks(network, x)
    left = groups_without(network, x, groups, blocks, ["3..8"])
    assert ("18", "asked to keep") in left.kept
    assert "18" not in [group.name for group in left.prunable]

"""Residual blocks: found wherever they can go, and gone so that nothing of them is computed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import compress
import zoo
from compress.networks.running import forward
from compress.onnx_files import exporting
from compress.pruning.blocks import Blocks, find_blocks, least_harmful, remaining, without_blocks
from compress.pruning.cutting import zero
from compress.pruning.grouping import find_groups
from compress.pruning.pruning import prune
from targets.errors import SpaceError


class Residual(nn.Module):
    """``after(x + body(x))``."""

    def __init__(self, width: int = 8, after: nn.Module | None = None, *, inplace: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.after, self.inplace = after or nn.Identity(), inplace

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.inplace:
            y += x
            return self.after(y)
        return self.after(x + y)


def _net(*blocks: nn.Module, rectified: bool = True) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    first = nn.ReLU() if rectified else nn.Identity()
    network = nn.Sequential(nn.Conv2d(3, 8, 3), first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return network.eval(), torch.randn(3, 3, 6, 6)


def _branch_times_zero(module: nn.Module, names: list[str], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The oracle, by hooks: outputs with what these modules give multiplied by zero."""

    def silenced(_: nn.Module, __: Any, output: Any) -> Any:
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    network = copy.deepcopy(module)
    for name in names:
        network.get_submodule(name).register_forward_hook(silenced)
    return forward(network, inputs)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("after", [nn.Identity, nn.ReLU, nn.SiLU, lambda: nn.GroupNorm(2, 8)])
def test_a_block_becomes_what_is_left_without_its_branch(
    after: Callable[[], nn.Module], rectified: bool, inplace: bool
) -> None:
    network, x = _net(Residual(after=after(), inplace=inplace), rectified=rectified)
    found = find_blocks(network, x)
    assert [block.name for block in found.removable] == ["2"]
    small = compress.drop_blocks(network, x, ["2"], blocks=found)
    [expected], [plain], [given] = (
        _branch_times_zero(network, ["2.body"], (x,)),
        forward(network, (x,)),
        forward(small, (x,)),
    )
    torch.testing.assert_close(given, expected)
    assert not torch.allclose(given, plain), "the branch did something"
    assert not any(name.startswith("2.body") for name in small.state_dict())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())


def test_a_relu_that_changes_nothing_goes_as_well() -> None:
    tails = {
        rectified: find_blocks(*_net(Residual(after=nn.ReLU()), rectified=rectified)) for rectified in (True, False)
    }
    assert tails[True].removable[0].tail == ()
    assert tails[False].removable[0].tail == ("after",), "what comes in may be negative"


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("preactivation", ["conv2"]),
        ("vit", ["attention", "down"]),
        ("encoder", ["layer.self_attn", "layer.linear2"]),
        ("transformer-norm-first", [f"encoder.layers.{i}.{end}" for i in (0, 1) for end in ("self_attn", "linear2")]),
        ("bert", ["dense", "down"]),
    ],
)
def test_sublayers_become_zeros_and_take_what_served_them_along(name: str, ends: list[str]) -> None:
    network, inputs = zoo.made(name)
    found = find_blocks(network, inputs)
    assert [block.name for block in found.removable] == ends
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
        for names in ([ends[0]], ends):
            small = compress.drop_blocks(network, inputs, names, blocks=found)
            for a, b in zip(_branch_times_zero(network, names, inputs), forward(small, inputs), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    weights = small.state_dict()
    served = [layer for block in found.removable for layer in (block.name, *block.served)]
    assert not any(key.startswith(f"{layer}.") for key in weights for layer in served)
    assert {key: x.shape for key, x in weights.items()}.items() <= {
        k: x.shape for k, x in network.state_dict().items()
    }.items()


def test_every_network_of_the_zoo_is_looked_at_without_harm() -> None:
    for name in zoo.ZOO:
        network, inputs = zoo.made(name)
        before = copy.deepcopy(network.state_dict())
        found = find_blocks(network, inputs)
        small = without_blocks(network, found.removable)
        assert forward(small, inputs)[0].shape == forward(network, inputs)[0].shape, name
        assert all(torch.equal(x, before[key]) for key, x in network.state_dict().items()), name
    assert not find_blocks(*zoo.made("plain")).removable


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Residual()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.shortcut = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class Inline(nn.Module):
    """A branch that no module ends."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.conv(x).sigmoid() * 2
        return y * y


def test_what_is_no_removable_block_is_left_alone_with_the_reason() -> None:
    assert not find_blocks(*_net(Projected())).removable
    [twice] = find_blocks(*_net(Twice())).removable
    assert (twice.name, len(twice.additions)) == ("2", 2), "both uses of a block, or none"
    found = find_blocks(*_net(Inline()))
    assert not found.removable
    assert found.kept == (("2", "no module of its own ends the branch of a residual addition, and none is the block"),)
    with pytest.raises(SpaceError, match="'2' is no removable residual block: no module of its own"):
        compress.drop_blocks(*_net(Inline()), ["2"])
    with pytest.raises(SpaceError, match="'9' is no removable residual block; removable are 2, 3"):
        compress.drop_blocks(*_net(Residual(), Residual()), ["9"])


def test_what_is_dropped_is_not_in_the_exported_file(tmp_path: Path) -> None:
    network, inputs = zoo.made("transformer-norm-first")
    small = without_blocks(network, find_blocks(network, inputs).removable)
    exporting.export(small, inputs, tmp_path / "small.onnx")
    assert Counter(node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node) == {
        "Gather": 1, "ReduceMean": 1, "Gemm": 1
    }  # fmt: skip


def test_a_network_without_blocks_trains_copies_and_takes_its_weights_back() -> None:
    network, inputs = zoo.made("encoder")
    blocks = find_blocks(network, inputs)
    small = without_blocks(network, blocks.removable).train()
    outputs = small(*inputs)
    outputs.float().square().mean().backward()
    again = without_blocks(network, blocks.removable)
    again.load_state_dict(copy.deepcopy(small).state_dict())
    [a], [b] = forward(small, inputs), forward(again, inputs)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["resnet", "vit", "transformer"])
def test_channels_are_pruned_right_in_what_is_left(name: str) -> None:
    network, inputs = zoo.made(name)
    blocks = find_blocks(network, inputs)
    small = without_blocks(network, blocks.removable[:1])
    left = remaining(find_groups(network, inputs), small)
    assert left.prunable
    for group in (g for g in left.prunable if not g.mixed):
        pruned = prune(small, inputs, {group.name: 0.5}, groups=left)
        masked = copy.deepcopy(small)
        zero(masked, [(group, pruned.removed[group.name])])
        for a, b in zip(forward(masked, inputs), forward(pruned.module, inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    fresh = {g.name: (g.channels, g.multiple) for g in find_groups(small, inputs).prunable}
    assert {g.name: (g.channels, g.multiple) for g in left.prunable} == fresh, "as if it had been looked at anew"


def test_the_least_harmful_blocks_go_first() -> None:
    blocks = Blocks(find_blocks(*_net(Residual(), Residual(), Residual())).removable, ())
    losses = {"2": 0.3, "3": 0.1, "4": float("inf")}
    shares = {0.0: (), 0.34: ("3",), 0.7: ("2", "3"), 1.0: ("2", "3", "4")}
    assert {share: least_harmful(blocks, losses, share) for share in shares} == shares

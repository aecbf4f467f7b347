"""Pruning as it is asked for: ratios, widths, importances, what is refused and what is said.

That what comes out is right, for every kind of network, stands in test_zoo.py and tracing/test_rules.py.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.networks.counting import macs_and_parameters
from compress.networks.running import forward
from compress.pruning.grouping import find_groups
from compress.pruning.groups import Groups
from compress.pruning.pruning import prune
from compress.pruning.widths import realise
from targets.errors import SpaceError, TaskError
from zoo import FIRST as NAMES
from zoo import made


@pytest.mark.parametrize("name", NAMES)
def test_every_group_is_halved_or_kept_with_a_reason(name: str, found: dict[str, Groups]) -> None:
    module, inputs = made(name)
    before = copy.deepcopy(module.state_dict())
    pruned = prune(module, inputs, groups=found[name])
    for group, (root, was, left) in zip(found[name].prunable, pruned.pruned, strict=True):
        assert (root, was) == (group.name, group.channels)
        assert left == realise(was, 0.5, 1, group.multiple)
    assert [o.shape for o in forward(pruned.module, inputs)] == [o.shape for o in forward(module, inputs)]
    assert all(why for _, why in pruned.kept)
    # Every layer with a width of its own is accounted for.
    told = {owner for group in found[name].prunable for owner in group.owners()} | {n for n, _ in pruned.kept}
    layers = [n for n, m in module.named_modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear | nn.Embedding)]
    if name not in ("pad", "encoder", "shuffle", "split", "chunk"):  # there one reason speaks for a whole group
        assert set(layers) <= told
    # The original is as it was.
    after = module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert module.training
    assert pruned.module.training


@pytest.mark.parametrize("name", ["resnet", "resnext", "vit", "mobilenet"])
def test_removed_reproduces_a_pruning(name: str, found: dict[str, Groups]) -> None:
    module, inputs = made(name)
    first = prune(module, inputs, 0.4, importance="random", groups=found[name])
    again = prune(module, inputs, removed=first.removed, groups=found[name])
    assert again.pruned == first.pruned
    state = again.module.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in first.module.state_dict().items())


def test_widths_leave_that_many(found: dict[str, Groups]) -> None:
    module, inputs = made("resnet")
    pruned = prune(module, inputs, widths={"2.conv1": 5, "1.conv1": 8}, groups=found["resnet"])
    assert pruned.pruned == [("2.conv1", 16, 5)]
    assert ("1.conv1", "all 8 channels were asked for") in pruned.kept
    assert pruned.module.get_submodule("2.bn1").num_features == 5


def test_ratios_by_layer_leave_the_others_whole(found: dict[str, Groups]) -> None:
    module, inputs = made("resnet")
    # 2.shortcut.0 shares its width with 2.conv2, the root of the group.
    pruned = prune(module, inputs, {"2.shortcut.0": 0.25}, groups=found["resnet"])
    assert pruned.pruned == [("2.conv2", 16, 12)]
    assert ("0.0", "pruning ratio 0") in pruned.kept


def test_step_rounds_widths_and_says_where_it_leaves_all(found: dict[str, Groups]) -> None:
    module, inputs = made("resnet")
    pruned = prune(module, inputs, 0.4, step=8, groups=found["resnet"])
    assert pruned.pruned == [("2.conv1", 16, 8), ("2.conv2", 16, 8)]
    assert ("0.0", "a ratio of 0.4 in steps of 8 leaves all 8 channels") in pruned.kept


def test_keep_names_layers_or_whole_modules() -> None:
    module, inputs = made("resnet")
    pruned = prune(module, inputs, keep=["2", "0.0"])
    assert [name for name, _, _ in pruned.pruned] == ["1.conv1"]
    assert {name for name, why in pruned.kept if why == "asked to keep"} == {"0.0", "2.conv1", "2.conv2"}
    assert prune(module, inputs, keep=["2", "0.0"], groups=find_groups(module, inputs)).pruned == pruned.pruned


def test_grouped_layers_lose_equally_many_in_each_block(found: dict[str, Groups]) -> None:
    module, inputs = made("resnext")
    pruned = prune(module, inputs, groups=found["resnext"])
    for start in range(0, 32, 8):
        assert sum(start <= channel < start + 8 for channel in pruned.removed["1.0"]) == 4


def test_dtype_frozen_weights_modes_and_hooks_stay(found: dict[str, Groups]) -> None:
    module, inputs = made("resnet")
    module = module.double()
    module.get_submodule("1").eval()
    module.get_parameter("2.conv1.weight").requires_grad_(False)
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    small = prune(module, tuple(t.double() for t in inputs), groups=found["resnet"]).module
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    assert not small.get_submodule("1").training
    assert small.get_submodule("2").training
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["2.conv1.weight"]
    assert small._forward_hooks


def test_shared_weights_stay_shared(found: dict[str, Groups]) -> None:
    module, inputs = made("tied")
    pruned = prune(module, inputs, groups=found["tied"])
    assert pruned.module.get_parameter("embed.weight").shape == (20, 8)
    assert pruned.module.get_submodule("head").weight is pruned.module.get_submodule("embed").weight


def test_pruned_network_trains(found: dict[str, Groups]) -> None:
    module, inputs = made("mobilenet")
    small = prune(module, inputs, groups=found["mobilenet"]).module
    small(*inputs).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_count_agrees_with_arithmetic() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))
    parameters = 3 * 8 * 9 + 8 + 1280 + 10
    assert macs_and_parameters(module, torch.randn(4, 3, 4, 4)) == (3 * 8 * 9 * 16 + 1280, parameters)


def test_count_sees_into_fused_layers() -> None:
    lstm = nn.LSTM(8, 16, batch_first=True)
    assert macs_and_parameters(lstm, torch.randn(2, 5, 8))[0] == 5 * 4 * 16 * (8 + 16)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    frozen = copy.deepcopy(layer).requires_grad_(False)
    assert macs_and_parameters(frozen, torch.randn(2, 5, 8))[0] == 5 * (4 * 64 + 2 * 128) + 2 * 5 * 5 * 8
    assert torch.backends.mha.get_fastpath_enabled()


def test_count_falls_back_on_shapes() -> None:
    class Fixed(nn.Module):
        """Runs at a batch of four only, so that counting at one fails."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 2, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.a(x)).reshape(4, -1)

    module, x = Fixed(), torch.randn(4, 3, 4, 4)
    assert macs_and_parameters(module, x)[0] == 3 * 8 * 9 * 16 + 8 * 16 * 2 * 4


@pytest.mark.parametrize("ratio", [1.0, -0.1, float("nan"), {"1.conv1": 1.0}])
def test_ratio_out_of_range_is_refused(ratio: Any, found: dict[str, Groups]) -> None:
    module, inputs = made("resnet")
    with pytest.raises(SpaceError, match=r"\[0, 1\)"):
        prune(module, inputs, ratio, groups=found["resnet"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": {"1.conv_1": 0.5}}, "close ones: .*'1.conv1'"),
        ({"ratio": {"5": 0.5}}, "output layer"),
        ({"ratio": {"2.conv2": 0.5, "2.shortcut.0": 0.25}}, "only be cut together"),
        ({"widths": {"1.conv1": 9}}, "from 1 to 8"),
        ({"widths": {"1.conv1": 0}}, "from 1 to 8"),
        ({"removed": {"1.conv1": (8,)}}, "does not fit"),
        ({"removed": {"1.conv1": range(8)}}, "does not fit"),
        ({"removed": {}, "widths": {}}, "give one"),
        ({"step": 0}, "step"),
        ({"importance": "taylor"}, "'random'"),
        ({"allocation": "even"}, "'uniform' or 'global'"),
    ],
)
def test_requests_that_do_not_fit_are_refused(arguments: Any, message: str, found: dict[str, Groups]) -> None:
    module, inputs = made("resnet")
    with pytest.raises(SpaceError, match=message):
        prune(module, inputs, groups=found["resnet"], **arguments)


def test_uneven_removal_from_blocks_is_refused(found: dict[str, Groups]) -> None:
    module, inputs = made("resnext")
    with pytest.raises(SpaceError, match="4 blocks"):
        prune(module, inputs, removed={"1.0": (0, 1, 2, 3)}, groups=found["resnext"])


def test_keep_of_an_unknown_layer_names_close_ones() -> None:
    module, inputs = made("resnet")
    with pytest.raises(SpaceError, match=r"did you mean '1\.conv1'"):
        find_groups(module, inputs, keep=["1.conv_1"])


def test_inputs_that_do_not_fit_are_refused() -> None:
    module, _ = made("mlp")
    with pytest.raises(TaskError, match="does not run on example_inputs"):
        find_groups(module, torch.randn(2, 7))
    with pytest.raises(TaskError, match="give a tensor"):
        find_groups(module, "x")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="'x' are no arguments of the forward"):
        find_groups(module, {"x": torch.randn(2, 6)})


def test_groups_of_another_network_are_refused(found: dict[str, Groups]) -> None:
    module, inputs = made("plain")
    with pytest.raises(SpaceError, match="this very module"):
        prune(module, inputs, groups=found["resnet"])

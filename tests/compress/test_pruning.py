"""Pruning as it is asked for: ratios, widths, importances, what is refused and what is said.

That what comes out is right, for every kind of network, stands in test_zoo.py and test_following.py.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.cutting import Group, Groups, Slot
from compress.permutation_gate import Gate, forward, permutations
from compress.pruning import count, find_groups, group_named, prune
from compress.ranking import taylor
from compress.widths import realise
from targets.errors import SpaceError, TaskError

_SPEC = importlib.util.spec_from_file_location("zoo", Path(__file__).with_name("zoo.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
zoo = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(zoo)
ZOO: dict[str, Any] = zoo.ZOO
NAMES: list[str] = zoo.FIRST


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks on a busy machine: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


made = zoo.made


@pytest.fixture(scope="module")
def found() -> dict[str, Groups]:
    """The groups of every network of the zoo."""
    return {name: find_groups(*made(name)) for name in NAMES}


@given(st.integers(1, 20), st.integers(2, 8), st.integers(0, 9))
def test_permutations_stay_within_blocks_and_move_every_block(multiple: int, size: int, seed: int) -> None:
    group = Group("x", multiple * size, multiple, ("x",))
    orders = permutations(group, seed)
    for order in orders:
        assert all({order[channel] for channel in block} == set(block) for block in group.blocks())
    assert all(order != channel for channel, order in enumerate(orders[0]))
    # Any two blocks are told apart: some order moves one of them and not the other.
    moved = [tuple(any(order[c] != c for c in block) for order in orders) for block in group.blocks()]
    assert len(set(moved)) == multiple


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


EXPECTED = {
    "plain": (2, {"4"}),
    "resnet": (4, {"5"}),
    "preactivation": (2, {"head"}),
    "mobilenet": (4, {"5"}),
    "dscnn": (5, {"14"}),
    "squeeze-excite": (2, {"head"}),
    "resnext": (3, {"6"}),
    "densenet": (3, {"head"}),
    "unet": (4, {"out"}),
    "mlp": (2, {"5"}),
    "autoencoder": (3, {"8"}),
    "groupnorm": (2, {"7"}),
    "vit": (5, {"head"}),
    "two-inputs": (2, {"head"}),
    "two-outputs": (1, {"box", "label"}),
    "lstm": (3, {"head"}),
    "shuffle": (3, {"head"}),
    "pad": (1, {"head"}),
    "split": (2, {"stem.0", "head"}),
    "encoder": (4, {"head"}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_can_be_pruned_is(name: str, found: dict[str, Groups]) -> None:
    prunable, kept = EXPECTED[name]
    assert len(found[name].prunable) == prunable
    assert {layer for layer, _ in found[name].kept} == kept


def test_reasons_are_in_plain_words(found: dict[str, Groups]) -> None:
    assert ("head", "output layer") in found["resnet"].kept or ("5", "output layer") in found["resnet"].kept
    assert dict(found["two-outputs"].kept) == {"box": "output layer", "label": "output layer"}
    assert "does not run when it is cut" in dict(found["split"].kept)["stem.0"]
    assert "computed, not stored" in dict(found["weight-norm"].kept)["a"]
    same = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = same[0], same[2]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.body(x))

    assert "network's input" in dict(find_groups(Residual(), torch.randn(2, 6)).kept)["body"]


def test_blocks_are_found_where_channels_are_grouped(found: dict[str, Groups]) -> None:
    assert {g.name: g.multiple for g in found["resnext"].prunable} == {"0.0": 4, "1.0": 4, "2": 1}
    assert {g.name: g.multiple for g in found["groupnorm"].prunable} == {"0": 4, "3": 1}


def test_heads_and_their_width_are_groups_of_their_own(found: dict[str, Groups]) -> None:
    module, inputs = made("vit")
    heads = group_named(found["vit"], "attention.q:heads")
    assert (heads.channels, heads.unit, [knob.attribute for knob in heads.knobs]) == (4, 4, ["heads"])
    assert set(heads.owners()) == {"attention.q", "attention.k", "attention.v"}
    small = prune(module, inputs, {"attention.q:heads": 0.25, "attention.q:width": 0.5}, groups=found["vit"]).module
    assert small.get_submodule("attention").heads == 3
    assert small.get_submodule("attention.q").out_features == 6
    assert small.get_submodule("attention.v").out_features == 12
    assert module.get_submodule("attention").heads == 4


def wrong(group: Group, layer: str) -> Group:
    """The same claim, but two channels change places in one layer."""

    def swapped(slot: Slot) -> Slot:
        if slot.layer != layer or slot.side != "in":
            return slot
        root = list(slot.root)
        root[0], root[-1] = root[-1], root[0]
        return replace(slot, root=tuple(root))

    claimed = replace(group, slots=tuple(swapped(slot) for slot in group.slots))
    assert claimed != group
    return claimed


@pytest.mark.parametrize(
    ("name", "root", "layer"),
    [
        ("pad", "stem.0", "head"),
        ("shuffle", "mix.0:width", "last.0"),
        ("vit", "patch", "up"),
        ("lstm", "lstm", "hidden"),
    ],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_the_gate_refuses_wrong_claims(name: str, root: str, layer: str, zeros: bool, found: dict[str, Groups]) -> None:
    make, _ = ZOO[name]
    module, inputs = made(name)
    if zeros:  # fresh norms and constant inputs must not blind it
        module, inputs = make(), tuple(torch.zeros_like(t) for t in inputs)
    group = group_named(found[name], root)
    gate = Gate(module, inputs)
    assert gate.refusal([group]) is None
    assert gate.refusal([wrong(group, layer)]) is not None


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


def test_the_least_important_channels_go_first() -> None:
    module, inputs = made("mlp")
    with torch.no_grad():
        module.get_submodule("0").weight[[1, 4, 9]] *= 1e-3
    pruned = prune(module, inputs, {"0": 3 / 16})
    assert pruned.removed == {"0": (1, 4, 9)}


def test_l1_and_l2_rank_differently() -> None:
    module, inputs = made("mlp")
    weight = torch.ones(16, 6)
    weight[0] = torch.tensor([2.6, 0, 0, 0, 0, 0])  # l2: 2.6 > 2.45, l1: 2.6 < 6
    module.get_submodule("0").weight = nn.Parameter(weight)
    groups = find_groups(module, inputs)
    assert prune(module, inputs, {"0": 1 / 16}, importance="l1", groups=groups).removed["0"] == (0,)
    assert prune(module, inputs, {"0": 1 / 16}, importance="l2", groups=groups).removed["0"] == (1,)


def test_fpgm_removes_what_another_channel_can_replace() -> None:
    module, inputs = made("mlp")
    weight = torch.randn(16, 6) * 3
    weight[[2, 5, 7, 11]] = 1.0  # large, but all alike
    module.get_submodule("0").weight = nn.Parameter(weight)
    assert set(prune(module, inputs, {"0": 0.25}, importance="fpgm").removed["0"]) <= {2, 5, 7, 11}


def test_bn_removes_the_smallest_scales(found: dict[str, Groups]) -> None:
    module, inputs = made("plain")
    with torch.no_grad():
        module.get_submodule("0.1").weight[[1, 6]] = -1e-3
    pruned = prune(module, inputs, {"0.0": 0.25, "1.0": 0.25}, importance="bn", groups=found["plain"])
    assert pruned.removed["0.0"] == (1, 6)


def test_taylor_keeps_what_the_loss_depends_on(found: dict[str, Groups]) -> None:
    module, inputs = made("mlp")
    with torch.no_grad():
        module.get_submodule("3").weight[:, [0, 3, 8]] = 0.0  # nothing reads them
    batches = [(torch.randn(8, 6), torch.randint(0, 3, (8,))) for _ in range(2)]
    scores = taylor(module, found["mlp"], batches, nn.functional.cross_entropy)
    assert [c for c, score in enumerate(scores["0"]) if score == 0.0] == [0, 3, 8]
    assert prune(module, inputs, {"0": 3 / 16}, importance=scores, groups=found["mlp"]).removed["0"] == (0, 3, 8)
    assert module.training
    assert all(p.grad is None for p in module.parameters())
    with pytest.raises(SpaceError, match="16 channels"):
        prune(module, inputs, importance={"0": [1.0]}, groups=found["mlp"])


def test_global_allocation_takes_from_the_groups_that_need_least(found: dict[str, Groups]) -> None:
    module, inputs = made("mlp")
    with torch.no_grad():  # half of the first layer hardly counts, all of the second does alike
        module.get_submodule("0").weight.copy_(torch.ones(16, 6) * torch.tensor([1.0, 1e-3] * 8)[:, None])
        module.get_submodule("3").weight.fill_(1.0)
    pruned = prune(module, inputs, 8 / 28, allocation="global", groups=found["mlp"])
    assert pruned.removed == {"0": tuple(range(1, 16, 2))}
    assert ("3", "pruning ratio 0") in pruned.kept
    most = prune(module, inputs, 0.95, allocation="global", groups=found["mlp"])
    assert [left for _, _, left in most.pruned] == [2, 2]


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
    assert count(module, torch.randn(4, 3, 4, 4)) == (3 * 8 * 9 * 16 + 1280, parameters)


def test_count_sees_into_fused_layers() -> None:
    lstm = nn.LSTM(8, 16, batch_first=True)
    assert count(lstm, torch.randn(2, 5, 8))[0] == 5 * 4 * 16 * (8 + 16)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    frozen = copy.deepcopy(layer).requires_grad_(False)
    assert count(frozen, torch.randn(2, 5, 8))[0] == 5 * (4 * 64 + 2 * 128) + 2 * 5 * 5 * 8
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
    assert count(module, x)[0] == 3 * 8 * 9 * 16 + 8 * 16 * 2 * 4


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
        find_groups(module, {"x": torch.randn(2, 6)})  # type: ignore[arg-type]


def test_groups_of_another_network_are_refused(found: dict[str, Groups]) -> None:
    module, inputs = made("plain")
    with pytest.raises(SpaceError, match="this very module"):
        prune(module, inputs, groups=found["resnet"])


def test_a_layer_that_is_never_used_is_kept() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    module[0].spare = nn.Linear(4, 4)
    assert ("0.spare", "it takes no part in computing the output") in find_groups(module, torch.randn(2, 6)).kept


def test_a_network_that_only_runs_in_float32_is_gated_in_it() -> None:
    class Float(nn.Module):
        """Makes a float32 tensor as it goes, so that a float64 copy does not run."""

        def __init__(self) -> None:
            super().__init__()
            self.body = zoo.resnet()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.float())

    torch.manual_seed(0)
    module, inputs = Float(), (torch.randn(2, 3, 8, 8),)
    groups = find_groups(module, inputs)
    assert len(groups.prunable) == 4
    group = group_named(groups, "body.1.conv1")
    assert Gate(module, inputs).refusal([wrong(group, "body.1.conv2")]) is not None


def test_outputs_that_are_not_numbers_cannot_pass() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) * float("nan")

    groups = find_groups(Broken(), torch.randn(2, 6))
    assert not groups.prunable
    assert "not finite" in dict(groups.kept)["a"]

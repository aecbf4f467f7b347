"""Pruning against an oracle: the network it came from, with the removed channels held at zero.

Where nothing normalises across channels, the pruned network must compute exactly that. The zoo has every kind of
network that Torch-Pruning gets right, fails on, or is silently wrong about.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import compress.grouping
from compress.cutting import Group, Groups, member
from compress.permutation_gate import Verdict, forward, permutations, randomise
from compress.pruning import Pruned, count, find_groups, group_named, prune
from targets.errors import SpaceError, TaskError

_SPEC = importlib.util.spec_from_file_location("zoo", Path(__file__).with_name("zoo.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
zoo = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(zoo)
ZOO: dict[str, Any] = zoo.ZOO
NAMES = list(ZOO)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks on a busy machine: a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network of the zoo with lively norms, and inputs for it; the same each time."""
    torch.manual_seed(0)
    make, inputs = ZOO[name]
    module = make()
    randomise(module, 0)
    return module.train(), inputs()


@pytest.fixture(scope="module")
def found() -> dict[str, Groups]:
    """The groups of every network of the zoo."""
    return {name: find_groups(*made(name)) for name in NAMES}


def masked(module: nn.Module, inputs: tuple[Tensor, ...], pruned: Pruned, groups: Groups) -> list[Tensor]:
    """Outputs of a copy of ``module`` whose removed channels are held at zero wherever a layer puts them out."""
    network = copy.deepcopy(module)
    for name, gone in pruned.removed.items():
        for slot in group_named(groups, name).slots:
            layer = member(network, slot.layer)
            if slot.side == "in":
                continue
            positions = [i for i, root in zip(slot.index, slot.root, strict=True) if root in set(gone)]
            if isinstance(layer, nn.Parameter):
                layer.data.index_fill_(slot.dim, torch.tensor(positions), 0.0)
                continue
            dim = -1 if isinstance(layer, nn.Linear | nn.Embedding) else 1

            def hold(_: nn.Module, __: Any, out: Tensor, dim: int = dim, at: list[int] = positions) -> Tensor:
                return out.index_fill(dim, torch.tensor(at), 0.0)

            layer.register_forward_hook(hold)
    return forward(network, inputs)


def separable(module: nn.Module, group: Group) -> bool:
    """Whether no norm of the group mixes its channels: only then is masking the same as removing."""
    return not any(isinstance(member(module, name), nn.GroupNorm | nn.LayerNorm) for name in group.members)


def differs(module: nn.Module, inputs: tuple[Tensor, ...], pruned: Pruned, groups: Groups) -> float:
    """Largest relative difference between the pruned and the masked network's outputs."""
    pairs = zip(forward(pruned.module, inputs), masked(module, inputs, pruned, groups), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


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
@pytest.mark.parametrize("ratio", [0.5, 0.2])
def test_pruned_network_equals_the_masked_one(name: str, ratio: float, found: dict[str, Groups]) -> None:
    module, inputs = made(name)
    ratios = {group.name: ratio for group in found[name].prunable if separable(module, group)}
    pruned = prune(module, inputs, ratios, groups=found[name])
    assert differs(module, inputs, pruned, found[name]) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_every_group_is_halved_or_kept_with_a_reason(name: str, found: dict[str, Groups]) -> None:
    module, inputs = made(name)
    before = copy.deepcopy(module.state_dict())
    pruned = prune(module, inputs, groups=found[name])
    for group, (root, was, left) in zip(found[name].prunable, pruned.pruned, strict=True):
        assert (root, was) == (group.name, group.channels)
        assert left == max(was // 2 // group.multiple, 1) * group.multiple
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
    "vit": (3, {"head"}),
    "two-inputs": (2, {"head"}),
    "two-outputs": (1, {"box", "label"}),
    "lstm": (1, {"embed", "lstm", "head"}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_can_be_pruned_is(name: str, found: dict[str, Groups]) -> None:
    prunable, kept = EXPECTED[name]
    assert len(found[name].prunable) == prunable
    assert {layer for layer, _ in found[name].kept} == kept


def test_reasons_are_in_plain_words(found: dict[str, Groups]) -> None:
    assert ("head", "output layer") in found["resnet"].kept or ("5", "output layer") in found["resnet"].kept
    assert dict(found["two-outputs"].kept) == {"box": "output layer", "label": "output layer"}
    assert "order matters" in dict(found["pad"].kept)["stem.0"]
    assert "order matters" in dict(found["shuffle"].kept)["mix.0"]
    assert "stem.0" in dict(found["split"].kept)
    assert "LSTM is not supported" in dict(found["lstm"].kept)["embed"]
    assert "MultiheadAttention is not supported" in dict(found["encoder"].kept)["embed"]
    assert "computed, not stored" in dict(found["weight-norm"].kept)["a"]


def test_blocks_are_found_where_channels_are_grouped(found: dict[str, Groups]) -> None:
    assert {g.name: g.multiple for g in found["resnext"].prunable} == {"0.0": 4, "1.0": 4, "2": 1}
    assert {g.name: g.multiple for g in found["groupnorm"].prunable} == {"0": 4, "3": 1}
    assert {g.name: g.multiple for g in found["vit"].prunable} == {"patch": 1, "attention.q": 4, "up": 1}


@pytest.mark.parametrize("name", ["shuffle", "pad"])
def test_without_the_gate_it_would_be_silently_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Open:
        def __init__(self, *_: object) -> None: ...
        def judge(self, group: Group) -> Verdict:
            return Verdict(group, "output layer" if group.name == "head" else None)

        def refusal(self, _: object) -> None:
            return None

    monkeypatch.setattr(compress.grouping, "Gate", Open)
    module, inputs = made(name)
    groups = find_groups(module, inputs)
    assert differs(module, inputs, prune(module, inputs, groups=groups), groups) > 1e-2


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


def test_inputs_of_zeros_and_fresh_norms_do_not_blind_the_gate() -> None:
    torch.manual_seed(0)
    groups = find_groups(zoo.Pad(), torch.zeros(2, 3, 8, 8))
    assert "order matters" in dict(groups.kept)["stem.0"]
    assert len(find_groups(zoo.resnet(), torch.zeros(2, 3, 8, 8)).prunable) == 4


@pytest.mark.parametrize("pad", [False, True])
def test_a_network_that_only_runs_in_float32_is_gated_in_it(pad: bool) -> None:
    class Float(nn.Module):
        """Makes a float32 tensor as it goes, so that a float64 copy does not run."""

        def __init__(self) -> None:
            super().__init__()
            self.body = zoo.Pad() if pad else zoo.resnet()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.float())

    torch.manual_seed(0)
    groups = find_groups(Float(), torch.randn(2, 3, 8, 8))
    assert len(groups.prunable) == (0 if pad else 4)
    assert ("order matters" in dict(groups.kept).get("body.stem.0", "")) is pad


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

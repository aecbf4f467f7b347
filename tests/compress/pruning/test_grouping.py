"""What can be pruned and what not, and that the permutation check sees through wrong claims."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from compress.pruning.grouping import find_groups
from compress.pruning.groups import Group, Groups, Slot
from compress.pruning.permutation_check import PermutationCheck, permutations
from compress.pruning.pruning import group_named, prune
from zoo import ZOO, made


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
    "split": (3, {"head"}),
    "weight-norm": (2, {"head"}),
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
    same = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = same[0], same[2]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.body(x))

    assert "network's input" in dict(find_groups(Residual(), torch.randn(2, 6)).kept)["body"]

    class Hidden(Residual):
        """No number in it is one of the network's sizes."""

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).view(-1, len("length")))

    assert "does not run when it is cut" in dict(find_groups(Hidden(), torch.randn(2, 6)).kept)["body"]


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
def test_the_check_refuses_wrong_claims(
    name: str, root: str, layer: str, zeros: bool, found: dict[str, Groups]
) -> None:
    make, _ = ZOO[name]
    module, inputs = made(name)
    if zeros:  # fresh norms and constant inputs must not blind it
        module, inputs = make(), tuple(torch.zeros_like(t) for t in inputs)
    group = group_named(found[name], root)
    check = PermutationCheck(module, inputs)
    assert check.why_not([group]) is None
    assert check.why_not([wrong(group, layer)]) is not None


def test_a_layer_that_is_never_used_is_kept() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    module[0].spare = nn.Linear(4, 4)
    assert ("0.spare", "it takes no part in computing the output") in find_groups(module, torch.randn(2, 6)).kept


def test_a_network_that_only_runs_in_float32_is_checked_in_it() -> None:
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
    assert PermutationCheck(module, inputs).why_not([wrong(group, "body.1.conv2")]) is not None


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


class Placed(nn.Module):
    """Adds what two layers make of a table of places, which is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.up, self.down = nn.Linear(4, 12), nn.Linear(12, 16)
        self.register_buffer("places", torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.a(x) + self.down(self.up(self.places).relu())).relu().mean(1))


def test_the_columns_of_a_constant_are_no_channels() -> None:
    groups = find_groups(Placed().eval(), torch.randn(2, 5, 6))
    assert [group.name for group in groups.prunable] == ["a", "up"]

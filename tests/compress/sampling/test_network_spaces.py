"""Which networks a search space allows, and where a network lies in the usual space."""

from __future__ import annotations

from dataclasses import replace

import pytest

import compress
from compress.sampling.network_spaces import allowed, projected, why_not_networks
from compress.values.domains import Float
from compress.values.networks import GroupLadder, LayerShape, Network, Pattern

SPACE = compress.SearchSpace()
LADDER = GroupLadder("a", 64, (16, 32, 48, 64))


def pattern(*dropped: str) -> Pattern:
    layer = LayerShape("a", "conv", 9, 4, 3, 64, output_groups=(("a", 1.0),))
    return Pattern(dropped, (LADDER,), (layer,))


def test_the_default_space_leaves_networks_to_choose() -> None:
    assert why_not_networks(SPACE, 3, 0) is None
    assert why_not_networks(SPACE, 0, 2) is None
    assert why_not_networks(SPACE, 0, 0) == "nothing of the network can be cut"
    assert why_not_networks(replace(SPACE, depth=0.0), 0, 2) == "nothing of the network can be cut"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prune_ratio": 0.3}, "prune_ratio is not searched"),
        ({"prune_ratio": compress.Choice(0.0)}, "prune_ratio is not searched"),
        ({"prune_delta": 0.0}, "prune_delta is not searched, so all groups have one ratio"),
        ({"prune_ratio": Float(0.7, 0.9), "prune_skew": 0.0}, "every config of the space is cut"),
        ({"sparsity": 1.0}, "sparsity is searched or set, and widths follow from it"),
        ({"prune_steps": compress.Int(1, 2)}, "prune_steps is searched or set, and widths follow from it"),
        ({"depth": 0.5}, "depth is fixed"),
    ],
)
def test_other_spaces_say_why_they_do_not(changes: dict[str, object], why: str) -> None:
    assert why_not_networks(replace(SPACE, **changes), 3, 2) == why  # type: ignore[arg-type]  # domains of all kinds


def test_one_group_needs_no_delta_of_its_own() -> None:
    assert why_not_networks(replace(SPACE, prune_delta=0.0), 1, 0) is None


@pytest.mark.parametrize(
    ("most", "widths"), [(0.9, (16, 32, 48, 64)), (0.5, (32, 48, 64)), (0.3, (48, 64)), (0.1, (64,))]
)
def test_no_group_is_cut_by_more_than_the_space_allows(most: float, widths: tuple[int, ...]) -> None:
    space = replace(SPACE, prune_ratio=Float(0.0, most), prune_skew=0.0, prune_delta=Float(0.0, 0.0))
    [found] = allowed([pattern()], space, 0)
    assert found.groups[0].widths == widths


def test_skew_and_delta_allow_more_of_a_single_group() -> None:
    space = replace(SPACE, prune_ratio=Float(0.0, 0.3), prune_skew=Float(-0.4, 0.4), prune_delta=Float(-0.1, 0.25))
    [found] = allowed([pattern()], space, 0)
    assert found.groups[0].widths[0] == 16


@pytest.mark.parametrize(
    ("depth", "kept"),
    [
        ("auto", [(), ("x",), ("x", "y")]),
        (0.0, [()]),
        (Float(0.0, 0.5), [(), ("x",)]),
        (compress.Choice(0.0, 1.0), [(), ("x", "y")]),
    ],
)
def test_as_many_blocks_are_dropped_as_depth_allows(depth: object, kept: list[tuple[str, ...]]) -> None:
    patterns = [pattern(), pattern("x"), pattern("x", "y")]
    found = allowed(patterns, replace(SPACE, depth=depth), 2)  # type: ignore[arg-type]  # domains of all kinds
    assert [one.dropped for one in found] == kept


def test_a_network_lies_where_its_mean_ratio_and_the_rest_of_each_group_say() -> None:
    two = Pattern((), (LADDER, GroupLadder("b", 32, (16, 32))), ())
    dimensions = SPACE.dimensions(("a", "b"))
    found = projected(Network((), (("a", 16), ("b", 24))), two, dimensions)
    assert found["prune_ratio"] == pytest.approx(0.5)
    assert found["prune_delta.a"] == pytest.approx(0.25)
    assert found["prune_delta.b"] == pytest.approx(-0.25)
    assert found["prune_skew"] == 0.0
    assert set(found) == {"prune_ratio", "prune_skew", "prune_delta.a", "prune_delta.b"}

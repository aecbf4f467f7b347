"""Domains, constants, and what a space makes of a sampler's parameters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.values.configs import MOST_DELTAS, FinetuneSettings, PrecisionSettings, PruneSettings
from compress.values.domains import Choice, Float, Int, middle, nearest
from compress.values.search_spaces import SearchSpace
from targets.errors import SpaceError

CONSTANTS: dict[str, Any] = {
    "prune_ratio": 0.5, "prune_skew": 0.0, "prune_delta": 0.0, "epochs": 2, "lr": 0.1, "weight_decay": 0.0, "l1": 0.0,
    "dropout": 0.1, "label_smoothing": 0.0, "distill_weight": 0.0, "temperature": 4.0, "precision": "int8",
    "calibration": "percentile", "float_share": 0.25,
}  # fmt: skip


def test_constants_are_no_dimensions_and_go_into_the_config() -> None:
    space = SearchSpace(**CONSTANTS)
    assert space.dimensions(("a", "b")) == {}
    config = space.config({})
    assert config.prune == PruneSettings(0.5)
    assert config.finetune == FinetuneSettings(epochs=2, lr=0.1, dropout=0.1, temperature=4.0)
    assert config.precision == PrecisionSettings("int8", "percentile", 0.25)


def test_every_group_gets_a_delta_of_its_own() -> None:
    space = SearchSpace(**{**CONSTANTS, "prune_delta": Float(-0.2, 0.2), "prune_ratio": Float(0.0, 0.9)})
    assert space.dimensions(("a", "b")) == {
        "prune_ratio": Float(0.0, 0.9), "prune_delta.a": Float(-0.2, 0.2), "prune_delta.b": Float(-0.2, 0.2),
    }  # fmt: skip
    config = space.config({"prune_ratio": 0.3, "prune_delta.a": 0.1, "prune_delta.b": -0.1})
    assert config.prune == PruneSettings(0.3, 0.0, {"a": 0.1, "b": -0.1})


@pytest.mark.parametrize(
    ("groups", "deltas", "ratio", "skew"),
    [(0, 0, False, False), (1, 0, True, False), (2, 2, True, True), (MOST_DELTAS + 1, 0, True, True)],
)
def test_dimensions_follow_the_number_of_groups(groups: int, deltas: int, ratio: bool, skew: bool) -> None:
    found = SearchSpace().dimensions(tuple(f"g{i}" for i in range(groups)))
    assert sum(name.startswith("prune_delta.") for name in found) == deltas
    assert ("prune_ratio" in found, "prune_skew" in found) == (ratio, skew)
    assert "batch_size" not in found, "a constant by default"
    assert isinstance(found["epochs"], Int)


def test_a_constant_delta_shifts_the_ratio_within_its_limits() -> None:
    assert SearchSpace(**{**CONSTANTS, "prune_delta": 0.2}).config({}).prune.ratio == pytest.approx(0.7)
    assert SearchSpace(**{**CONSTANTS, "prune_delta": -0.9}).config({}).prune.ratio == 0.0


def test_what_is_searched_and_not_chosen_is_neutral() -> None:
    config = SearchSpace().config({})
    assert config.prune == PruneSettings()
    assert config.finetune == FinetuneSettings()
    assert config.precision == PrecisionSettings()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prune_ratio": 1.0}, "prune_ratio=1.0: must be within [0.0, 0.99]"),
        ({"prune_ratio": Float(-0.1, 0.5)}, "prune_ratio=-0.1"),
        ({"prune_delta": 3.0}, "prune_delta=3.0"),
        ({"prune_skew": Float(0.0, 9.0)}, "prune_skew=9.0"),
        ({"epochs": 2.5}, "epochs=2.5: must be a whole number"),
        ({"epochs": Float(1.0, 5.0)}, "epochs=1.0: must be a whole number"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"patience": -1}, "patience=-1"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"schedule": "wavy"}, "schedule='wavy': must be one of cosine, linear, constant"),
        ({"precision": Choice("fp32", "int4")}, "precision='int4': must be one of"),
        ({"calibration": "guess"}, "calibration='guess'"),
        ({"float_share": None}, "float_share=None"),
        ({"dropout": [0.1, 0.2]}, "dropout=[0.1, 0.2]"),
    ],
)
def test_what_is_out_of_range_is_said_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SpaceError) as caught:
        SearchSpace(**settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Float(2, 1), lambda: Float(0, 1, log=True), lambda: Float(float("nan"), 1), lambda: Int(2, 1),
        lambda: Int(0, 5, log=True), lambda: Int(1.5, 3), lambda: Float("a", 2), lambda: Choice(), lambda: Choice([]),
    ],
)  # fmt: skip
def test_domains_that_hold_nothing_are_refused(make: Any) -> None:
    with pytest.raises(SpaceError):
        make()


def test_choice_takes_values_or_a_list_of_them() -> None:
    assert Choice("a", "b") == Choice(["a", "b"]) == Choice(("a", "b"))
    assert Choice("a").values == ("a",)


DOMAINS = st.one_of(
    st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.booleans()).map(lambda x: Float(*sorted(x[:2]), x[2])),
    st.tuples(st.integers(1, 999), st.integers(1, 999), st.booleans()).map(lambda x: Int(*sorted(x[:2]), x[2])),
    st.lists(st.integers(0, 9), min_size=1).map(Choice),
)


@given(DOMAINS, st.floats(-1e4, 1e4))
def test_middle_and_nearest_are_in_the_domain(domain: Any, value: float) -> None:
    assert domain.holds(nearest(domain, value))
    assert nearest(domain, nearest(domain, value)) == nearest(domain, value)
    if isinstance(domain, Float):
        assert domain.low * (1 - 1e-9) <= middle(domain) <= domain.high * (1 + 1e-9)
    else:
        assert domain.holds(middle(domain))


def test_the_middle_of_a_logarithmic_domain_is_the_geometric_mean() -> None:
    assert middle(Float(1e-4, 1e-2, log=True)) == pytest.approx(1e-3)
    assert middle(Int(1, 9)) == 5
    assert middle(0.25) == 0.25


def test_the_schemes_are_the_precisions_in_the_space() -> None:
    assert SearchSpace().schemes() == ("fp32", "int8", "mixed", "int8-dynamic")
    assert SearchSpace(precision="int8").schemes() == ("int8",)

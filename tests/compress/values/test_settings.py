"""Every setting is said once: what else speaks of it follows from its row."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from compress.precision.qat import settings_of
from compress.sampling.first_configs import steady
from compress.values.configs import SETTINGS, Config, FinetuneSettings, PrecisionSettings, PruneSettings, row
from compress.values.domains import Choice, Float, Int, corners
from compress.values.search_spaces import AUTO, SearchSpace
from compress.values.settings import OneOf, Whole, Within, YesNo, check_all, rows_of, setting
from targets.errors import SpaceError

PARTS = (PruneSettings, FinetuneSettings, PrecisionSettings)
OUTSIDE = {Within: 1e9, Whole: -1, OneOf: "nothing of the kind", YesNo: "yes"}


def test_the_space_and_the_rows_have_the_same_settings() -> None:
    assert {field.name for field in fields(SearchSpace)} == set(SETTINGS)


def test_a_field_without_a_row_is_refused() -> None:
    @dataclass(frozen=True)
    class Settings:
        known: float = setting(0.0, Within(0.0, 1.0), "a share")
        forgotten: float = 0.0

    with pytest.raises(TypeError, match=r"Settings\.forgotten has no row"):
        rows_of(Settings)


def test_a_setting_is_one_row_and_its_use() -> None:
    @dataclass(frozen=True)
    class Settings:
        share: float = setting(0.25, Within(0.0, 1.0), "a share", name="some_share", changes_cost=True)

        def __post_init__(self) -> None:
            check_all(self)

    (found,) = rows_of(Settings).values()
    assert (found.name, found.field, found.neutral, found.setting.changes_cost) == ("some_share", "share", 0.25, True)
    with pytest.raises(SpaceError, match=r"some_share=2.0: must be within \[0.0, 1.0\]"):
        Settings(2.0)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_the_neutral_value_and_the_space_are_allowed_and_others_not(name: str) -> None:
    one = SETTINGS[name]
    one.setting.values.check(name, one.neutral)
    domain = getattr(SearchSpace(), name)
    for value in () if domain == AUTO else corners(domain):
        one.setting.values.check(name, value)
    wrong = OUTSIDE.get(type(one.setting.values), 1e9)
    with pytest.raises(SpaceError, match=rf"^{name}="):
        one.setting.values.check(name, wrong)
    with pytest.raises(SpaceError, match=rf"^{name}="):
        SearchSpace(**{name: wrong})


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_config_takes_every_setting_from_the_space_and_from_a_sampler(name: str) -> None:
    one = SETTINGS[name]
    values = one.setting.values
    other = values.names[-1] if isinstance(values, OneOf) else True if isinstance(values, YesNo) else 0.5
    if isinstance(values, Whole):
        other = 3
    space = SearchSpace(**{"precision": "fp32", **({"qat_epochs": 1} if other == "int8-qat" else {}), name: other})
    for config in (space.config({}), SearchSpace().config({name: other})):
        if name == "prune_delta":  # a constant one moves the ratio
            assert config.prune.ratio == 0.5
            continue
        part = next(part for part in (config.prune, config.finetune, config.precision) if type(part) is one.part)
        assert getattr(part, one.field) == other


def test_the_neutral_config_does_nothing() -> None:
    assert Config() == Config(PruneSettings(), FinetuneSettings(), PrecisionSettings())
    assert SETTINGS["prune_ratio"].neutral == 0.0
    assert SETTINGS["precision"].neutral == "fp32"


def test_steady_values_lie_in_the_space() -> None:
    space = SearchSpace()
    for name, domain in space.dimensions(("a", "b"), 1).items():
        assert domain.holds(steady(name, domain))
    assert steady("epochs", Int(4, 16)) == 16
    assert steady("epochs", Choice(8, 4)) == 8
    assert steady("prune_delta.a", Float(-0.25, 0.25)) == 0.0
    assert steady("l1", Float(1e-8, 1e-4, log=True)) == 1e-8


def test_what_a_network_lacks_is_no_dimension() -> None:
    space = SearchSpace(
        importance=Choice("l2", "l1"), allocation=Choice("uniform", "global"), depth=Float(0, 1),
        prune_steps=Int(1, 3), sparsity=Float(0, 1), sparsity_kind=Choice("bn", "group"), sparsity_epochs=Int(1, 2),
    )  # fmt: skip
    of_channels = {"prune_ratio", "importance", "allocation", "prune_steps"} | {
        "sparsity", "sparsity_kind", "sparsity_epochs"
    }  # fmt: skip
    none = set(space.dimensions(()))
    assert not none & (of_channels | {"prune_skew", "depth"})
    assert "epochs" in none
    assert set(space.dimensions((), 2)) - none == {"depth"}
    assert "int8_operators" not in none
    assert set(space.dimensions((), 0, 1)) - none == {"int8_operators"}
    assert set(space.dimensions(("a",))) - none == of_channels
    assert set(space.dimensions(("a", "b"))) - none == of_channels | {"prune_skew", "prune_delta.a", "prune_delta.b"}


def test_what_changes_what_a_network_costs() -> None:
    assert {name for name, one in SETTINGS.items() if one.setting.changes_cost} == {
        "prune_ratio", "prune_skew", "prune_delta", "importance", "allocation", "depth", "sparsity", "sparsity_kind",
        "sparsity_epochs", "precision", "float_share", "int8_operators", "correct_bias",
    }  # fmt: skip
    assert row("prune_delta.layer1.conv").setting.changes_cost


def test_training_in_int8_takes_over_what_its_rows_say() -> None:
    config = SearchSpace().config(
        {
            "epochs": 9, "lr": 0.01, "qat_epochs": 2, "qat_lr": 0.5, "dropout": 0.1, "l1": 1e-5, "mixup": 0.2,
            "ema": 0.9, "feature_weight": 1.0, "patience": 3, "short_share": 0.2, "weight_decay": 1e-3,
            "label_smoothing": 0.1, "distill_weight": 0.6, "schedule": "linear", "batch_size": 32, "balance": "loss",
        }
    )  # fmt: skip
    assert settings_of(config) == FinetuneSettings(
        epochs=2, lr=0.005, weight_decay=1e-3, label_smoothing=0.1, distill_weight=0.6, schedule="linear",
        batch_size=32, balance="loss",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [("prune_ratio", "half"), ("epochs", 2.5), ("epochs", True), ("lr", None), ("ema", True)]
)
def test_a_value_of_another_kind_is_refused_in_one_line(name: str, value: object) -> None:
    with pytest.raises(SpaceError, match=rf"^{name}={value!r}: must be a (whole )?number"):
        SETTINGS[name].setting.values.check(name, value)

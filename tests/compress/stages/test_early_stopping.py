"""Early stopping: a short training first, and what it decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import compress
from compress.results import Result
from compress.stages.early_stopping import is_hopeless, short_epochs
from compress.values.configs import FinetuneSettings
from compress.values.constraints import parse_constraint
from compress.values.search_spaces import SearchSpace
from targets.errors import SpaceError


@pytest.mark.parametrize(("share", "epochs", "first"), [(0.0, 8, 0), (0.25, 8, 2), (0.25, 1, 0), (1.0, 8, 0)])
def test_the_short_training_is_a_share_of_the_epochs(share: float, epochs: int, first: int) -> None:
    assert short_epochs(FinetuneSettings(epochs=epochs, short_share=share)) == first


@pytest.mark.parametrize(
    ("quality", "constraints", "hopeless"),
    [
        (0.88, ["quality_drop<=0.01"], False),
        (0.86, ["quality_drop<=0.01"], True),
        (0.86, ["quality_drop<=0.02"], False),
        (0.86, ["quality>=0.88"], False),
        (0.83, ["quality>=0.88"], True),
        (0.88, ["quality>=0.9"], False),  # not a hair may be lost: a little is forgiven
        (0.80, ["quality>=0.9"], True),
        (0.50, ["quality<=0.95"], False),  # no limit to what may be lost
        (0.10, ["latency<=0.5x", "size<=1kB"], False),
        (0.86, ["latency<=0.5x", "quality_drop<=0.01"], True),
    ],
)
def test_what_lost_three_times_too_much_is_hopeless(quality: float, constraints: Sequence[str], hopeless: bool) -> None:
    parsed = [parse_constraint(text) for text in constraints]
    assert is_hopeless(quality, 0.9, parsed) is hopeless


def test_a_metric_that_is_better_when_lower() -> None:
    limits = [parse_constraint("quality<=0.6")]
    assert not is_hopeless(0.75, 0.5, limits, higher_is_better=False)
    assert is_hopeless(0.85, 0.5, limits, higher_is_better=False)
    assert not is_hopeless(0.1, 0.5, limits, higher_is_better=False)


@pytest.fixture
def space(tiny: ModuleType) -> SearchSpace:
    """Half of the channels, four epochs, the first of them a short training."""
    return replace(tiny.SPACE, prune_ratio=0.5, prune_skew=0.0, prune_delta=0.0, epochs=4, short_share=0.25)


@pytest.mark.parametrize(("limit", "epochs", "trainings"), [("1e-6", 1, 1), ("0.5", 4, 2)])
def test_only_what_earns_it_is_trained_to_the_end(
    search: Callable[..., Result], space: SearchSpace, limit: str, epochs: int, trainings: int
) -> None:
    report = search(space=replace(space, lr=1e-6), trials=1, constraints=[f"quality_drop<={limit}"]).report
    configs = [one["config"] for one in report["candidates"] if one["id"] != "baseline"]
    assert configs
    assert {config["finetune"]["epochs"] for config in configs} == {epochs}
    assert report["stages"]["finetune"]["count"] == trainings


def test_what_is_hopeless_is_not_trained_in_int8_either(search: Callable[..., Result], space: SearchSpace) -> None:
    found = search(space=replace(space, lr=1e-6, qat_epochs=1), trials=1, constraints=["quality_drop<=1e-6"])
    schemes = {one["config"]["precision"]["scheme"] for one in found.report["candidates"] if one["id"] != "baseline"}
    assert "int8" in schemes
    assert "int8-qat" not in schemes


def test_the_rest_goes_on_from_the_short_training(
    search: Callable[..., Result], space: SearchSpace, task: compress.Task
) -> None:
    seen: list[tuple[int, float, float]] = []

    def loop(module: nn.Module, train: Any, settings: FinetuneSettings) -> None:  # noqa: ARG001
        bias = module[-1].bias.detach()
        before = float(bias.sum())
        bias += 0.5
        seen.append((settings.epochs, before, float(bias.sum())))

    search(task=replace(task, finetune=loop), space=space, trials=1, constraints=["quality_drop<=0.9"])
    (first, _, left), (rest, found, _) = seen
    assert (first, rest) == (1, 3)
    assert found == pytest.approx(left)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(SpaceError, match="short_share"):
        SearchSpace(short_share=share)

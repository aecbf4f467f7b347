"""The range of learning rates that a test finds: read from its curve, repeatable, and one that trains."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import compress
from compress.results import Result
from compress.tasks.datasets import Split
from compress.training import learning_rates
from compress.training.learning_rates import find_range, read_range
from compress.values.configs import FinetuneSettings
from compress.values.domains import Float
from targets.errors import SpaceError, TrainingError
from training import CPU, CROSS, linear, same, tune

AUTO: dict[str, Any] = {
    "epochs": 1, "lr": "auto", "prune_ratio": Float(0.3, 0.6), "prune_skew": 0.0, "prune_delta": 0.0,
    "weight_decay": 0.0, "l1": 0.0, "dropout": 0.0, "label_smoothing": 0.0, "distill_weight": 0.5, "precision": "fp32",
    "calibration": "minmax", "temperature": 4.0, "float_share": 0.2,
}  # fmt: skip


def test_the_range_is_read_from_the_curve() -> None:
    rates = [10.0**-k for k in (6, 5, 4, 3, 2, 1)]
    low, high = read_range(rates, [2.0, 2.0, 1.95, 1.7, 0.5, 3.0])
    assert low == pytest.approx(1e-3 / 3), "before a tenth of the way down"
    assert high == pytest.approx(1e-2 / 5)
    low, high = read_range(rates, [2.0, 2.0, 2.0, 2.0, 0.5, 3.0])
    assert (low, high) == pytest.approx((1e-2 / 15, 1e-2 / 5)), "never narrower than three to one"
    low, high = read_range(rates, [2.0, 1.0, 0.9, 0.8, 0.5, 3.0])
    assert (low, high) == pytest.approx((1e-2 / 150, 1e-2 / 5)), "never wider than thirty to one"


@pytest.mark.parametrize("losses", [[1.0, 1.1, 2.0], [1.0, 1.0, 1.0], []])
def test_a_loss_that_does_not_come_down_is_said(losses: list[float]) -> None:
    with pytest.raises(TrainingError, match="no learning rate between 1e-06 and 1 brings the loss down; give lr as"):
        read_range([1e-6, 1e-5, 1e-4][: len(losses)], losses)


def test_the_range_trains_and_what_is_far_outside_does_not(few: Split) -> None:
    module = linear()
    found = find_range(module, few, CROSS, mode=CPU, seed=0)
    assert same(module, linear()), "a copy was trained"
    assert learning_rates.LOWEST < found.low < found.high < learning_rates.HIGHEST

    def last(rate: float) -> float:
        try:
            return float(tune(linear(), few, epochs=15, batch_size=16, lr=rate).loss[-1])
        except TrainingError:  # diverged
            return math.inf

    middle = last((found.low * found.high) ** 0.5)
    assert middle < 0.5 * last(found.low / 100)
    assert middle < 0.5 * last(found.high * 100)


def test_the_seed_decides_and_the_optimizer_counts(few: Split) -> None:
    def sgd(parameters: Any, settings: FinetuneSettings) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=settings.lr)

    one, again = (find_range(linear(), few, CROSS, mode=CPU, seed=1) for _ in range(2))
    assert one == again
    slow = find_range(linear(), few, CROSS, mode=CPU, seed=1, optimizer=sgd)
    assert slow.high > 3 * one.high, "plain gradient descent takes larger rates than AdamW"


def test_a_search_finds_its_range_once(search: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    find = learning_rates.find_range

    def counted(*arguments: Any, **keywords: Any) -> Any:
        asked.append(1)
        return find(*arguments, **keywords)

    monkeypatch.setattr(learning_rates, "find_range", counted)
    space = compress.SearchSpace(**AUTO)
    first = search(space=space, trials=2)
    assert first._run.state.facts.learning_rates is not None
    low, high = first._run.state.facts.learning_rates
    rates = [t.params["lr"] for t in first._run.state.trials.values() if t.state == "finished"]
    assert rates
    assert all(low <= rate <= high for rate in rates)
    used = [c.config["finetune"]["lr"] for c in first._run.state.candidates.values() if c.trial is not None]
    assert set(used) <= set(rates)
    again = search(trials=3)
    assert again._run.state.facts.learning_rates == (low, high)
    assert asked == [1]


def test_a_loop_of_the_users_own_has_no_range_to_find(
    search: Callable[..., Result], task: compress.Task, tmp_path: Path
) -> None:
    own = compress.Task(
        name="tiny", model=copy.deepcopy(task.model), train=task.train, val=task.val, test=task.test,
        finetune=lambda module, _train, _settings: module,
    )  # fmt: skip
    with pytest.raises(SpaceError, match=r"lr='auto' is found with our own loop.*; give a Float"):
        search(task=own, space=compress.SearchSpace(**AUTO), trials=1)
    assert not (tmp_path / "run").exists()


def test_auto_is_for_the_rate_alone() -> None:
    assert compress.SearchSpace(lr="auto").config({}).finetune.lr == FinetuneSettings().lr
    for wrong in ({"l1": "auto"}, {"lr": compress.Choice("auto", 0.1)}, {"lr": "fast"}):
        with pytest.raises(SpaceError, match="must be"):
            compress.SearchSpace(**wrong)  # type: ignore[arg-type]

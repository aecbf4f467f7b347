"""Recovery and regularization in a search: every setting searched at once, classes in the report, refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import compress
from compress.reports import pages
from compress.results import Result
from compress.searching.space_checks import check_space
from compress.tasks.splits import read_splits
from compress.values.domains import Choice, Float
from targets.errors import SpaceError

SEARCHED: dict[str, Any] = {
    "epochs": 1, "prune_ratio": Float(0.3, 0.6), "prune_skew": 0.0, "prune_delta": 0.0, "ema": Float(0.0, 0.99),
    "mixup": Float(0.0, 0.4), "feature_weight": Float(0.0, 1.0), "balance": Choice("none", "loss", "sampler"),
    "precision": "fp32",
}  # fmt: skip
NAMES = ("ema", "mixup", "feature_weight", "balance")


def adam(parameters: Any, settings: compress.FinetuneSettings) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=settings.lr)


def test_every_setting_is_searched_and_the_classes_are_told(
    search: Callable[..., Result], task: compress.Task, tmp_path: Path
) -> None:
    own = dataclasses.replace(task, optimizer=adam)
    result = search(task=own, space=compress.SearchSpace(**SEARCHED), trials=3)
    candidates = [c for c in result._run.state.candidates.values() if c.trial is not None]
    assert candidates
    for candidate in candidates:
        params = result._run.state.trials[candidate.trial].params
        assert {name: candidate.config["finetune"][name] for name in NAMES} == {n: params[n] for n in NAMES}
    picked = result.pick("most_accurate").candidate
    (measured,) = result._run.state.candidates[picked.id].measured.values()
    assert measured.quality.test is not None
    classes = measured.quality.classes
    assert sorted(classes, key=int) == [str(c) for c in range(10)]
    assert sum(one.n for one in classes.values()) == measured.quality.test.n
    right = sum(one.recall * one.n for one in classes.values())
    assert right / measured.quality.test.n == pytest.approx(measured.quality.test.value)
    text = (tmp_path / "run" / "report.html").read_text()
    assert 'class="classes"' in text
    assert f"{100 * classes['3'].f1:.1f} %" in text
    counts = dict(result._run.state.stages["finetune"])
    again = search(task=own, trials=3)
    assert again._run.state.stages["finetune"]["count"] == counts["count"], "nothing is trained twice"


def test_a_report_without_classes_shows_none(finished: Result) -> None:
    report = finished.report
    for candidate in report["candidates"]:
        for here in candidate["measured"].values():
            here["quality"].pop("classes", None)
    assert 'class="classes"' not in pages.render(report)


def _task(task: compress.Task, **changes: Any) -> compress.Task:
    return dataclasses.replace(task, **changes)


def _tokens() -> compress.Task:
    """Whole numbers in, one class out."""
    data = TensorDataset(torch.randint(0, 9, (20, 6)), torch.arange(20) % 2)
    return compress.Task("tokens", nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(12, 2)), data, data)


def _numbers() -> compress.Task:
    """Real numbers in and out."""
    data = TensorDataset(torch.randn(20, 3), torch.randn(20, 1))
    return compress.Task("numbers", nn.Linear(3, 1), data, data, metric="mse")


@pytest.mark.parametrize(
    ("made", "space", "said"),
    [
        (_tokens, {"mixup": Float(0.0, 0.4)}, "mixup: input 0 holds int64, which cannot be mixed; set mixup=0 in the"),
        (_numbers, {"balance": "sampler"}, "balance: labels are torch.float32 .*; set balance='none' in the search"),
        (_numbers, {"balance": Choice("none", "loss")}, "balance='loss' weights classes, and metric 'mse'"),
    ],
)
def test_what_the_data_do_not_allow_is_said_before_anything_is_trained(
    made: Callable[[], compress.Task], space: dict[str, Any], said: str
) -> None:
    task = made()
    train = read_splits(task).train
    check_space(compress.SearchSpace(), task, train)
    with pytest.raises(SpaceError, match=said) as caught:
        check_space(compress.SearchSpace(**space), task, train)
    assert "\n" not in str(caught.value)


def test_a_loss_of_the_tasks_own_is_not_weighted(task: compress.Task) -> None:
    own = _task(task, loss=nn.functional.cross_entropy)
    train = read_splits(own).train
    with pytest.raises(SpaceError, match="balance='loss' cannot weight a loss of the task's own"):
        check_space(compress.SearchSpace(balance="loss"), own, train)
    check_space(compress.SearchSpace(balance="sampler"), own, train)


def test_a_search_that_cannot_be_done_leaves_nothing(search: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="mixup"):
        search(task=_tokens(), space=compress.SearchSpace(mixup=0.2), trials=1)
    assert not (tmp_path / "run").exists()


def test_maps_that_cannot_be_compared_are_a_warning(search: Callable[..., Result]) -> None:
    torch.manual_seed(0)
    sets = [TensorDataset(torch.randn(40, 4), torch.arange(40) % 2) for _ in range(2)]
    flat = compress.Task("flat", nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), *sets)
    space = compress.SearchSpace(**{**SEARCHED, "feature_weight": 0.5, "prune_ratio": 0.5})
    result = search(task=flat, space=space, trials=1, constraints=["quality_drop<=1"])
    assert any("feature_weight" in text for text in result._run.state.facts.warnings)

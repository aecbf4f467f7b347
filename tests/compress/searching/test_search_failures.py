"""What goes wrong in a search costs no more than it must, and is recorded with its cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import compress
from compress.results import Result
from compress.searching import trial_loop
from compress.stages import confirming, measuring
from targets.errors import MeasurementError, StageError, TransientError
from targets.runtimes.fake.fake_target import FakeTarget

Search = Callable[..., Result]


def test_a_measurement_that_fails_costs_one_trial(search: Search) -> None:
    class Once(FakeTarget):
        """Refuses the second trial's files."""

        measured = 0

        def measure(self, models: Any, **options: Any) -> Any:
            self.measured += 1
            if self.measured == 6:  # 1: the baseline, 2, 3: first candidates, 4: its layers, 5: mixed
                raise MeasurementError("fake: the runtime crashed")
            return super().measure(models, **options)

    report = search(target=Once(), trials=3).report
    assert report["trials"] == {"asked": 4, "finished": 3, "gated": 0, "failed": 1}
    assert report["failures"] == [{"trial": 1, "stage": "measure", "cause": "fake: the runtime crashed"}]


def test_a_transient_failure_is_tried_again_by_the_next_call(search: Search) -> None:
    class Away(FakeTarget):
        """Is gone while the second trial is measured."""

        measured = 0

        def measure(self, models: Any, **options: Any) -> Any:
            self.measured += 1
            if self.measured == 6:
                raise TransientError("fake: the device is gone")
            return super().measure(models, **options)

    first = search(target=Away(), trials=2).report
    assert (first["trials"]["failed"], first["failures"][0]["trial"]) == (1, 1)
    same = search(trials=2).report
    assert same["failures"] == first["failures"], "nothing more was asked, so nothing was tried again"
    again = search(trials=3).report
    assert again["trials"] == {"asked": 3, "finished": 3, "gated": 0, "failed": 0}
    assert again["failures"] == []
    assert {c["trial"] for c in again["candidates"]} == {None, 0, 1, 2}


def test_a_finetune_function_that_raises_is_a_failure_with_file_and_line(
    search: Search, task: compress.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("no such optimizer")

    monkeypatch.setattr(trial_loop, "_FRUITLESS", 3)
    report = search(task=replace(task, finetune=broken), trials=2).report
    assert report["trials"]["failed"] >= 3
    for failure in report["failures"]:
        assert failure["stage"] == "finetune"
        assert "no such optimizer" in failure["cause"]
        assert "test_search_failures.py:" in failure["cause"]


def test_a_finetune_function_of_the_users_own_is_used(search: Search, task: compress.Task) -> None:
    epochs = []

    def own(module: torch.nn.Module, train: Any, settings: Any) -> torch.nn.Module:
        epochs.append(settings.epochs)
        assert len(train) == 900
        return module

    report = search(task=replace(task, finetune=own), trials=3).report
    assert report["trials"]["finished"] == 3
    assert len(epochs) == report["stages"]["finetune"]["count"] >= 2


def test_training_that_diverges_is_a_failure_with_its_cause(
    search: Search, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_loop, "_FRUITLESS", 2)
    space = replace(tiny.SPACE, lr=compress.Float(90.0, 100.0), schedule="constant", prune_ratio=0.5)
    report = search(space=space, trials=2).report
    assert report["trials"]["finished"] == 0
    assert report["failures"]
    for failure in report["failures"]:
        assert failure["stage"] == "finetune"
        assert "diverged" in failure["cause"] or "NaN" in failure["cause"]


def test_a_finalist_that_cannot_be_timed_again_keeps_its_number(
    search: Search, monkeypatch: pytest.MonkeyPatch, finished: Result
) -> None:
    slow = finished.pick("fastest").id

    def measure_on(instruments: Any, target: Any, paths: Any, *rest: Any) -> Any:
        if any(Path(path).parent.name == slow for path in paths):
            raise MeasurementError("fake: it hung")
        return real(instruments, target, paths, *rest)

    real = confirming.measuring.measure_on
    monkeypatch.setattr(confirming, "measuring", _Replaced(confirming.measuring, measure_on=measure_on))
    report = search(trials=6).report
    assert report["satisfied"]
    [failure] = report["failures"]
    assert failure["stage"] == "confirm"
    assert failure["cause"] == f"{slow} could not be timed again on fake: fake: it hung"
    assert report["picks"] == finished.report["picks"]
    monkeypatch.undo()
    assert search(trials=6).report["failures"] == [], "the next call has another try"


class _Replaced:
    """A module with one name replaced, for one importer only."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def test_a_pick_that_cannot_be_read_on_test_stays_open(
    search: Search, monkeypatch: pytest.MonkeyPatch, finished: Result
) -> None:
    real, fastest = measuring.score, finished.pick("fastest").id

    def score(instruments: Any, target: Any, path: Path, split: Any, which: str, **options: Any) -> Any:
        if which == "test" and path.parent.name == fastest:
            raise MeasurementError("fake: it hung")
        return real(instruments, target, path, split, which, **options)

    monkeypatch.setattr(measuring, "score", score)
    report = search(trials=6).report
    assert report["picks"]["fake"]["fastest"] == {
        **finished.report["picks"]["fake"]["fastest"], "verdict": "open", "read": 0,
        "needed": report["picks"]["fake"]["fastest"]["needed"],
    }  # fmt: skip
    assert report["satisfied"]
    assert [f["cause"] for f in report["failures"]] == [f"{fastest} could not be read on test on fake: fake: it hung"]


def test_where_no_pick_can_be_read_on_test_the_search_has_not_confirmed_anything(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measuring.score

    def score(instruments: Any, target: Any, path: Path, split: Any, which: str, **options: Any) -> Any:
        if which == "test" and path != instruments.baseline_path:
            raise MeasurementError("fake: the device is gone")
        return real(instruments, target, path, split, which, **options)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "score", score)
        with pytest.raises(StageError, match="no pick could be read on test on fake: fake: the device is gone"):
            search(trials=2)
    assert search(trials=2).report["failures"] == []


def test_a_baseline_that_cannot_be_measured_ends_the_search_and_the_run_can_still_be_read(
    search: Search, tmp_path: Path
) -> None:
    with pytest.raises(MeasurementError, match="no such device"):
        search(target=FakeTarget(faults={"measure": MeasurementError("no such device")}), trials=1)
    search(trials=2)
    broken = FakeTarget("fake2", faults={"measure": MeasurementError("no such device")})
    with pytest.raises(MeasurementError, match="no such device"):
        search(target=[FakeTarget(), broken], trials=2)
    opened = compress.open_run(tmp_path / "run")
    assert set(opened.report["targets"]) == {"fake"}
    assert opened.pick("fastest").path.exists()

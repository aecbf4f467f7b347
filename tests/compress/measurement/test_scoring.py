"""Outputs that a quality is computed from: by whom they are computed, and which ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from compress.measurement import scoring
from compress.measurement.scoring import Scorer
from compress.run_folder.caching import Cache
from compress.tasks.datasets import Split, read
from targets.errors import MeasurementError
from targets.runtimes.fake.fake_target import FakeTarget

COUNT = 100
LABELS = np.arange(COUNT) % 4
RIGHT = np.eye(4, dtype=np.float32)[LABELS]
Outputs = Callable[[np.ndarray], Any]


@pytest.fixture
def split() -> Split:
    numbered = torch.arange(COUNT, dtype=torch.float32)[:, None]
    return read(TensorDataset(numbered, torch.from_numpy(LABELS)), "val")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "0007-int8" / "model.onnx"
    file.parent.mkdir()
    file.write_bytes(b"a model")
    return file


class Board(FakeTarget):
    """Behind a network."""

    remote = True


def _target(outputs: Outputs, kind: type[FakeTarget] = FakeTarget, name: str = "fake") -> FakeTarget:
    return kind(name, run=lambda _, inputs: outputs(inputs["x"][:, 0].astype(int)))


def _scorer(folder: Path, on_host: dict[str, list[str]] | None = None, noted: list[Any] | None = None) -> Scorer:
    record = SimpleNamespace(note=lambda *told: (noted if noted is not None else []).append(told))
    run: Any = SimpleNamespace(
        state=SimpleNamespace(facts=SimpleNamespace(scored_on_host=on_host or {})), record=record
    )
    return Scorer(Cache(folder / "cache", lambda *_: None), run, {}, ["x"])


def _nan(rows: np.ndarray) -> list[np.ndarray]:
    found = RIGHT[rows].copy()
    found[3:5, 1] = np.nan
    return [found]


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (lambda _: [], "fake: 0007-int8/model.onnx returned no outputs for 100 examples"),
        (lambda rows: [RIGHT[rows], RIGHT[rows][:99]], r"returned output 1 of shape \(99, 4\) for 100 examples"),
        (lambda _: [np.float32(1)], r"returned output 0 of shape \(\) for 100 examples"),
        (_nan, "returned NaN for 2 of 100 examples"),
    ],
)
def test_outputs_without_a_quality_are_refused(
    tmp_path: Path, path: Path, split: Split, outputs: Any, said: str
) -> None:
    with pytest.raises(MeasurementError, match=said):
        _scorer(tmp_path).outputs(_target(outputs), path, split, "val")


def test_outputs_are_computed_once_for_each_way_of_running(tmp_path: Path, path: Path, split: Split) -> None:
    batches: list[int] = []
    target = _target(lambda rows: [RIGHT[rows]])
    real = target.run
    target.run = lambda model, inputs, *, batch=64: batches.append(batch) or real(model, inputs)  # type: ignore[method-assign, func-returns-value]
    scorer = _scorer(tmp_path)
    for _ in range(2):
        found = scorer.outputs(target, path, split, "val")
        assert np.array_equal(found.outputs, RIGHT)
        assert not found.on_host
        scorer.outputs(target, path, split, "val", dynamic=True)
    assert batches == [scoring.BATCH, 1], "what scales a whole batch at once is scored one by one"


@pytest.mark.parametrize(("wrong", "trusted"), [(0, True), (3, True), (4, False)])
def test_the_host_scores_for_a_board_that_decides_as_it_does(
    tmp_path: Path, path: Path, split: Split, monkeypatch: pytest.MonkeyPatch, wrong: int, trusted: bool
) -> None:
    """At least 95 % of 64 examples, which are 61."""
    asked: list[int] = []

    def on_board(rows: np.ndarray) -> list[np.ndarray]:
        asked.append(len(rows))
        return [RIGHT[rows] + _mistaken(rows, wrong)]

    host = _target(lambda rows: [RIGHT[rows]], name="host")
    monkeypatch.setattr(scoring.targets, "get", lambda name: {scoring.HOST: host}[name])
    scorer = _scorer(tmp_path, {"fake": ["val"]})
    found = scorer.outputs(_target(on_board, Board), path, split, "val")
    assert found.on_host == trusted
    assert asked == ([64] if trusted else [64, 100])
    if found.check is not None:
        assert found.check.agreement == 1 - wrong / 64
    assert np.array_equal(np.asarray(found.outputs).argmax(1) == LABELS, np.arange(COUNT) >= (0 if trusted else wrong))
    assert not scorer.outputs(_target(on_board, Board), path, split, "val", there=True).on_host


def _mistaken(rows: np.ndarray, wrong: int) -> np.ndarray:
    """What makes the first examples be decided for the next class."""
    return np.where(rows[:, None] < wrong, 2 * np.roll(RIGHT[rows], 1, axis=1), 0).astype(np.float32)


@pytest.mark.parametrize(("seconds", "slow"), [(1.5, []), (1.7, ["val"]), (48.1, ["val", "test"])])
def test_what_takes_a_board_too_long_is_scored_on_the_host(
    tmp_path: Path, path: Path, split: Split, monkeypatch: pytest.MonkeyPatch, seconds: float, slow: list[str]
) -> None:
    """Sixteen examples are tried: val, of a hundred, may take ten seconds, and test five minutes."""
    ticks = iter([0.0, seconds])
    monkeypatch.setattr(scoring.time, "perf_counter", lambda: next(ticks))
    noted: list[Any] = []
    tried: list[int] = []
    board = _target(lambda rows: tried.append(len(rows)) or [RIGHT[rows]], Board)  # type: ignore[func-returns-value]
    _scorer(tmp_path, noted=noted).decide(board, path, {"val": split, "test": split})
    assert noted == [("scored_on_host", slow, "fake")]
    assert tried == [4, 16]
    _scorer(tmp_path, {"fake": []}).decide(board, path, {"val": split})
    _scorer(tmp_path).decide(_target(lambda rows: tried.append(len(rows)) or []), path, {"val": split})  # type: ignore[func-returns-value]
    assert len(tried) == 2, "it is tried once in a run, and on what is remote alone"

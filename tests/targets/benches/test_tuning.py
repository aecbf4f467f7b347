"""Settings that make a model fast and change nothing else: what is tried, what is taken, and what is said of it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner
from rich.console import Console

import targets
from compress.commands.bench import bench_command
from compress.reports.tuning_tables import print_tuned
from targets import registry
from targets.benches.tuning import tune
from targets.errors import RequestError, TargetError
from targets.settings import Setting, canonical_name
from targets.testing import reference_model


class Tunable(targets.FakeTarget):
    """Two threads take 0.6 of the time of one; ``extra`` helps by 1 % and ``level=low`` takes twice as long."""

    base = "tunable"
    settings: ClassVar[Mapping[str, Setting]] = {
        "threads": Setting(1, least=1, counts_cores=True),
        "level": Setting("high", words=("high", "low"), tried=("high", "low")),
        "extra": Setting(0, least=0, most=1, tried=(0, 1)),
        "accuracy": Setting("full", words=("full", "half")),
    }

    def __init__(self, **values: Any) -> None:
        self.values = values
        share = {1: 1.0, 2: 0.6}.get(values["threads"], 0.8)
        share *= 2.0 if values["level"] == "low" else 1.0
        share *= 0.99 if values["extra"] else 1.0
        super().__init__(canonical_name(self.base, self.settings, values), cost=lambda _: 1e-3 * share, noise=0.01)


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry._known()
    monkeypatch.setattr(registry, "_known", lambda: {**known, "tunable": f"{__name__}:Tunable"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return reference_model(tmp_path / "m.onnx")


def test_what_is_faster_by_more_than_a_tie_is_taken(model: Path) -> None:
    found = tune(model, "tunable")
    assert (found.asked, found.best) == ("tunable", "tunable:threads=2")
    assert found.gain.value == pytest.approx(0.6, rel=0.03)
    assert {one.target: one.against for one in found.tried} == {
        "tunable:threads=2": "tunable",
        "tunable:threads=4": "tunable",
        "tunable:level=low,threads=2": "tunable:threads=2",
        "tunable:extra=1,threads=2": "tunable:threads=2",
    }, "what changes results is left alone"
    assert [one.target for one in found.tried if one.faster] == ["tunable:threads=2", "tunable:threads=4"]


def test_settings_that_are_given_stay(model: Path) -> None:
    found = tune(model, "tunable:threads=1", seconds=5.0)
    assert found.best == found.asked == "tunable"
    assert {one.target for one in found.tried} == {"tunable:level=low", "tunable:extra=1"}
    assert (found.gain.value, found.gain.low, found.gain.high) == (1.0, 1.0, 1.0)


def test_where_the_time_is_over_three_turns_do(model: Path) -> None:
    turns: list[str] = []
    tune(model, "tunable:threads=1,extra=0", seconds=1e-6, watch=lambda estimate: turns.append(estimate.stage))
    assert turns == ["turn 1 of 5"] * 2 + ["turn 2 of 5"] * 2 + ["turn 3 of 5"] * 2


@pytest.mark.parametrize(
    ("target", "error", "said"),
    [
        ("fake", RequestError, "target 'fake' has no setting left that could be tuned"),
        ("tunable:threads=1,level=high,extra=0", RequestError, "no setting left that could be tuned"),
        ("tunable:colour=red", TargetError, "has no setting 'colour'"),
        ("nowhere", TargetError, "unknown target 'nowhere'"),
    ],
)
def test_what_cannot_be_tuned_is_said_in_one_line(model: Path, target: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said.replace("(", r"\(")):
        tune(model, target)


def test_the_target_to_use_is_printed(model: Path) -> None:
    file = io.StringIO()
    found = [tune(model, "tunable"), tune(model, "tunable:threads=2")]
    print_tuned(found, Console(file=file, force_terminal=False))
    text = file.getvalue()
    assert "Use --target tunable:threads=2: 0.60x [" in text
    assert "No other settings are faster: use --target tunable:threads=2." in text
    assert max(map(len, text.splitlines())) <= 120
    [row] = [line for line in text.splitlines() if line.startswith("tunable:extra=1,threads=2 ")][:1]
    assert row.split()[-1] == "tied"


def test_the_command_prints_json_and_refuses_what_does_not_go_together(model: Path) -> None:
    done = CliRunner().invoke(bench_command, [str(model), "--tune", "--target", "tunable", "--json"])
    assert done.exit_code == 0, done.output
    [tuned] = json.loads(done.stdout)["tuned"]
    assert tuned["best"] == "tunable:threads=2"
    assert len(tuned["tried"]) == 4
    for arguments, said in (
        ([str(model)], "one model, 2 were given"),
        (["--save", "f.json"], "does not go with --save"),
    ):
        refused = CliRunner().invoke(bench_command, [str(model), "--tune", *arguments])
        assert isinstance(refused.exception, RequestError)
        assert said in str(refused.exception)

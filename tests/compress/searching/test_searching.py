"""A whole search on a made-up device: samplers, constraints, data, and what cannot be asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import torch
from torch.utils.data import TensorDataset

import compress
from compress.results import Result
from compress.searching import trial_loop
from hearing import Heard
from targets.errors import NoFeasibleCandidate, RequestError
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import COUNTS, Capabilities

Search = Callable[..., Result]


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    """A report less what differs from run to run: seconds, counts of computed and cached, and the machine's load."""
    return {key: value for key, value in report.items() if key not in ("wall_s", "stages", "environment")}


# -- the same again


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    finished: Result, search: Search, tmp_path: Path
) -> None:
    again = search(trials=6, out=tmp_path / "again")
    assert without_times(again.report) == without_times(finished.report)
    other = search(trials=6, out=tmp_path / "other", seed=1)
    assert [c.config for c in other.candidates()] != [c.config for c in finished.candidates()]


# -- samplers


@pytest.mark.parametrize(
    "sampler",
    [
        "tpe",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gp", "nsga2", "random", "grid")),
        pytest.param(optuna.samplers.TPESampler(), marks=pytest.mark.slow),
    ],
)
def test_every_sampler_can_be_asked_for(search: Search, sampler: Any) -> None:
    result = search(trials=7, sampler=sampler, constraints=["quality_drop<=0.9"])
    report = result.report
    assert report["trials"]["finished"] == 7
    assert len({json.dumps(t.params) for t in result._run.state.trials.values()}) == 7
    assert len({json.dumps(c["config"]["prune"]) for c in report["candidates"]}) >= 5
    assert report["failures"] == []


def test_a_grid_ends_when_all_of_it_was_tried(search: Search, tiny: ModuleType) -> None:
    space = replace(tiny.SPACE, prune_ratio=0.5, epochs=1, calibration=compress.Choice("minmax", "percentile"))
    notes = Heard()
    result = search(sampler="grid", space=space, trials=50, progress=notes)
    assert result.report["trials"] == {"asked": 2, "finished": 2, "gated": 0, "failed": 0}
    assert "the grid is exhausted" in notes.notes


# -- constraints


def test_what_cannot_be_fast_enough_is_gated_before_training(search: Search) -> None:
    result = search(trials=3, constraints=["latency<=0.6x", "quality_drop<=0.5"])
    report = result.report
    trials = report["trials"]
    assert trials["finished"] == 3
    assert trials["gated"] > 0
    assert trials["asked"] == trials["finished"] + trials["gated"]
    assert report["stages"]["finetune"]["count"] <= 3
    assert {c["trial"] for c in report["candidates"]} - {None} == {
        t.number for t in result._run.state.trials.values() if t.state == "finished"
    }
    told = [trial for trial in result.study().trials if trial.user_attrs.get("gated")]
    assert len(told) == trials["gated"]
    for trial in told:
        assert list(trial.constraints) == ["latency<=0.6x@fake", "quality_drop<=0.5@fake"]
        assert trial.constraints["latency<=0.6x@fake"] > 0
    assert result.pick("fastest").latency.ratio <= 0.6  # type: ignore[union-attr]


@pytest.mark.parametrize(("share", "gated"), [(1.0, 0), (1 - 1e-6, 1)])
def test_what_is_just_as_fast_as_is_asked_is_trained(
    search: Search, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, share: float, gated: int
) -> None:
    """The gate turns away what is beyond a limit, not what is at it."""
    monkeypatch.setattr(trial_loop, "_FRUITLESS", 2)
    space = compress.SearchSpace(epochs=1, l1=0.0, precision="fp32", prune_ratio=0.5, prune_delta=0.0)
    made = search(trials=1, space=space, sampler="random", out=tmp_path / "free")
    [pruned] = [one for one in made.candidates() if one.id != "baseline"]
    assert pruned.latency is not None
    limit = f"latency<={share * pruned.latency.p50!r}s"
    report = search(trials=1, space=space, sampler="random", constraints=[limit], out=tmp_path / "limited").report
    assert report["trials"]["gated"] >= gated
    assert (report["trials"]["finished"] == 1) is (gated == 0)


def test_a_search_for_the_impossible_ends(search: Search, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trial_loop, "_FRUITLESS", 6)
    notes = Heard()
    result = search(trials=3, constraints=["size<=1B"], progress=notes)
    report = result.report
    assert not report["satisfied"]
    assert report["trials"] == {"asked": 6, "finished": 0, "gated": 6, "failed": 0}
    assert report["nearest_miss"]["fake"]["id"] == "baseline"
    assert report["nearest_miss"]["fake"]["by"]["size<=1B"] > 1000
    assert report["front"] == {"fake": []}
    assert set(report["picks"]["fake"].values()) == {None}
    assert not (tmp_path / "run" / "best").exists()
    assert any("loosen size<=1B" in note for note in notes.notes)
    with pytest.raises(NoFeasibleCandidate, match="no candidate meets size<=1B on fake; the nearest miss is baseline"):
        result.pick("fastest")


def test_a_limit_on_quality_names_the_nearest_miss(search: Search, tmp_path: Path) -> None:
    report = search(trials=2, constraints=["quality>=0.999"]).report
    assert not report["satisfied"]
    miss = report["nearest_miss"]["fake"]
    qualities = {c["id"]: c["measured"]["fake"]["quality"]["val"]["value"] for c in report["candidates"]}
    qualities.pop("baseline")
    assert qualities[miss["id"]] == max(qualities.values())
    assert miss["by"] == {"quality>=0.999": pytest.approx(0.999 - max(qualities.values()))}
    assert not (tmp_path / "run" / "best").exists()


def test_three_objectives(search: Search) -> None:
    result = search(trials=4, objectives=["quality", "latency", "size"], constraints=["quality_drop<=0.9"])
    assert result.report["objectives"] == ["quality", "latency", "size"]
    assert result.study().metric_names == ["quality_loss", "latency", "size"]
    two = compress.open_run(result.folder)
    assert len(two.front()) >= 2


@pytest.mark.parametrize("count", COUNTS)
def test_counted_cost_is_an_objective_of_its_own(search: Search, count: str) -> None:
    target = FakeTarget("fake", instructions=count == "instructions", cycles=count == "cycles")
    result = search(target=target, trials=2, constraints=[f"{count}<=0.9x"])
    report = result.report
    assert report["objectives"] == ["quality", count]
    for candidate in report["candidates"]:
        assert candidate["measured"]["fake"]["latency"] is None
        assert candidate["measured"]["fake"][count] > 0
    assert result.pick("fastest").id != "baseline"


# -- data


def test_without_a_test_split_every_verdict_is_open_and_it_is_said(search: Search, task: compress.Task) -> None:
    notes = Heard()
    report = search(task=replace(task, test=None), trials=2, progress=notes).report
    assert {pick["verdict"] for pick in report["picks"]["fake"].values()} == {"open"}
    assert {pick["read"] for pick in report["picks"]["fake"].values()} == {0}
    assert report["satisfied"]
    assert any("no test split" in warning for warning in report["environment"]["warnings"])
    assert any("no test split" in note for note in notes.notes)


def test_examples_that_two_splits_share_are_reported(search: Search, task: compress.Task) -> None:
    images, labels = task.test.tensors
    both = TensorDataset(torch.cat([images, task.val.tensors[0][:7]]), torch.cat([labels, task.val.tensors[1][:7]]))
    notes = Heard()
    report = search(task=replace(task, test=both), trials=1, progress=notes).report
    assert any("val and test share 7 examples" in warning for warning in report["environment"]["warnings"])
    assert any("val and test share 7 examples" in note for note in notes.notes)


def test_slices_of_test_are_reported_for_the_picks(search: Search, task: compress.Task) -> None:
    labels = ["even" if int(y) % 2 == 0 else "odd" for y in task.test.tensors[1]]
    report = search(task=replace(task, slices={"parity": labels}), trials=1).report
    pick = report["picks"]["fake"]["fastest"]["id"]
    measured = next(c for c in report["candidates"] if c["id"] == pick)["measured"]["fake"]
    slices = measured["quality"]["slices"]["parity"]
    assert {name: quality["n"] for name, quality in slices.items()} == {
        "even": labels.count("even"), "odd": labels.count("odd"),
    }  # fmt: skip
    total = sum(quality["n"] * quality["value"] for quality in slices.values()) / len(labels)
    assert math.isclose(total, measured["quality"]["test"]["value"], abs_tol=1e-9)


# -- what cannot be asked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials=0: a whole number, at least 1"),
        ({"trials": 1.5}, "trials=1.5"),
        ({"time": "soon"}, "time 'soon' is not a duration; write 90s, 10min or 1h"),
        ({"time": 0}, "must be more than nothing"),
        ({"seed": -1}, "seed=-1: a whole number from 0"),
        ({"sampler": "magic"}, "unknown sampler 'magic'; use one of auto, gp"),
        ({"pick": "best"}, "unknown pick 'best'; use one of fastest"),
        ({"keep": "none"}, "keep 'none': use 'all' or 'front'"),
        ({"workers": 0}, "workers=0: a whole number, at least 1, is needed, or 'auto'"),
        ({"device": "tpu"}, "device 'tpu' cannot be used"),
        ({"objectives": ["quality"]}, "two or more"),
        ({"objectives": ["quality", "beauty"]}, "unknown objective 'beauty'"),
        ({"constraints": ["quality_drop"]}, "is not QUANTITY<=NUMBER"),
        ({"constraints": ["beauty<=3"]}, "unknown quantity 'beauty'"),
        ({"target": "nowhere"}, "unknown target 'nowhere'"),
        ({"target": ["fake", "fake"]}, "each may be given once"),
        ({"target": FakeTarget(capabilities=Capabilities(precisions=("int4",)))}, "none of the precisions"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line_and_leaves_nothing(
    search: Search, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        search(**{"trials": 1, **changes})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_way_to_where_quality_ends_is_halved(search: Search, tiny: ModuleType) -> None:
    # So small a rate brings nothing back: half of the channels lose far too much, and so do three eighths.
    found = search(space=replace(tiny.SPACE, lr=1e-7), trials=4, constraints=["quality_drop<=0.001"])
    trials = found.study().trials
    asked = {t.user_attrs["trial"]: t.params["prune_ratio"] for t in trials}
    assert [asked[number] for number in range(4)] == [0.0, 0.5, 0.375, 0.1875]

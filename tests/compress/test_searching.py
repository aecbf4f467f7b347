"""A whole search on a made-up device: what comes out, and that what goes wrong costs no more than it must."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import optuna
import pytest
import torch
from torch.utils.data import TensorDataset

import compress
from compress import confirming, loops, scoring
from compress.progress import Silent
from compress.run_results import Result
from targets import Capabilities, FakeTarget
from targets.errors import MeasurementError, NoFeasibleCandidate, RequestError, TransientError

Search = Callable[..., Result]
TOP = {
    "schema", "task", "seed", "wall_s", "environment", "objectives", "constraints", "satisfied", "targets", "baseline",
    "candidates", "front", "picks", "nearest_miss", "trials", "failures", "stages",
}  # fmt: skip
CANDIDATE = {"id", "path", "config", "size", "parameters", "macs", "parity", "measured"}
MEASURED = {"quality", "quality_drop", "latency", "memory", "instructions", "feasible"}


class Notes(Silent):
    """Keeps what the search said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.outcomes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def outcome(self, text: str) -> None:
        self.outcomes.append(text)


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    """A report less what differs from run to run: seconds, counts of computed and cached, and the machine's load."""
    return {key: value for key, value in report.items() if key not in ("wall_s", "stages", "environment")}


# -- the finished run


def test_the_report_has_the_keys_of_the_contract(finished: Result) -> None:
    report = json.loads((finished.folder / "report.json").read_text())
    assert set(report) == TOP
    assert report == finished.report
    assert report["schema"] == 1
    assert (report["task"], report["seed"]) == ("tiny", 0)
    assert report["objectives"] == ["quality", "latency"]
    assert report["constraints"] == ["quality_drop<=0.01"]
    assert report["trials"] == {"asked": 6, "finished": 6, "gated": 0, "failed": 0}
    assert report["failures"] == []
    assert report["wall_s"] > 0
    for candidate in report["candidates"]:
        assert set(candidate) - {"trial", "sha256"} == CANDIDATE
        assert set(candidate["parity"]) == {"max_abs", "agreement"}
        measured = candidate["measured"]["fake"]
        assert set(measured) - {"scored_on_host", "integer"} == MEASURED
        assert set(measured["quality"]) == {"val", "test", "slices"}
        assert set(measured["quality"]["val"]) == {"metric", "value", "low", "high", "n"}
        assert set(measured["quality_drop"]) == {"val", "test"}
        assert set(measured["latency"]) - {"disturbed", "settled"} == {"p50", "p95", "ratio", "low", "high", "runs"}


def test_the_baseline_is_one_of_the_candidates_and_all_have_their_files(finished: Result) -> None:
    report = finished.report
    by_id = {candidate["id"]: candidate for candidate in report["candidates"]}
    assert len(by_id) == len(report["candidates"]) > 12
    baseline = by_id[report["baseline"]]
    assert baseline["measured"]["fake"]["latency"]["ratio"] == 1.0
    assert baseline["measured"]["fake"]["quality_drop"]["val"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    for candidate in by_id.values():
        path = finished.folder / candidate["path"]
        assert path.stat().st_size == candidate["size"]
        if candidate is not baseline:
            assert (path.parent / "candidate.json").exists()


def test_the_front_is_what_no_other_dominates_and_the_picks_are_on_it(finished: Result) -> None:
    report = finished.report
    points = {
        c["id"]: (-c["measured"]["fake"]["quality"]["val"]["value"], c["measured"]["fake"]["latency"]["ratio"])
        for c in report["candidates"]
        if c["measured"]["fake"]["quality_drop"]["val"]["value"] <= 0.01 + 1e-9
    }
    feasible = {c["id"] for c in report["candidates"] if c["measured"]["fake"]["feasible"]}
    assert feasible == set(points)
    front = {
        name
        for name, (loss, cost) in points.items()
        if not any(x <= loss and y <= cost and (x, y) != (loss, cost) for x, y in points.values())
    }
    assert set(report["front"]["fake"]) == front
    assert [points[name][0] for name in report["front"]["fake"]] == sorted(points[name][0] for name in front)
    picks = report["picks"]["fake"]
    assert set(picks) == {"fastest", "knee", "smallest", "most_accurate"}
    assert {pick["id"] for pick in picks.values()} <= front
    assert points[picks["fastest"]["id"]][1] <= 1.03 * min(points[name][1] for name in front)
    assert points[picks["most_accurate"]["id"]][0] == min(points[name][0] for name in front)
    assert [c.id for c in finished.front()] == report["front"]["fake"]


def test_picks_were_read_on_test_and_nothing_else_was(finished: Result) -> None:
    report = finished.report
    read = {c["id"] for c in report["candidates"] if c["measured"]["fake"]["quality"]["test"] is not None}
    picks = report["picks"]["fake"].values()
    assert read == {"baseline"} | {pick["id"] for pick in picks} | {name for pick in picks for name in pick["refuted"]}
    assert all(1 <= pick["read"] <= 3 and pick["verdict"] in ("confirmed", "open", "refuted") for pick in picks)


def test_best_is_the_fastest_pick_with_its_manifest(finished: Result) -> None:
    best = finished.folder / "best"
    manifest = json.loads((best / "manifest.json").read_text())
    digest = hashlib.sha256((best / "model.onnx").read_bytes()).hexdigest()
    pick = finished.pick("fastest")
    assert finished.satisfied
    assert manifest["sha256"] == digest == hashlib.sha256(pick.path.read_bytes()).hexdigest()
    assert manifest["id"] == pick.id
    assert manifest["config"] == pick.config
    assert manifest["measurements"]["measured"]["fake"]["latency"]["ratio"] == pick.latency.ratio  # type: ignore[union-attr]
    assert {"measurements", "environment", "reproduce"} <= set(manifest)
    before = pick.path.read_bytes()
    assert (best / "model.onnx").stat().st_ino != pick.path.stat().st_ino, (
        "what is done to best/ must not reach the run"
    )
    assert pick.path.read_bytes() == before


def test_stages_are_counted(finished: Result) -> None:
    stages = finished.report["stages"]
    assert {"finetune", "quantize", "export", "measure", "score", "prune", "report"} <= set(stages)
    trained = stages["finetune"]["count"] + stages["finetune"]["cached"]
    assert trained == 5, "one of the six trials is not trained at all"
    for row in stages.values():
        assert set(row) == {"count", "cached", "seconds"}
        assert row["seconds"] >= 0


def test_a_picks_module_computes_what_its_file_does(finished: Result, task: compress.Task) -> None:
    images = task.val.tensors[0][:64]
    for candidate in finished.candidates():
        if candidate.config["precision"]["scheme"] != "fp32":
            continue
        session = onnxruntime.InferenceSession(candidate.path, providers=["CPUExecutionProvider"])
        [found] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, candidate.module()(images).numpy(), atol=1e-4)
        assert sum(p.numel() for p in candidate.module().parameters()) <= candidate.candidate.parameters


def test_the_study_holds_every_candidate_with_its_constraints(finished: Result) -> None:
    study = finished.study()
    names = [trial.user_attrs["candidate"] for trial in study.trials]
    assert set(names) == {c.id for c in finished.candidates() if c.id != "baseline"}
    values = {c.id: c for c in finished.candidates()}
    for trial in study.trials:
        seen = values[trial.user_attrs["candidate"]].candidate.measured["fake"]
        drop = seen.quality_drop.val.value
        assert trial.values[0] == pytest.approx(drop)
        assert trial.constraints == pytest.approx({"quality_drop<=0.01@fake": min(10.0, (drop - 0.01) / 0.01)})


def test_a_result_answers_what_is_asked_of_it(finished: Result) -> None:
    pick = finished.pick("smallest")
    assert pick.path.is_file()
    assert pick.size == pick.path.stat().st_size == min(c.size for c in finished.front())
    assert pick.verdict == finished.report["picks"]["fake"]["smallest"]["verdict"]
    assert pick.test_quality is not None
    assert finished.hypervolume() == finished.report["targets"]["fake"]["hypervolume"] > 0
    assert finished.baseline.quality.value > 0.9
    with pytest.raises(RequestError, match="unknown pick 'best'; use one of fastest"):
        finished.pick("best")
    with pytest.raises(RequestError, match="target 'ort-cpu' is not in this run; it has fake"):
        finished.front("ort-cpu")


def test_an_opened_run_says_the_same_but_has_no_modules(finished: Result) -> None:
    opened = compress.open_run(finished.folder)
    assert opened.report == finished.report
    with pytest.raises(RequestError, match=r"opened without its task.*call compress\.search"):
        opened.pick("fastest").module()


# -- the same again


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    finished: Result, search: Search, tmp_path: Path
) -> None:
    again = search(trials=6, out=tmp_path / "again")
    assert without_times(again.report) == without_times(finished.report)
    other = search(trials=6, out=tmp_path / "other", seed=1)
    assert [c.config for c in other.candidates()] != [c.config for c in finished.candidates()]


# -- samplers


@pytest.mark.parametrize("sampler", ["gp", "tpe", "nsga2", "random", "grid", optuna.samplers.TPESampler()])
def test_every_sampler_can_be_asked_for(search: Search, sampler: Any) -> None:
    result = search(trials=7, sampler=sampler, constraints=["quality_drop<=0.9"])
    report = result.report
    assert report["trials"]["finished"] == 7
    assert len({json.dumps(t.params) for t in result._run.state.trials.values()}) == 7
    assert len({json.dumps(c["config"]["prune"]) for c in report["candidates"]}) >= 5
    assert report["failures"] == []


def test_a_grid_ends_when_all_of_it_was_tried(search: Search, tiny: ModuleType) -> None:
    space = replace(tiny.SPACE, prune_ratio=0.5, epochs=1, calibration=compress.Choice("minmax", "percentile"))
    notes = Notes()
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


def test_a_search_for_the_impossible_ends(search: Search, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loops, "_FRUITLESS", 6)
    notes = Notes()
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


def test_counted_cost_is_an_objective_of_its_own(search: Search) -> None:
    result = search(target=FakeTarget("fake", instructions=True), trials=2, constraints=["instructions<=0.9x"])
    report = result.report
    assert report["objectives"] == ["quality", "instructions"]
    for candidate in report["candidates"]:
        assert candidate["measured"]["fake"]["latency"] is None
        assert candidate["measured"]["fake"]["instructions"] > 0
    assert result.pick("fastest").id != "baseline"


# -- failures


def test_a_measurement_that_fails_costs_one_trial(search: Search) -> None:
    class Once(FakeTarget):
        """Refuses the second trial's files."""

        measured = 0

        def measure(self, models: Any, **options: Any) -> Any:
            self.measured += 1
            if self.measured == 3:  # 1: the baseline, 2: the first trial
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
            if self.measured == 3:
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

    monkeypatch.setattr(loops, "_FRUITLESS", 3)
    report = search(task=replace(task, finetune=broken), trials=2).report
    assert report["trials"]["failed"] >= 3
    for failure in report["failures"]:
        assert failure["stage"] == "finetune"
        assert "no such optimizer" in failure["cause"]
        assert "test_searching.py:" in failure["cause"]


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
    monkeypatch.setattr(loops, "_FRUITLESS", 2)
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

    def measure_on(context: Any, target: Any, paths: Any, *rest: Any) -> Any:
        if any(Path(path).parent.name == slow for path in paths):
            raise MeasurementError("fake: it hung")
        return real(context, target, paths, *rest)

    real = confirming.latencies.measure_on
    monkeypatch.setattr(confirming, "latencies", _Replaced(confirming.latencies, measure_on=measure_on))
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


def test_a_pick_that_cannot_be_read_on_test_stays_open(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    real = scoring.score

    def score(context: Any, target: Any, path: Path, split: Any, which: str, **options: Any) -> Any:
        if which == "test" and path != context.baseline_path:
            raise MeasurementError("fake: the device is gone")
        return real(context, target, path, split, which, **options)

    monkeypatch.setattr(scoring, "score", score)
    report = search(trials=2).report
    assert {pick["verdict"] for pick in report["picks"]["fake"].values()} == {"open"}
    assert report["satisfied"]
    assert all("could not be read on test" in failure["cause"] for failure in report["failures"])
    assert report["failures"]


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


# -- data


def test_without_a_test_split_every_verdict_is_open_and_it_is_said(search: Search, task: compress.Task) -> None:
    notes = Notes()
    report = search(task=replace(task, test=None), trials=2, progress=notes).report
    assert {pick["verdict"] for pick in report["picks"]["fake"].values()} == {"open"}
    assert {pick["read"] for pick in report["picks"]["fake"].values()} == {0}
    assert report["satisfied"]
    assert any("no test split" in warning for warning in report["environment"]["warnings"])
    assert any("no test split" in note for note in notes.notes)


def test_examples_that_two_splits_share_are_reported(search: Search, task: compress.Task) -> None:
    images, labels = task.test.tensors
    both = TensorDataset(torch.cat([images, task.val.tensors[0][:7]]), torch.cat([labels, task.val.tensors[1][:7]]))
    notes = Notes()
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
        ({"workers": 2}, "workers=2: this version trains one network at a time"),
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

"""A finished run: its report, front, picks, files and study agree with each other and keep the contract."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnxruntime
import pytest
import torch

import compress
from compress.results import Result
from targets.errors import RequestError

TOP = {
    "schema", "task", "seed", "wall_s", "environment", "objectives", "constraints", "satisfied", "targets", "baseline",
    "candidates", "front", "picks", "nearest_miss", "trials", "failures", "stages",
}  # fmt: skip
CANDIDATE = {"id", "path", "config", "size", "parameters", "macs", "parity", "measured"}
MEASURED = {"quality", "quality_drop", "latency", "memory", "instructions", "feasible"}


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
        assert set(measured["quality"]) == {"val", "test", "slices", "classes"}
        assert set(measured["quality"]["val"]) == {"metric", "value", "low", "high", "n"}
        assert set(measured["quality_drop"]) == {"val", "test"}
        assert set(measured["latency"]) - {"disturbed", "settled"} == {"p50", "p95", "ratio", "low", "high", "runs"}


def test_the_baseline_is_one_of_the_candidates_and_all_have_their_files(finished: Result) -> None:
    report = finished.report
    by_id = {candidate["id"]: candidate for candidate in report["candidates"]}
    # How many there are depends on which of them come to the very same file.
    assert len(by_id) == len(report["candidates"]) > report["trials"]["finished"]
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
    assert {pick["id"] for which, pick in picks.items() if which != "smallest"} <= front
    # Size is no objective here, so the front says nothing about it.
    assert picks["smallest"]["id"] in feasible
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
    feasible = [c for c in finished.report["candidates"] if c["measured"]["fake"]["feasible"]]
    assert pick.size == pick.path.stat().st_size == min(c["size"] for c in feasible)
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

"""Sentences on what a run has found out about its targets and its networks."""

from __future__ import annotations

from typing import Any

from compress.reports import target_notes


def candidate(name: str) -> dict[str, Any]:
    """One that ran at half of the baseline's time."""
    latency = {"p50": 1e-5, "p95": 1e-5, "ratio": 0.5, "low": 0.5, "high": 0.5, "runs": 9}
    quality = {"metric": "accuracy", "value": 0.9, "low": 0.8, "high": 0.95, "n": 100}
    measured = {
        "quality": {"val": quality, "test": None, "slices": {}}, "latency": latency, "memory": None,
        "quality_drop": {"val": {"value": 0.0, "low": 0.0, "high": 0.0}, "test": None}, "instructions": None,
    }  # fmt: skip
    config = {"precision": {"scheme": "fp32"}, "widths": {}}
    return {"id": name, "config": config, "size": 100, "macs": 10, "measured": {"ort-cpu": measured}}


def report(*candidates: dict[str, Any], **rest: Any) -> dict[str, Any]:
    everything = [candidate("baseline"), *candidates]
    return {
        "targets": {"ort-cpu": {}, "other": {}}, "baseline": "baseline", "candidates": everything,
        "objectives": ["quality", "latency"], "front": {"ort-cpu": []}, "picks": {"ort-cpu": {}}, "failures": [],
        "environment": {}, "constraints": [], **rest,
    }  # fmt: skip


def test_a_machine_that_moved_during_the_run_is_said_with_the_times() -> None:
    moved = report(candidate("0001-fp32"), environment={"beside": {"ort-cpu": [46e-6, 60e-6]}})
    [text] = target_notes.notes(moved, "ort-cpu")
    assert "46" in text
    assert "60" in text
    assert target_notes.notes(report(environment={"beside": {"ort-cpu": [46e-6, 47e-6]}}), "ort-cpu") == []


LEARNT = {
    "measured": 24, "cost_error": 0.012, "worst_cost_error": 0.08, "read": 12, "calibration": 1.08, "within": 0.6,
    "left_out": ["int8-dynamic"],
}  # fmt: skip


def test_what_was_foretold_is_said_with_how_far_it_was_off() -> None:
    costs, qualities, left = target_notes.notes(report(environment={"learnt": LEARNT}), "ort-cpu")
    assert "24" in costs
    assert "off by 1 %" in costs
    assert "1.08" in qualities
    assert "int8-dynamic" in left
    assert target_notes.notes(report(environment={"learnt": LEARNT}), "other") == []


def test_what_an_npu_leaves_to_the_cpu_is_said() -> None:
    one = candidate("0001-int8")
    one["config"]["precision"]["scheme"] = "int8"
    one["measured"]["ort-cpu"] |= {
        "integer": {"integer": 4, "layers": 5, "why": ["SIN on the CPU"], "on_npu": True}, "feasible": True,
    }  # fmt: skip
    picks = {"ort-cpu": {"fastest": {"id": "0001-int8", "verdict": "open"}}}
    [text] = target_notes.notes(report(one, picks=picks), "ort-cpu")
    assert text == "`0001-int8` runs 4 of its 5 operators on the NPU; the other: SIN on the CPU."


def test_a_few_readings_say_nothing_about_calibration() -> None:
    few = report(environment={"learnt": {**LEARNT, "read": 3, "left_out": []}})
    assert len(target_notes.notes(few, "ort-cpu")) == 1
    assert target_notes.notes(report(), "ort-cpu") == []

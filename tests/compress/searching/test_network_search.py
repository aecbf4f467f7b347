"""Searches that choose networks by their costs: what they train, what they go on from, and that it repeats."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import compress
from compress.results import Result
from compress.values.networks import network_of
from targets.runtimes.fake.fake_target import FakeTarget

Search = Callable[..., Result]


def asked(folder: Path) -> list[dict[str, Any]]:
    """Every trial of a run as it was asked."""
    lines = (json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == "asked"]


@pytest.fixture(scope="module")
def chosen(task: compress.Task, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished run of nine trials, in which networks were chosen; tests look at it, none may change it."""
    folder = tmp_path_factory.mktemp("chosen") / "run"
    return compress.search(task, FakeTarget(), trials=9, space=tiny.SPACE, out=folder, sampler="cost-aware")


def test_the_untouched_baseline_comes_first_and_then_networks_each_once(chosen: Result) -> None:
    first, *others = asked(chosen.folder)
    assert network_of(first["params"]) is None
    networks = [network_of(one["params"]) for one in others]
    assert None not in networks
    assert len(set(networks)) == len(networks) == 8
    assert chosen.report["trials"] == {"asked": 9, "finished": 9, "gated": 0, "failed": 0}


def test_what_a_trial_was_expected_to_cost_is_written_down_and_right(chosen: Result) -> None:
    measured = {c["id"]: c["measured"]["fake"]["latency"]["ratio"] for c in chosen.report["candidates"]}
    errors = [
        abs(one["why"]["cost"]["fp32"] / measured[f"{one['trial']:04d}-fp32"] - 1)
        for one in asked(chosen.folder)[1:]
        if f"{one['trial']:04d}-fp32" in measured
    ]
    assert len(errors) >= 4
    assert np.median(errors) < 0.1


def test_a_precision_is_made_where_it_is_cheaper_than_a_more_exact_one(chosen: Result) -> None:
    for one in asked(chosen.folder)[1:]:
        costs = one["why"]["cost"]
        if costs["int8"] > costs["fp32"]:
            assert "int8" not in one["precisions"]
        assert one["precisions"]


def test_a_precision_that_pays_for_the_baseline_alone_is_found_out(
    task: compress.Task, tiny: ModuleType, tmp_path: Path
) -> None:
    """In mixed precision the untouched network takes 0.9 of its time, and every smaller one 1.6 of its own."""
    largest = 0.0

    def seconds(path: Path) -> float:
        nonlocal largest
        graph = onnx.load(path).graph
        elements = sum(math.prod(one.dims) for one in graph.initializer if len(one.dims) > 1)
        largest = max(largest, elements)
        is_mixed = any(node.op_type == "DequantizeLinear" for node in graph.node)
        return 1e-9 * elements * ((0.9 if elements > 0.95 * largest else 1.6) if is_mixed else 1.0)

    space = replace(tiny.SPACE, precision=compress.Choice("fp32", "mixed"))
    target = FakeTarget(cost=seconds)
    compress.search(
        task, target, trials=8, space=space, out=tmp_path / "run", sampler="cost-aware",
        constraints=["quality_drop<=1"],
    )  # fmt: skip
    first, *later = asked(tmp_path / "run")[1:]
    assert first["why"]["cost"]["mixed"] < first["why"]["cost"]["fp32"]
    assert "mixed" in first["precisions"]
    assert len(later) == 6
    for one in later:
        assert one["why"]["cost"]["mixed"] == pytest.approx(1.6 * one["why"]["cost"]["fp32"], rel=0.1)
        assert "mixed" not in one["precisions"]


def test_what_another_target_gains_by_is_made_of_trained_networks_too(
    task: compress.Task, tiny: ModuleType, tmp_path: Path
) -> None:
    """On the first target int8 takes 1.5 of the time of fp32; on the second one a third."""

    def costing(int8: float) -> Callable[[Path], float]:
        def seconds(path: Path) -> float:
            graph = onnx.load(path).graph
            elements = sum(math.prod(one.dims) for one in graph.initializer if len(one.dims) > 1)
            return 1e-9 * elements * (int8 if any(n.op_type == "DequantizeLinear" for n in graph.node) else 1.0)

        return seconds

    targets = [FakeTarget(cost=costing(1.5)), FakeTarget("fake2", cost=costing(1 / 3))]
    space = replace(tiny.SPACE, precision=compress.Choice("fp32", "int8"))
    report = compress.search(
        task, targets, trials=3, space=space, out=tmp_path / "run", sampler="cost-aware",
        constraints=["quality_drop<=1"],
    ).report  # fmt: skip
    first, *later = asked(tmp_path / "run")[1:]
    assert list(first["why"]["cost"]) == ["fp32"], "what pays on the first target"
    assert [one["precisions"] for one in (first, *later)] == [["fp32", "int8"]] * 2
    assert "int8" in report["picks"]["fake2"]["fastest"]["id"]


def test_a_limit_on_memory_is_met_by_what_is_trained_and_its_memory_was_known(
    task: compress.Task, tiny: ModuleType, tmp_path: Path
) -> None:
    found = compress.search(
        task, FakeTarget(), trials=4, space=replace(tiny.SPACE, precision="fp32"), out=tmp_path / "run",
        sampler="cost-aware", objectives=["quality", "memory"], constraints=["quality_drop<=1", "memory<=0.3x"],
    )  # fmt: skip
    memory = {one["id"]: one["measured"]["fake"]["memory"] for one in found.report["candidates"]}
    trained = [one for one in asked(tmp_path / "run") if f"{one['trial']:04d}-fp32" in memory and "cost" in one["why"]]
    assert len(trained) >= 3
    for one in trained:
        ratio = memory[f"{one['trial']:04d}-fp32"] / memory["baseline"]
        assert ratio <= 0.3
        assert one["why"]["cost"]["fp32"] == pytest.approx(ratio, rel=0.01)


def test_networks_are_told_to_other_samplers_as_ratios(chosen: Result) -> None:
    study = chosen.study()
    ratios = [trial.params["prune_ratio"] for trial in study.trials]
    assert len({round(ratio, 3) for ratio in ratios}) > 4
    assert all(0.0 <= ratio <= 0.9 for ratio in ratios)


@pytest.mark.slow
def test_eight_trials_and_then_one_more_are_the_same_as_nine(chosen: Result, search: Search, tmp_path: Path) -> None:
    search(trials=8, sampler="cost-aware")
    search(trials=9)
    params = [one["params"] for one in asked(tmp_path / "run")]
    assert params == [one["params"] for one in asked(chosen.folder)]


def test_with_a_time_networks_are_trained_shortly_and_further_where_they_earn_it(
    search: Search, tmp_path: Path, tiny: ModuleType
) -> None:
    space = replace(tiny.SPACE, epochs=compress.Choice(1, 2, 3))
    found = search(time="40s", trials=8, space=space, constraints=["quality_drop<=0.05"])
    trials = asked(tmp_path / "run")
    further = [one for one in trials if one.get("after") is not None]
    assert further, "a network was worth more epochs"
    for one in further:
        before = trials[one["after"]]
        assert network_of(one["params"]) == network_of(before["params"])
    by_trial = {c["trial"]: c for c in found.report["candidates"]}
    longest = by_trial.get(further[-1]["trial"])
    if longest is not None:
        assert len(longest["config"]["rungs"]) >= 2


@pytest.mark.slow
def test_a_network_that_was_trained_further_can_be_gone_on_with_in_torch(
    search: Search, tmp_path: Path, task: compress.Task, tiny: ModuleType
) -> None:
    space = replace(tiny.SPACE, epochs=compress.Choice(1, 2), precision="fp32")
    found = search(time="40s", trials=8, space=space, constraints=["quality_drop<=0.05"])
    numbers = {one["trial"] for one in asked(tmp_path / "run") if one.get("after") is not None}
    candidate = next(c for c in found.candidates() if c.id[:4].isdigit() and int(c.id[:4]) in numbers)
    inputs = torch.stack([task.val[i][0] for i in range(5)])
    [outputs] = onnxruntime.InferenceSession(str(candidate.path)).run(None, {"input": inputs.numpy()})
    torch.testing.assert_close(candidate.module()(inputs), torch.from_numpy(outputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prune_ratio": 0.5}, "prune_ratio is not searched"),
        ({"prune_delta": 0.0}, "prune_delta is not searched"),
        ({"allocation": "global"}, "allocation is searched or set"),
        ({"depth": 0.5}, "depth is fixed"),
    ],
)
def test_a_space_that_leaves_no_networks_to_choose_is_said_and_searched_otherwise(
    search: Search, tmp_path: Path, tiny: ModuleType, changes: dict[str, Any], why: str
) -> None:
    from compress.searching.progress import Silent

    said: list[str] = []

    class Listening(Silent):
        """A progress that keeps the notes it is given."""

        def note(self, text: str) -> None:
            said.append(text)

    space = replace(tiny.SPACE, **{"epochs": 1, "precision": "fp32"} | changes)
    search(trials=2, sampler="cost-aware", space=space, progress=Listening())
    assert any(why in text for text in said)
    assert all(network_of(one["params"]) is None for one in asked(tmp_path / "run"))

"""The first candidates are there before anything else is found out, and stay where there is no time for more."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import compress
from compress.baseline import onnx_baselines
from compress.tasks.onnx_tasks import onnx_task
from targets.errors import RequestError
from targets.runtimes.fake.fake_target import FakeTarget
from uneven import uneven_model

SPACE = compress.SearchSpace(epochs=compress.Int(1, 2), precision=compress.Choice("fp32", "int8", "mixed"))
LIMITS = ["quality_drop<=0.9"]
"""So that int8 of all operators is good enough, whatever this CPU makes of it."""
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def task(exported: Path, tmp_path: Path) -> compress.Task:
    from sklearn.datasets import load_digits

    name = onnx.load(exported).graph.input[0].name
    np.savez(tmp_path / "data.npz", **{name: load_digits().images[:300, None].astype("float32") / 16})
    return onnx_task(exported, tmp_path / "data.npz")


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]


def test_they_come_before_the_file_is_imported_and_are_completed_after(task: compress.Task, tmp_path: Path) -> None:
    report = compress.search(task, FakeTarget(), constraints=LIMITS, space=SPACE, trials=1, out=tmp_path / "run").report
    events = _events(tmp_path / "run")
    said = [event["event"] if event["event"] == "finished" else event.get("stage") for event in events]
    assert said.index("finished") < said.index("import") < said.index("sensitivity")
    made = [[one["id"] for one in event["candidates"]] for event in events if "candidates" in event]
    assert made == [["0000-int8"], ["0000-mixed"]]
    assert report["trials"] == {"asked": 1, "finished": 1, "gated": 0, "failed": 0}
    again = compress.search(task, FakeTarget(), constraints=LIMITS, space=SPACE, trials=1, out=tmp_path / "run").report
    assert [one["id"] for one in again["candidates"]] == [one["id"] for one in report["candidates"]]


def test_they_stay_where_importing_takes_too_long(
    task: compress.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []

    def never(*_: object) -> None:
        begun.append(time.monotonic())
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(onnx_baselines, "imported", never)
    report = compress.search(
        task, FakeTarget(), constraints=LIMITS, space=SPACE, time="8s", out=tmp_path / "run"
    ).report
    # On a machine that is so slow that the time was over before, nothing was begun and nothing has to be said.
    told = [text for text in report["environment"]["warnings"] if "it is quantized, not pruned" in text]
    assert len(told) <= len(begun) <= 1
    assert not any(one["config"]["widths"] for one in report["candidates"]), "nothing is pruned"
    assert not begun or "0000-int8" in {one["id"] for one in report["candidates"]}
    assert report["picks"]["fake"]["fastest"] is not None


@pytest.mark.parametrize("memory", ["much", "2 bananas", "1kB", -5])
def test_memory_that_is_no_amount_is_refused(task: compress.Task, tmp_path: Path, memory: Any) -> None:
    with pytest.raises(RequestError, match=r"memory .* (is not an amount|is too little)"):
        compress.search(task, FakeTarget(), memory=memory, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _uneven(folder: Path) -> compress.Task:
    """A file with unlabelled samples."""
    onnx.save(uneven_model(17, 32), folder / "uneven.onnx")
    np.savez(folder / "data.npz", x=np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32))
    return onnx_task(folder / "uneven.onnx", folder / "data.npz")


def test_later_files_are_quantized_as_the_untouched_network_bears_it_best(tmp_path: Path) -> None:
    space = replace(SPACE, lr=1e-9)  # a rate at which such a network does not diverge
    compress.search(
        _uneven(tmp_path), FakeTarget(), constraints=["quality_drop<=0.05"], space=space, trials=3, time="2min",
        sampler="cost-aware", out=tmp_path / "run",
    )  # fmt: skip
    events = _events(tmp_path / "run")
    asked = {event["trial"]: event["params"] for event in events if event["event"] == "asked"}
    operators = {
        one["id"]: one["config"]["precision"]["int8_operators"]
        for event in events
        for one in event.get("candidates", ())
        if one["config"]["precision"]["scheme"] in ("int8", "mixed")
    }
    assert operators["0000-int8"] == "all"
    assert operators["0001-int8"] == operators["0001-mixed"] == "products"
    trained = [params for params in asked.values() if params["epochs"]]
    assert trained
    assert all(params["int8_operators"] == "products" for params in trained)

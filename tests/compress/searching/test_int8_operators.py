"""A file that int8 of all operators ruins: the search finds out which, tries without them, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import compress
from compress.results import Result
from compress.run_folder.records import Record
from compress.sampling.first_configs import steady
from compress.stages.quantizing import kept_in_float
from compress.tasks.onnx_tasks import onnx_task
from compress.values.configs import PrecisionSettings
from compress.values.domains import Choice
from public_files import FILES
from targets.runtimes.fake.fake_target import FakeTarget
from uneven import uneven_model


def _uneven(folder: Path) -> compress.Task:
    """A file with unlabelled samples."""
    onnx.save(uneven_model(11, 16), folder / "uneven.onnx")
    rows = np.random.default_rng(1).normal(size=(200, 16)).astype(np.float32)
    # No train split: it is quantized only, and nothing is trained.
    np.savez(folder / "data.npz", x=rows, split=np.array(["val"] * 120 + ["test"] * 80))
    return onnx_task(folder / "uneven.onnx", folder / "data.npz")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("uneven")
    return compress.search(
        _uneven(folder), FakeTarget(), constraints=["quality_drop<=0.2"], trials=3, sampler="grid", out=folder / "run"
    )


def test_the_operators_are_searched_and_save_the_file(result: Result) -> None:
    report = result.report
    asked = {c["config"]["precision"]["int8_operators"] for c in report["candidates"] if c["id"] != "baseline"}
    assert asked == {"all", "products"}
    by = {
        operators: [
            c
            for c in report["candidates"]
            if c["config"]["precision"].get("scheme") == "int8"
            and c["config"]["precision"]["int8_operators"] == operators
        ]
        for operators in asked
    }
    agreement = {
        name: max(c["measured"]["fake"]["quality"]["val"]["value"] for c in found) for name, found in by.items()
    }
    assert agreement["products"] > 0.9 > 0.6 > agreement["all"]
    assert min(min(c["config"]["fidelity"]["sqnr"].values()) for c in by["products"]) > 25
    assert all(
        max(c["config"]["fidelity"]["sqnr"].values()) < 10 and "lost in Mul" in c["config"]["fidelity"]["lost_in"]
        for c in by["all"]
    )


@pytest.mark.parametrize(("limit", "share"), [("quality_drop<=0.02", 0.15), ("quality>=1", 0.9)])
def test_of_a_file_that_is_quantized_only_the_share_in_float_is_found_by_halving(
    tmp_path: Path, limit: str, share: float
) -> None:
    """The usual share, 0.2, is good enough for the first limit: next is half of the way down; else the largest."""
    compress.search(_uneven(tmp_path), FakeTarget(), constraints=[limit], trials=3, out=tmp_path / "run")
    state = Record(tmp_path / "run" / "record.jsonl", write=False).state
    halving = [trial for trial in state.trials.values() if trial.precisions == ("mixed",)]
    shares = [trial.params["float_share"] for trial in halving]
    assert shares[0] == share
    assert len(set(shares)) == len(shares)


def test_the_first_config_is_the_one_that_seldom_hurts() -> None:
    assert steady("int8_operators", Choice("all", "products")) == "products"


def test_mixed_keeps_the_operator_in_float(result: Result) -> None:
    found = [
        c
        for c in result.report["candidates"]
        if c["config"]["precision"].get("scheme") == "mixed" and c["config"]["precision"]["int8_operators"] == "all"
    ]
    assert found
    assert max(c["measured"]["fake"]["quality"]["val"]["value"] for c in found) > 0.9


def test_the_report_says_why_int8_loses(result: Result) -> None:
    rows = result.report["environment"]["int8_damage"]
    assert rows[0]["operator"] == "Mul"
    assert rows[0]["alone"] < 10 < min(row["alone"] for row in rows if row["operator"] == "MatMul")
    assert all(row["saved"] is not None for row in rows if row["operator"] in ("Mul", "MatMul")), "each is timed"
    assert json.loads((result.folder / "report.json").read_text())["environment"]["int8_damage"] == rows
    page = (result.folder / "report.html").read_text()
    assert "Why int8 loses" in page
    assert "every Mul" in page
    assert "lost much of what the float network says" in page


def test_where_nothing_else_loses_there_is_no_such_dimension(tmp_path: Path) -> None:
    model, samples = FILES["residual-11"]()
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=samples["x"], split=np.array(["val"] * 20 + ["test"] * 12))
    task = onnx_task(tmp_path / "m.onnx", tmp_path / "data.npz")
    report = compress.search(task, FakeTarget(), trials=1, out=tmp_path / "run").report
    settings = [c["config"]["precision"] for c in report["candidates"] if c["id"] != "baseline"]
    assert settings
    assert {one["int8_operators"] for one in settings} == {"all"}
    assert report["failures"] == [], "an old operator set is no obstacle"


@pytest.mark.parametrize(
    ("share", "operators", "kept"),
    [
        (0.0, "all", ("Mul",)),
        (0.5, "all", ("Mul", "b")),
        (1.0, "all", ("Mul", "a", "b")),
        (0.0, "products", ("b",)),
        (1.0, "products", ("a", "b")),
    ],
)
def test_what_mixed_keeps(share: float, operators: str, kept: tuple[str, ...]) -> None:
    settings = PrecisionSettings(float_share=share, int8_operators=operators)
    assert kept_in_float(("Mul", 1, 0, 2), ["a", "b", "c"], settings) == kept

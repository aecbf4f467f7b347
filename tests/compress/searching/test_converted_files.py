"""Targets that take .tflite files: what is made for them, what of it is kept, picked and reported, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from compress.commands import pick
from compress.onnx_files.graphs import structure_hash
from compress.precision.schemes import runs, variants
from compress.results import Result
from compress.searching import dry_runs
from compress.searching.requests import Asked
from compress.selection.feasibility import violation
from compress.tasks.loading import LoadedTask
from compress.tasks.onnx_tasks import onnx_task
from compress.values.candidates import Candidate, Parity
from compress.values.configs import SEARCHED
from compress.values.constraints import parse_constraint
from compress.values.domains import Choice
from compress.values.search_spaces import SearchSpace
from targets.documents import file_hash
from targets.ethos_u import vela_installation
from targets.registry import get
from targets.target import Capabilities
from targets.testing import reference_model, samples
from targets.tflite import installation
from targets.tflite.conversion import convert

Search = Callable[..., Result]
LACKING = installation.missing_tflm()
UNCOMPILED = vela_installation.missing()
compiled = pytest.mark.skipif(UNCOMPILED is not None, reason=f"needs {UNCOMPILED}; run: {vela_installation.COMMAND}")
installed = pytest.mark.skipif(LACKING is not None, reason=f"needs {LACKING}; run: {installation.COMMAND}")
PLAIN = Capabilities()
TFLITE = Capabilities(precisions=("fp32", "int8"), refuses=("mixed", "int8-dynamic"), int8_format="tflite")


def _variants(**abilities: Capabilities) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(one.name, one.suffix, one.targets) for one in variants(SEARCHED, abilities)]


def test_converted_files_are_variants_of_their_own() -> None:
    assert _variants(a=TFLITE) == [("fp32", ".tflite", ("a",)), ("int8", ".tflite", ("a",))]
    assert _variants(a=PLAIN, b=TFLITE, c=TFLITE) == [
        ("fp32", ".onnx", ("a",)), ("fp32-tflite", ".tflite", ("b", "c")),
        ("int8", ".onnx", ("a",)), ("int8-tflite", ".tflite", ("b", "c")),
        ("mixed", ".onnx", ("a",)), ("int8-dynamic", ".onnx", ("a",)),
    ]  # fmt: skip
    assert _variants(a=TFLITE, b=PLAIN)[:4] == [
        ("fp32", ".tflite", ("a",)), ("fp32-onnx", ".onnx", ("b",)),
        ("int8", ".tflite", ("a",)), ("int8-u8s8", ".onnx", ("b",)),
    ]  # fmt: skip


def test_counted_memory_is_a_limit_before_training_and_a_roughly_known_one_is_not() -> None:
    baseline = Candidate("baseline", None, {}, 1000, 10, 10, Parity(0.0, 1.0), {})
    limit = parse_constraint("memory<=10kB")
    assert violation({"size": 10, "memory": 20_000}, limit, baseline) > 0
    assert violation({"size": 10, "memory": 9_000}, limit, baseline) <= 0
    assert violation({"size": 10}, limit, baseline) == 0
    assert violation({"memory": 9_000, "memory_ratio": 0.5}, parse_constraint("memory<=0.4x"), baseline) > 0


@installed
def test_a_search_keeps_both_files_and_a_pick_copies_both(search: Search, tmp_path: Path) -> None:
    """One run on an interpreter whose cost is its arena; both files of every candidate are there and whole."""
    space = SearchSpace(epochs=1, precision=Choice("fp32", "int8"), prune_ratio=0.5, prune_delta=0.0)
    result = search(target="tflm", objectives=None, space=space, trials=1, constraints=["quality_drop<=1"])
    assert result.report["objectives"] == ["quality", "memory"]
    made = [one for one in result.report["candidates"] if one["id"] != "baseline"]
    assert {one["config"]["precision"]["scheme"] for one in made} == {"fp32", "int8"}
    for one in made:
        path = result.folder / one["path"]
        assert path.name == "model.tflite"
        assert one["size"] == path.stat().st_size
        assert one["config"]["files"] == {"model.onnx": file_hash(path.with_name("model.onnx"))}
        assert one["measured"]["tflm"]["memory"] > 0
        onnx.checker.check_model(onnx.load(path.with_name("model.onnx")))
    least = min(made, key=lambda one: one["measured"]["tflm"]["memory"])
    assert least["config"]["precision"]["scheme"] == "int8"
    assert result.pick("fastest").id == least["id"]

    best = result.folder / "best"
    manifest = json.loads((best / "manifest.json").read_text())
    assert manifest["files"] == {name: file_hash(best / name) for name in ("model.onnx", "model.tflite")}
    assert manifest["sha256"] == file_hash(best / "model.tflite")
    said = CliRunner().invoke(pick.pick_command, [str(result.folder), "--out", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["manifest.json", "model.onnx", "model.tflite"]


def test_a_file_that_is_there_runs_where_its_format_and_precision_are_known() -> None:
    wider = replace(TFLITE, precisions=("fp32", "int8", "int8-dynamic"), refuses=("mixed",))
    for scheme, here, expected in (
        ("int8", TFLITE, True),
        ("int8-dynamic", TFLITE, False),
        ("int8-dynamic", wider, True),
    ):
        assert runs(here, scheme, "tflite", converted=True) is expected
        assert runs(here, scheme, "tflite-float-io", converted=True) is False
    assert not runs(PLAIN, "int8", "tflite", converted=True)
    assert [runs(TFLITE, scheme, "u8s8", converted=False) for scheme in ("fp32", "int8")] == [True, False]
    assert [runs(PLAIN, scheme, "u8s8", converted=False) for scheme in ("fp32", "int8", "mixed")] == [True] * 3
    assert not runs(replace(PLAIN, refuses=("mixed",)), "mixed", "u8s8", converted=False)


@compiled
def test_an_npu_is_searched_in_int8_against_a_float_baseline_that_is_no_choice(search: Search) -> None:
    """Beside a target that runs floats: those are none of the NPU's, and what is reported is what its file costs."""
    space = SearchSpace(epochs=1, precision=Choice("fp32", "int8"), prune_ratio=0.5, prune_delta=0.0)
    npu = get("ethos-u")
    npu.probed = False  # the widths that are good there are not what this is about, and take seconds
    result = search(
        target=[npu, "tflm"], objectives=["quality", "cycles"], space=space, trials=1,
        constraints=["quality_drop<=1"],
    )  # fmt: skip
    found = {one["id"]: one["measured"] for one in result.report["candidates"]}
    assert found["baseline"]["ethos-u"]["stand_in"]
    assert not found["baseline"]["ethos-u"]["feasible"]
    assert found["baseline"]["tflm"]["feasible"]
    assert "baseline" not in result.report["front"]["ethos-u"]
    on_npu = {name for name, measured in found.items() if "ethos-u" in measured}
    assert {name.partition("-")[2] for name in on_npu} == {"", "int8"}
    assert any(name.endswith("fp32") for name in found)
    best = result.pick("fastest")
    assert best.path.suffix == ".tflite"
    here = found[best.id]["ethos-u"]
    [measured] = npu.measure([best.path])
    npu.close()
    assert (measured.cycles, measured.memory, measured.flash) == (here["cycles"], here["memory"], here["flash"])
    assert 0 < here["cycles"] < found["baseline"]["ethos-u"]["cycles"]
    assert here["integer"]["on_npu"]
    assert any("a float file does not run on the NPU" in text for text in result.report["environment"]["warnings"])


@installed
def test_structures_of_files_do_not_depend_on_weights(tmp_path: Path) -> None:
    hashes = []
    for seed, kind in ((0, "int8"), (1, "int8"), (0, "fp32")):
        source = reference_model(tmp_path / f"{seed}.onnx", seed=seed)
        made = convert(source, kind, {"x": samples(32)}, tmp_path / f"{seed}-{kind}.tflite").path
        hashes.append(structure_hash(made))
    assert hashes[0] == hashes[1] != hashes[2]


@installed
def test_a_dry_run_names_what_cannot_be_converted(tmp_path: Path) -> None:
    """An operator without a kernel there: it is said before anything is trained, and by the search before it begins."""
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [node("Unique", ["flat"], ["u"]), node("ReduceSum", ["u"], ["s"], keepdims=0), node("Add", ["x", "s"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 5])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 5])],
    )
    graph.node.insert(0, node("Flatten", ["x"], ["flat"]))
    path = tmp_path / "unusual.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), path)
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=x)
    task = onnx_task(path, tmp_path / "samples.npz")
    loaded = LoadedTask(task, SearchSpace())
    found: dict[str, Any] = dry_runs.plan(
        Asked(task, target="tflm", out=tmp_path / "run", space=loaded.space, brought=loaded)
    )
    assert any("tflm cannot run this network: operator Unique has no kernel" in text for text in found["warnings"])

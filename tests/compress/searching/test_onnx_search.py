"""A search from nothing but an ``.onnx`` file and samples: imported, pruned, recovered by its own outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import compress
from compress.results import Result
from compress.tasks import splits
from compress.tasks.onnx_tasks import onnx_task
from hearing import Heard
from targets.runtimes.fake.fake_target import FakeTarget
from targets.testing import reference_model

SPACE = compress.SearchSpace(epochs=2, prune_ratio=compress.Float(0.3, 0.7), precision=compress.Choice("fp32", "int8"))
pytestmark = pytest.mark.usefixtures("quick")


def _digits(folder: Path, exported: Path, **arrays: np.ndarray) -> compress.Task:
    """The trained CNN's file with unlabelled digits."""
    from sklearn.datasets import load_digits

    name = onnx.load(exported).graph.input[0].name
    np.savez(folder / "data.npz", **{name: load_digits().images[:600, None].astype("float32") / 16}, **arrays)
    return onnx_task(exported, folder / "data.npz")


@pytest.fixture
def searched(exported: Path, tmp_path: Path) -> Callable[..., Result]:
    def search(**options: Any) -> Result:
        task = _digits(tmp_path, exported)
        return compress.search(task, FakeTarget(channel_step=4), space=SPACE, out=tmp_path / "run", **options)

    return search


def test_a_network_is_pruned_and_recovers_without_labels(searched: Callable[..., Result], exported: Path) -> None:
    progress = Heard()
    result = searched(trials=3, progress=progress)
    report = result.report
    assert report["environment"]["warnings"] == []
    assert not any("warning" in text for text in progress.notes)
    baseline, *candidates = report["candidates"]
    val = baseline["measured"]["fake"]["quality"]["val"]
    assert (val["metric"], val["value"]) == ("agreement", 1.0)
    assert baseline["parity"]["max_abs"] < 1e-4, "of the imported network, with the file"
    pruned = [c for c in candidates if c["config"]["widths"] and c["config"]["precision"]["scheme"] == "fp32"]
    assert pruned
    assert all(c["macs"] < baseline["macs"] and c["parameters"] < baseline["parameters"] for c in pruned)
    assert max(c["measured"]["fake"]["quality"]["val"]["value"] for c in pruned) > 0.8, "a tenth would be chance"
    before = onnx.load(exported).graph
    for candidate in pruned:
        path = result.folder / candidate["path"]
        after = onnx.load(path).graph
        assert [v.name for v in (*after.input, *after.output)] == [v.name for v in (*before.input, *before.output)]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        shape = session.get_inputs()[0].shape[1:]
        for size in (1, 5):
            feeds = {before.input[0].name: np.zeros((size, *shape), np.float32)}
            assert session.run(None, feeds)[0].shape == (size, 10)


def test_it_goes_on_where_it_was(searched: Callable[..., Result]) -> None:
    first = searched(trials=1).report
    second = searched(trials=2).report
    assert second["trials"]["finished"] == 2
    known = [c["id"] for c in first["candidates"]]
    assert [c["id"] for c in second["candidates"]][: len(known)] == known


def test_a_pick_is_given_as_a_module(searched: Callable[..., Result]) -> None:
    result = searched(trials=2, constraints=["quality_drop<=0.9"])
    pick = result.pick("smallest")
    module = pick.module()
    assert not module.training
    [known] = [c for c in result.report["candidates"] if c["id"] == pick.id]
    assert sum(p.numel() for p in module.parameters()) == known["parameters"]


def test_without_a_train_split_it_is_quantized_only(exported: Path, tmp_path: Path) -> None:
    task = _digits(tmp_path, exported, split=np.array(["val"] * 400 + ["test"] * 200))
    progress = Heard()
    report = compress.search(
        task, FakeTarget(), space=SPACE, trials=1, out=tmp_path / "run", progress=progress
    ).report  # fmt: skip
    reason = "cnn.onnx is quantized, not pruned: there is no train split to recover on"
    assert reason in report["environment"]["warnings"]
    assert f"warning: {reason}" in progress.notes
    assert {c["config"]["precision"]["scheme"] for c in report["candidates"]} == {"fp32", "int8"}


def _classifier(path: Path) -> Path:
    """As skl2onnx writes a multi-layer perceptron: two inputs here, a label and probabilities come out."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    nodes = [
        helper.make_node("Gather", ["table", "kind"], ["e"]),
        helper.make_node("Concat", ["x", "e"], ["c"], axis=1),
        helper.make_node("MatMul", ["c", "coefficient"], ["m1"]),
        helper.make_node("Add", ["m1", "intercepts"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "coefficient1"], ["m2"]),
        helper.make_node("Add", ["m2", "intercepts1"], ["a2"]),
        helper.make_node("Softmax", ["a2"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["best"], axis=1),
        helper.make_node("ArrayFeatureExtractor", ["classes", "best"], ["found"], domain="ai.onnx.ml"),
        helper.make_node("Cast", ["found"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "flat"], ["label"]),
    ]
    constants = {
        "table": weights(5, 4), "coefficient": weights(12, 32), "intercepts": weights(1, 32),
        "coefficient1": weights(32, 3),
        "intercepts1": weights(1, 3), "classes": np.array([[0, 1, 2]], np.int32), "flat": np.array([-1]),
    }  # fmt: skip
    made = helper.make_graph(
        nodes,
        "mlp",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 8]),
            helper.make_tensor_value_info("kind", TensorProto.INT64, [None]),
        ],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3]),
        ],
        [numpy_helper.from_array(x, name) for name, x in constants.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(made, opset_imports=imports, ir_version=9), path)
    return path


@pytest.mark.parametrize("labelled", [False, True])
def test_a_label_and_probabilities_of_two_inputs(tmp_path: Path, labelled: bool) -> None:
    path = _classifier(tmp_path / "mlp.onnx")
    random = np.random.default_rng(1)
    x, kind = random.standard_normal((300, 8)).astype(np.float32), random.integers(0, 5, 300)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    labels = {"labels": session.run(["label"], {"x": x, "kind": kind})[0]} if labelled else {}
    np.savez(tmp_path / "data.npz", x=x, kind=kind, **labels)
    task = onnx_task(path, tmp_path / "data.npz")
    result = compress.search(task, FakeTarget(channel_step=4), space=SPACE, trials=2, out=tmp_path / "run")
    assert result.report["environment"]["warnings"] == []
    baseline, *candidates = result.report["candidates"]
    quality = baseline["measured"]["fake"]["quality"]["val"]
    assert (quality["metric"], quality["value"]) == ("accuracy of probabilities" if labelled else "agreement", 1.0)
    assert any(c["config"]["widths"] for c in candidates)
    best = max(c["measured"]["fake"]["quality"]["val"]["value"] for c in candidates if c["config"]["widths"])
    assert best > 0.6
    last = onnx.load(result.folder / candidates[-1]["path"]).graph
    assert [v.name for v in (*last.input, *last.output)] == ["x", "kind", "label", "probabilities"]


def test_a_decision_alone_is_nothing_to_train_by(tmp_path: Path) -> None:
    model = onnx.load(_classifier(tmp_path / "mlp.onnx"))
    del model.graph.output[1]
    onnx.save(model, tmp_path / "mlp.onnx")
    random = np.random.default_rng(1)
    np.savez(tmp_path / "data.npz", x=random.standard_normal((60, 8)), kind=random.integers(0, 5, 60))
    task = onnx_task(tmp_path / "mlp.onnx", tmp_path / "data.npz")
    report = compress.search(task, FakeTarget(), space=SPACE, trials=1, out=tmp_path / "run").report
    [warning] = [w for w in report["environment"]["warnings"] if "pruned" in w]
    assert "a decision without scores" in warning
    assert report["candidates"][0]["measured"]["fake"]["quality"]["val"]["metric"] == "agreement"


def test_an_original_that_always_decides_the_same_is_warned_of(tmp_path: Path) -> None:
    path = reference_model(tmp_path / "m.onnx")
    np.savez(
        tmp_path / "data.npz", x=np.zeros((40, 3, 8, 8), np.float32) + np.linspace(0, 0.01, 40)[:, None, None, None]
    )
    task = onnx_task(path, tmp_path / "data.npz")
    assert splits.read_splits(task).warnings == (
        "the original decides on one class for all of val: that others agree says little",
    )


def _in_time(path: Path, *, quantized: bool = False) -> Path:
    """(n, 6, 5) -> (6, n, 4): steps first, as networks for lines of text have it; or nothing that can be quantized."""
    rng = np.random.default_rng(0)
    shapes = {"v": (5, 16), "w": (16, 4)}
    constants = [numpy_helper.from_array(rng.normal(size=s).astype("f4"), name) for name, s in shapes.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Transpose", ["c"], ["y"], perm=[1, 0, 2]),
    ]
    if quantized:
        nodes = [helper.make_node("Slice", ["x", "zero", "four", "two"], ["y"])]
        numbers = (("zero", 0), ("four", 4), ("two", 2))
        constants = [numpy_helper.from_array(np.asarray([number]), name) for name, number in numbers]
    kinds = (("x", ["n", 6, 5]), ("y", ["n", 6, 4] if quantized else [6, "n", 4]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in kinds]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_outputs_with_the_samples_on_their_second_axis(tmp_path: Path) -> None:
    path = _in_time(tmp_path / "lines.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(size=(40, 6, 5)).astype("f4"))
    task = onnx_task(path, tmp_path / "data.npz")
    limits = ["quality_drop<=0.2"]
    report = compress.search(task, FakeTarget(), trials=1, constraints=limits, out=tmp_path / "run").report
    made = [c for c in report["candidates"] if c["config"]["precision"]["scheme"].startswith("int8")]
    assert made
    assert all(c["measured"]["fake"]["quality"]["val"]["value"] > 0.9 for c in made), "cosine, sample by sample"


def test_a_file_of_which_nothing_can_be_made_ends_the_search(tmp_path: Path) -> None:
    path = _in_time(tmp_path / "fixed.onnx", quantized=True)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(size=(40, 6, 5)).astype("f4"))
    progress = Heard()
    task = onnx_task(path, tmp_path / "data.npz")
    report = compress.search(task, FakeTarget(), time=600, progress=progress, out=tmp_path / "run").report
    assert [candidate["id"] for candidate in report["candidates"]] == ["baseline"]
    assert report["trials"]["finished"] < 30
    assert any("nothing else to try on this network" in note for note in progress.notes)

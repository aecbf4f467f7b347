"""ONNX files made into .tflite files: what comes out, what is refused and how, and what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets.errors import ModelError, TargetError, TargetUnavailable
from targets.registry import get, install
from targets.testing import reference_model, reference_output, samples
from targets.tflite import conversion, installation
from targets.tflite.conversion import convert, float_file
from targets.tflite.tflite_files import read_tflite

WEIGHTS = {"s": np.float32(0.1), "r": np.array([[0, 0, 4, 4]], np.float32), "b": np.array([0])}
LACKING = installation.missing()
installed = pytest.mark.skipif(LACKING is not None, reason=f"needs {LACKING}; run: {installation.COMMAND}")


def _model(path: Path, nodes: list, shape: list, weights: dict | None = None, *, opset: int = 17) -> Path:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def _mean(path: Path, kind: str) -> Path:
    """A convolution, and the mean over its height and width, written as exporters write it."""
    weights = {"w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1])]
    if kind == "GlobalAveragePool":
        nodes += [helper.make_node(kind, ["c"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    elif kind == "axes as attribute":
        nodes.append(helper.make_node("ReduceMean", ["c"], ["y"], axes=[2, 3], keepdims=0))
    else:
        weights["axes"] = np.array([-1, -2])
        nodes.append(helper.make_node("ReduceMean", ["c", "axes"], ["y"], keepdims=0))
    return _model(path, nodes, ["n", 3, 6, 5], weights, opset=18 if kind == "axes as input" else 13)


@installed
@pytest.mark.parametrize("kind", ["GlobalAveragePool", "axes as attribute", "axes as input"])
def test_a_global_mean_becomes_an_average_pool(tmp_path, kind):
    path = _mean(tmp_path / "m.onnx", kind)
    x = np.random.default_rng(1).normal(size=(5, 3, 6, 5)).astype(np.float32)
    for precision in ("fp32", "int8"):
        made = convert(path, precision, {"x": x}, tmp_path / f"{precision}.tflite")
        assert "AVERAGE_POOL_2D" in made.operators
        assert "MEAN" not in made.operators
    target, ort = get("litert-cpu"), get("ort-cpu")
    try:
        np.testing.assert_allclose(
            target.run(tmp_path / "fp32.tflite", {"x": x})[0], ort.run(path, {"x": x})[0], atol=1e-5
        )
    finally:
        target.close()
        ort.close()


@installed
@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-dynamic", "fp16"])
def test_weights_of_a_large_file_are_kept(tmp_path, precision):
    """From 256 kB of them on the quantizer writes them behind the tables of the file."""
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(64, 4200)).astype(np.float32), "b": rng.normal(size=(4200, 8)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["r"])]
    nodes.append(helper.make_node("MatMul", ["r", "b"], ["y"]))
    path = _model(tmp_path / "m.onnx", nodes, ["n", 64], weights)
    x = rng.normal(size=(16, 64)).astype(np.float32)
    made = convert(path, precision, {"x": x}, tmp_path / "m.tflite").path
    wanted = np.maximum(x @ weights["a"], 0) @ weights["b"]
    target = get("litert-cpu")
    try:
        [found] = target.run(made, {"x": x})
    finally:
        target.close()
    assert np.square(found - wanted).sum() < 0.1 * np.square(wanted).sum()


@installed
@pytest.mark.parametrize("shape", [["n", 16], ["n", 5, 16], ["n", 2, 3, 16]])
def test_products_with_constant_weights_compute_in_int8(tmp_path, shape):
    """As BATCH_MATMUL, which MatMul would become, LiteRT gives zeros."""
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(16, 12)).astype(np.float32), "c": rng.normal(size=12).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Add", ["h", "c"], ["y"])]
    path = _model(tmp_path / "m.onnx", nodes, shape, weights)
    x = rng.normal(size=(32, *shape[1:])).astype(np.float32)
    made = convert(path, "int8", {"x": x}, tmp_path / "m.tflite")
    assert "FULLY_CONNECTED" in made.operators
    assert made.sqnr["y"] > 25


@installed
def test_arrays_lie_in_the_file_as_it_says(tmp_path):
    path = convert(reference_model(tmp_path / "m.onnx"), "int8", {"x": samples(64)}, tmp_path / "m.tflite").path
    file = read_tflite(path)
    [x], [y] = file.inputs, file.outputs
    assert (x.name, x.shape, x.tensor.shape, x.axes, x.dtype) == (
        "x",
        (None, 3, 8, 8),
        (1, 8, 8, 3),
        (0, 2, 3, 1),
        "float32",
    )
    assert (y.name, y.shape, y.tensor.dtype) == ("y", (None, 5), "int8")
    one = samples(1)
    assert x.into(one).shape == (1, 8, 8, 3)
    back = x.out_of(x.into(one))
    inside = np.abs(one) < 126 * x.tensor.scale
    assert np.abs(back - one)[inside].max() <= 0.51 * x.tensor.scale


@installed
def test_quality_of_a_conversion_is_told(tmp_path):
    source = reference_model(tmp_path / "m.onnx")
    exact = convert(source, "fp16", {"x": samples(16)}, tmp_path / "h.tflite")
    rough = convert(source, "int8", {"x": samples(64)}, tmp_path / "i.tflite")
    assert exact.sqnr["y"] > 50 > rough.sqnr["y"] > 10


@installed
def test_a_static_batch_and_several_inputs_are_kept(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Add", ["b", "a"], ["s"]), helper.make_node("Relu", ["s"], ["y"])], "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4, 6, 6]) for name in ("b", "a")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4, 6, 6])],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    random = np.random.default_rng(0)
    feeds = {name: random.normal(size=(5, 4, 6, 6)).astype(np.float32) for name in ("a", "b")}
    target = get("litert-cpu")
    try:
        (y,) = target.run(path, feeds)
    finally:
        target.close()
    np.testing.assert_allclose(y, np.maximum(feeds["a"] + feeds["b"], 0), atol=1e-6)


@installed
def test_float_files_are_converted_once(tmp_path, monkeypatch):
    source = reference_model(tmp_path / "m.onnx", seed=11)
    first = float_file(source)
    monkeypatch.setattr(conversion._CONVERTER, "ask", lambda *_: pytest.fail("converted again"))
    assert float_file(reference_model(tmp_path / "other.onnx", seed=11)) == first


@installed
@pytest.mark.parametrize(
    ("nodes", "shape", "said"),
    [
        ([helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
          helper.make_node("DequantizeLinear", ["q", "s"], ["y"])],
         [1, 4], r"quantized in ONNX's own form \(DequantizeLinear\).*give the float file"),
        ([helper.make_node("Relu", ["x"], ["y"])], ["n", 3, "h", 4], r"axis 2 of input 'x' has no fixed size \(h\)"),
        ([helper.make_node("Unique", ["x"], ["y"])], [6], "operator Unique has no kernel in LiteRT"),
        ([helper.make_node("RoiAlign", ["x", "r", "b"], ["y"])], [1, 3, 8, 8], "computes something else"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_named(tmp_path, nodes, shape, said):
    path = _model(tmp_path / "m.onnx", nodes, shape, WEIGHTS)
    with pytest.raises(ModelError, match=said) as caught:
        convert(path, "fp32", {}, tmp_path / "m.tflite")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.tflite").exists()


@installed
def test_int8_needs_samples(tmp_path):
    with pytest.raises(ModelError, match="needs calibration samples"):
        convert(reference_model(tmp_path / "m.onnx"), "int8", {}, tmp_path / "m.tflite")


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(TargetError, match="precision 'int4'"):
        convert(tmp_path / "m.onnx", "int4", {}, tmp_path / "m.tflite")


def test_without_the_environment_the_command_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv(installation.VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(TargetUnavailable, match="paretopress targets --install litert"):
        convert(reference_model(tmp_path / "m.onnx"), "fp32", {}, tmp_path / "m.tflite")
    with pytest.raises(TargetUnavailable, match="paretopress targets --install litert"):
        get("tflm")


@installed
def test_what_is_installed_is_not_installed_again():
    said: list[str] = []
    assert install("litert", said.append) == str(installation.place())
    assert said == [f"already there; to make it anew, delete {installation.place()} first"]


def test_an_installation_of_other_versions_does_not_serve(tmp_path, monkeypatch):
    monkeypatch.setenv(installation.VARIABLE, str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"format": 1, "asked": "others", "packages": {}}')
    assert installation.manifest() is None
    assert str(tmp_path) in (installation.missing() or "")


@installed
def test_reference_and_converted_agree(tmp_path):
    if installation.missing_tflm():
        pytest.skip("needs tflite-micro; run: paretopress targets --install litert")
    target, x = get("tflm"), samples(3)
    try:
        (y,) = target.run(reference_model(tmp_path / "m.onnx"), {"x": x})
    finally:
        target.close()
    np.testing.assert_allclose(y, reference_output(x), atol=1e-5)

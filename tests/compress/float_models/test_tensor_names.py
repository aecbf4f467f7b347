"""Files in which tensors bear the names that quantizers make up: what is written computes what the file does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import compress
from compress.float_models.plain_models import read_plain
from compress.onnx_files.parity import open_session

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4, 6, 6)).astype(np.float32)
ADDED = (
    "scale", "zero_point", "quantized", "QuantizeLinear_Input", "DequantizeLinear_Output", "QuantizeLinear_Output",
    "bias_quantized", "output_quantized",
)  # fmt: skip


def two_convolutions(path: Path, names: dict[str, str]) -> Path:
    """x -> conv ``a`` -> conv ``b`` -> relu, sharing one bias; ``names``: others for tensors."""

    def called(name: str) -> str:
        return names.get(name, name)

    weights = [
        numpy_helper.from_array(RNG.normal(size=(4, 4, 3, 3)).astype(np.float32), called("w1")),
        numpy_helper.from_array(RNG.normal(size=(4, 4, 3, 3)).astype(np.float32), called("w2")),
        numpy_helper.from_array(RNG.normal(size=4).astype(np.float32), called("bias")),
    ]
    nodes = [
        helper.make_node("Conv", ["x", called("w1"), called("bias")], [called("a")], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", [called("a"), called("w2"), called("bias")], [called("b")], "second"),
        helper.make_node("Relu", [called("b")], ["y"], "last"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, None, None]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    "names",
    [
        *({"b": f"a_{word}"} for word in ADDED),
        *({"w2": f"a_{word}"} for word in ADDED[:4]),
        *({"bias": f"x_{word}"} for word in ADDED[:4]),
        # The name under which ONNX Runtime copies a bias that two products add.
        {"bias": "conv", "b": "conv1"},
        {"bias": "conv2", "a": "conv3", "b": "conv4"},
    ],
    ids=str,
)
def test_names_that_a_quantizer_makes_up_may_be_there(tmp_path: Path, names: dict[str, str]) -> None:
    source = two_convolutions(tmp_path / "m.onnx", names)
    found = compress.quantize(source, tmp_path / "made.onnx", "int8", X)
    assert min(found.sqnr.values()) > 25
    assert set(found.int8) == {"first", "second"}
    expected, given = (open_session(path).run(None, {"x": X})[0] for path in (source, tmp_path / "made.onnx"))
    assert np.square(given - expected).sum() < 10**-2.5 * np.square(expected).sum()


@pytest.mark.parametrize("word", ["scale", "zero_point", "quantized", "output_quantized"])
def test_dynamic_int8_makes_up_names_too(tmp_path: Path, word: str) -> None:
    weights = [numpy_helper.from_array(RNG.normal(size=(8, 8)).astype(np.float32), name) for name in ("v", "w")]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"], "first"),
        helper.make_node("Tanh", ["a"], [f"a_{word}"], "middle"),
        helper.make_node("MatMul", [f"a_{word}", "w"], ["y"], "last"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    rows = RNG.normal(size=(32, 8)).astype(np.float32)
    found = compress.quantize(tmp_path / "m.onnx", tmp_path / "made.onnx", "int8-dynamic", rows)
    assert found.sqnr["y"] > 20


def test_what_is_renamed_is_renamed_once_and_ends_keep_their_names(tmp_path: Path) -> None:
    source = two_convolutions(tmp_path / "m.onnx", {"b": "x_scale", "w1": "y_quantized"})
    once = read_plain(source)
    onnx.save(once, tmp_path / "once.onnx")
    again = read_plain(tmp_path / "once.onnx")
    assert again.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)
    assert [value.name for value in (*once.graph.input, *once.graph.output)] == ["x", "y"]
    used = {name for node in once.graph.node for name in (*node.input, *node.output)}
    assert not used & {"x_scale", "y_quantized"}

"""The plain form of a model computes what the model does, is in it only once, and takes no name that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.float_models.plain_models import read_plain
from compress.onnx_files.parity import open_session
from public_files import FILES, FIRST

X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
C = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)


def _gemm(path: Path, bias: np.ndarray | None, opset: int = 17, **attributes: Any) -> Path:
    """A Gemm called ``fc`` whose bias is called as the plain form would call its own."""
    inputs = ["x", "fc_alpha"] + (["fc_bias"] if bias is not None else [])
    node = helper.make_node("Gemm", inputs, ["y"], "fc", **attributes)
    constants = [numpy_helper.from_array(W, "fc_alpha")]
    if bias is not None:
        constants.append(numpy_helper.from_array(np.asarray(bias, np.float32), "fc_bias"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [5, size]) for name, size in (("x", 6), ("y", 4))]
    graph = helper.make_graph([node], "g", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


@pytest.mark.parametrize("bias", [None, 0.5, [0.5], C[0], C[:1], C[:, :1], C])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (2.0, 0.5), (-0.3, 0.0), (1.0, 2.0)])
def test_a_gemm_is_a_product_and_a_vector(tmp_path: Path, bias: Any, alpha: float, beta: float) -> None:
    source = _gemm(tmp_path / "m.onnx", None if bias is None else np.asarray(bias), alpha=alpha, beta=beta)
    model = read_plain(source)
    expected = alpha * X @ W + (0 if bias is None else beta * np.asarray(bias, np.float32))
    onnx.save(model, tmp_path / "plain.onnx")
    assert np.allclose(open_session(tmp_path / "plain.onnx").run(None, {"x": X})[0], expected, atol=1e-5)
    assert np.allclose(open_session(source).run(None, {"x": X})[0], expected, atol=1e-5)
    [gemm] = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert gemm.name == "fc", "layers go by their names"
    assert all(one.f == 1.0 for one in gemm.attribute if one.name in ("alpha", "beta"))
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert len(gemm.input) == 2 or sizes[gemm.input[2]] == [4]
    names = [node.name for node in model.graph.node] + [t.name for t in model.graph.initializer]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", sorted(FIRST.values()))
def test_the_plain_form_is_found_once(tmp_path: Path, name: str) -> None:
    model, _ = FILES[name]()
    onnx.save(model, tmp_path / "m.onnx")
    once = read_plain(tmp_path / "m.onnx", 13)
    onnx.save(once, tmp_path / "once.onnx")
    again = read_plain(tmp_path / "once.onnx", 13)
    assert again.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)
    names = [node.name for node in once.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    constants = {tensor.name for tensor in once.graph.initializer}
    assert constants.isdisjoint(value.name for value in once.graph.input)
    assert "Constant" not in {node.op_type for node in once.graph.node}


def test_a_weight_that_something_else_reads_is_not_there_twice(tmp_path: Path) -> None:
    model, _ = FILES["shared_weights-17"]()
    onnx.save(model, tmp_path / "m.onnx")
    plain = read_plain(tmp_path / "m.onnx")
    assert "Transpose" in {node.op_type for node in plain.graph.node}
    assert sum(np.prod(t.dims) == 24 * 24 for t in plain.graph.initializer) == 1


@pytest.mark.parametrize(("rows", "folded"), [(4, True), (10**7, False)])
def test_a_constant_that_becomes_far_larger_than_any_weight_is_not_folded(
    tmp_path: Path, rows: int, folded: bool
) -> None:
    """A few bytes that stand for four gigabytes of numbers."""
    nodes = [helper.make_node("Expand", ["v", "shape"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    constants = [numpy_helper.from_array(np.ones((1, 101), np.float32), "v"),
                 numpy_helper.from_array(np.array([rows, 101]), "shape")]  # fmt: skip
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    kinds = [node.op_type for node in read_plain(tmp_path / "m.onnx").graph.node]
    assert kinds == (["MatMul"] if folded else ["Expand", "MatMul"])

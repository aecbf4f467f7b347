"""A Gemm as a matrix product and a sum, which is what quantizers look for."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from compress.precision.quantizer import split_gemm

ROWS = np.random.default_rng(5).standard_normal((70, 6)).astype(np.float32)


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("biased", [True, False])
def test_a_gemm_is_a_product_and_a_sum(turned: int, biased: bool) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((3, 6) if turned else (6, 3)).astype(np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"] if biased else ["x", "w"], ["y"], name="g", transB=turned)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(np.ones(3, np.float32), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    before = model.SerializeToString()
    found = split_gemm(model)
    assert model.SerializeToString() == before
    assert [n.op_type for n in found.graph.node] == (["MatMul", "Add"] if biased else ["MatMul"])
    a, b = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]) for m in (model, found)
    )
    assert np.allclose(a.run(None, {"x": ROWS})[0], b.run(None, {"x": ROWS})[0], atol=1e-5)


def test_weights_that_an_inner_graph_reads_are_not_lost() -> None:
    """Only the Gemm's own weight goes; what an If's branches read stays."""
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"])],
        "t",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["g"], name="g"),
        helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["g", "i"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [
            onnx.numpy_helper.from_array(np.ones((6, 3), np.float32), "w"),
            onnx.numpy_helper.from_array(np.array(True), "c"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    found = onnxruntime.InferenceSession(split_gemm(model).SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.allclose(found.run(None, {"x": ROWS})[0], 2 * ROWS.sum(1, keepdims=True), atol=1e-4)

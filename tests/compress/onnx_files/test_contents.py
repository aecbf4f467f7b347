"""What is read off an ONNX model: inputs, opset, attributes, and graphs inside nodes, at any depth."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.onnx_files.contents import attributes_of, graphs_in, graphs_inside, inputs_of, opset_of
from compress.onnx_files.exporting import clean


def _branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    node = helper.make_node("Neg", ["x"], [f"{name}_out"], doc_string="/home/someone/model.py")
    return helper.make_graph([*nodes, node], name, [], [helper.make_tensor_value_info(f"{name}_out", 1, [1])])


@pytest.fixture
def model() -> onnx.ModelProto:
    """An If inside an If; a weight that is listed among the inputs."""
    inner = helper.make_node("If", ["c"], ["inner"], then_branch=_branch("a"), else_branch=_branch("b"))
    outer = helper.make_node("If", ["c"], ["y"], then_branch=_branch("then", inner), else_branch=_branch("else"))
    inputs = [("x", TensorProto.FLOAT, [1]), ("c", TensorProto.BOOL, []), ("w", TensorProto.FLOAT, [2])]
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    graph = helper.make_graph(
        [outer],
        "main",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [weight],
    )
    opsets = [helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets)


def test_graphs_inside_nodes_are_found_at_any_depth(model: onnx.ModelProto) -> None:
    names = [graph.name for graph in graphs_in(model.graph)]
    assert names[0] == "main"
    assert sorted(names[1:]) == ["a", "b", "else", "then"]
    assert sorted(graph.name for graph in graphs_inside(model.graph.node[0])) == sorted(names[1:])


def test_comments_are_removed_at_any_depth(model: onnx.ModelProto) -> None:
    assert b"/home/someone" in model.SerializeToString()
    assert b"/home/someone" not in clean(model).SerializeToString()


def test_weights_among_the_inputs_are_none(model: onnx.ModelProto) -> None:
    assert [value.name for value in inputs_of(model)] == ["x", "c"]


def test_the_opset_is_that_of_the_operators_of_onnx(model: onnx.ModelProto) -> None:
    assert opset_of(model) == 17
    assert opset_of(onnx.ModelProto()) == 1


def test_attributes_are_python_values() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1], auto_pad="NOTSET")
    assert attributes_of(node) == {"group": 2, "pads": [1, 1], "auto_pad": b"NOTSET"}

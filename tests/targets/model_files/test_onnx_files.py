"""What is read of an ONNX file without the onnx package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from targets.model_files import onnx_files
from targets.model_files.onnx_files import FileInput
from targets.testing import reference_model


def save(path: Path, inputs: list[onnx.ValueInfoProto], *nodes: onnx.NodeProto, weights: tuple[np.ndarray, ...] = ()):
    """A graph with these inputs and nodes; weights are named w0, w1, ..."""
    named = [numpy_helper.from_array(value, f"w{number}") for number, value in enumerate(weights)]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(list(nodes), "g", inputs, out, named)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def tensor(name: str, kind: int, shape: list[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def test_inputs_with_their_axes(tmp_path):
    inputs = [
        tensor("image", TensorProto.FLOAT, ["batch", 3, "height", None]),
        tensor("ids", TensorProto.INT64, [1, "length"]),
        tensor("scale", TensorProto.FLOAT, []),
        tensor("anything", TensorProto.BOOL, None),
        helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None),
        tensor("w0", TensorProto.FLOAT, [2]),
    ]
    path = save(tmp_path / "m.onnx", inputs, helper.make_node("Identity", ["image"], ["y"]), weights=(np.ones(2),))
    facts = onnx_files.read_facts(path)
    assert facts is not None
    assert facts.inputs == (
        FileInput("image", False, ("batch", 3, "height", None)),
        FileInput("ids", True, (1, "length")),
        FileInput("scale", False, ()),
        FileInput("anything", False, ()),
        FileInput("list", False, ()),
    ), "w0 is a weight that is listed among the inputs"
    assert [one.open_axes for one in facts.inputs[:3]] == [("height", "axis 3"), ("length",), ()]


@pytest.mark.parametrize(
    ("operator", "weight", "precision"),
    [
        ("Identity", np.float32, "float"),
        ("Identity", np.float16, "fp16"),
        ("DequantizeLinear", np.float32, "int8"),
        ("QLinearConv", np.float32, "int8"),
        ("MatMulInteger", np.float32, "int8"),
    ],
)
def test_precision_as_far_as_the_file_shows_it(tmp_path, operator, weight, precision):
    node = helper.make_node(operator, ["x"], ["y"])
    path = save(tmp_path / "m.onnx", [tensor("x", TensorProto.FLOAT, [1])], node, weights=(np.ones(2, weight),))
    facts = onnx_files.read_facts(path)
    assert facts is not None
    assert facts.precision == precision
    assert facts.operators == {operator: 1}


def test_what_cannot_be_read_is_none(tmp_path):
    whole = reference_model(tmp_path / "whole.onnx").read_bytes()
    assert onnx_files.read_facts(tmp_path / "whole.onnx") is not None
    for number, content in enumerate((b"", b"hello " * 50, whole[: len(whole) // 2], whole[:-3], b"\xff" * 30)):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(content)
        assert onnx_files.read_facts(path) is None
    assert onnx_files.read_facts(tmp_path / "missing.onnx") is None
    assert onnx_files.read_facts(tmp_path) is None

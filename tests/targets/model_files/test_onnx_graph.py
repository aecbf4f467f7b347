"""Our reader of ONNX files, against the onnx package."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.model_files import onnx_graph
from targets.testing import reference_model

onnx = pytest.importorskip("onnx")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper


def expected(graph: Any) -> onnx_graph.Graph:
    """The same, read by the onnx package."""
    nodes = []
    for one in graph.node:
        bodies = [inner for a in one.attribute for inner in [*([a.g] if a.HasField("g") else []), *a.graphs]]
        nodes.append(
            onnx_graph.Node(
                one.name,
                one.op_type,
                one.domain,
                tuple(one.input),
                tuple(one.output),
                {a.name: a.i for a in one.attribute if a.HasField("i")},
                {a.name: a.s.decode() for a in one.attribute if a.HasField("s")},
                tuple(expected(inner) for inner in bodies),
            )
        )
    kinds = {one.name: TensorProto.DataType.Name(one.data_type) for one in graph.initializer}
    return onnx_graph.Graph(tuple(nodes), {name: NAMES[kind] for name, kind in kinds.items()})


NAMES = {
    "FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "INT8": "int8", "UINT8": "uint8",
    "INT32": "int32", "INT64": "int64", "BOOL": "bool",
}  # fmt: skip

words = st.text(max_size=8)
constants = st.dictionaries(
    words, st.sampled_from(["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool"]), max_size=4
)


@st.composite
def graphs(draw: Any, depth: int = 2) -> Any:
    nodes = []
    for _ in range(draw(st.integers(0, 3))):
        made = helper.make_node(
            draw(words), draw(st.lists(words, max_size=4)), draw(st.lists(words, max_size=2)),
            name=draw(words), domain=draw(words.filter(lambda word: word != "ai.onnx")),
            i=draw(st.integers(0, 2**63 - 1)), s=draw(words), f=0.5, ints=[1, -2],
            t=numpy_helper.from_array(np.zeros(2)),
        )  # fmt: skip
        if depth and draw(st.booleans()):
            made.attribute.append(helper.make_attribute("g", draw(graphs(depth=depth - 1))))
        nodes.append(made)
    tensors = [numpy_helper.from_array(np.zeros(3, kind), name) for name, kind in draw(constants).items()]
    return helper.make_graph(nodes, draw(words), [], [], tensors)


@given(graph=graphs())
@settings(deadline=None, max_examples=100)
def test_the_reader_agrees_with_the_onnx_package(graph):
    data = helper.make_model(graph, doc_string="x" * 200).SerializeToString()
    assert onnx_graph.read_graph(data) == expected(graph)


def test_the_reader_agrees_on_a_real_file(tmp_path):
    path = reference_model(tmp_path / "m.onnx")
    assert onnx_graph.read_graph(path.read_bytes()) == expected(onnx.load(path).graph)


@given(data=st.binary(max_size=60))
@settings(max_examples=300)
def test_the_reader_refuses_what_is_no_model(data):
    """Or takes it for an empty one; never anything but ValueError."""
    with suppress(ValueError):
        assert isinstance(onnx_graph.read_graph(data), onnx_graph.Graph)


def test_the_reader_refuses_what_is_cut(tmp_path):
    whole = reference_model(tmp_path / "m.onnx").read_bytes()
    for size in range(0, len(whole) - 30, 97):
        with pytest.raises(ValueError, match="not an ONNX file"):
            onnx_graph.read_graph(whole[:size])

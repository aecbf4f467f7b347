"""What an ONNX model holds, read off its protobufs: inputs, opset, attributes, and the graphs inside its nodes.

Loops and branches hold graphs of their own in their attributes, which may read values of the graph around them. The
walks here see those as well. onnx_ir (``RecursiveGraphIterator``) walks its own form of a model only; here protobufs
are walked, and changed in place, without a conversion there and back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx


def inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that samples are given to, in their order: old files list constants among the inputs as well."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def input_types(model: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    """{name of an input: the type of its samples}; raises KeyError for a type that is none of ONNX's."""
    return {
        value.name: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for value in inputs_of(model)
    }


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the model is written in; 1 where it does not say."""
    return next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name, as Python values; text is bytes."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def graphs_in(graph: Any) -> Iterator[Any]:
    """``graph`` (a GraphProto or a FunctionProto), then all graphs inside its nodes, at any depth."""
    yield graph
    for node in graph.node:
        yield from graphs_inside(node)


def graphs_inside(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that ``node`` holds in its attributes, and those inside their nodes, at any depth."""
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from graphs_in(inner)


_PASSING = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Clip")


def last_operator(model: onnx.ModelProto, index: int = 0) -> str:
    """The kind of operator that makes the output at ``index``, past those that only hand values on; empty if none."""
    made = {name: node for node in model.graph.node for name in node.output}
    name = model.graph.output[index].name if model.graph.output else ""
    while name in made:
        node = made[name]
        if node.op_type not in _PASSING:
            return str(node.op_type)
        name = node.input[0]
    return ""


def own_tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """The constants of one graph, without those of the graphs inside its nodes."""
    constants = [a.t for node in graph.node for a in node.attribute if a.HasField("t")]
    return [*graph.initializer, *constants]


def all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All constants of a graph and of those inside its nodes, at any depth."""
    for one in graphs_in(graph):
        yield from own_tensors(one)

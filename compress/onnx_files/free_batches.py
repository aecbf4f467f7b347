"""A graph for any number of samples, made of two that were traced with numbers of samples of their own.

Where the code of a network makes a number of its batch size (``x.view(int(x.shape[0]), -1)``,
``torch.arange(len(x))``), the exporter writes that number down. What of a graph is such a number is seen by tracing
twice, with two and with three samples: whole numbers that differ grow with the batch, as ``a * n + b``, and are
computed from the shape of an input instead. Two graphs that differ in anything else (a node for each sample, say)
cannot be freed that way.

What comes out must be checked for parity: two points say nothing of how a number goes on that is not a straight line.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import helper, numpy_helper

from targets.errors import ExportError

_NAME = "batch"
"""Begins the names of what is added."""


def freed(first: onnx.ModelProto, second: onnx.ModelProto, sizes: tuple[int, int]) -> onnx.ModelProto:
    """The graph for any number of samples; ``first``, ``second``: the same for ``sizes`` of them.

    Raises ExportError where they differ in more than whole numbers that grow with the number of samples.
    """
    model = copy.deepcopy(first)
    one, two = first.graph, second.graph
    if len(one.node) != len(two.node):
        raise ExportError("its graph has other nodes for other batch sizes")
    weights = {tensor.name: tensor for tensor in two.initializer}
    grown: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for tensor in one.initializer:
        other = weights.get(tensor.name)
        if other is None:
            raise ExportError(f"its graph has other constants for other batch sizes ({tensor.name})")
        if tensor.SerializeToString() != other.SerializeToString():
            grown[tensor.name] = _line(numpy_helper.to_array(tensor), numpy_helper.to_array(other), sizes, tensor.name)
    for node, other_node in zip(one.node, two.node, strict=True):
        if node.SerializeToString() == other_node.SerializeToString():
            continue
        if _kind(node) != _kind(other_node) or node.op_type != "Constant":
            raise ExportError(f"a node of its graph is another one for other batch sizes ({node.op_type})")
        name = node.output[0]
        grown[name] = _line(_constant(node), _constant(other_node), sizes, name)
    source = _free(model.graph, two)
    if grown:
        _compute(model.graph, grown, source)
    del model.graph.value_info[:]
    return model


def _free(graph: onnx.GraphProto, other: onnx.GraphProto) -> str:
    """Name the axes of inputs and outputs that differ from those of ``other``, in place; returns an input with one."""
    source = ""
    for values, others in ((graph.output, other.output), (graph.input, other.input)):
        for value, changed in zip(values, others, strict=True):
            dims = value.type.tensor_type.shape.dim
            for place, (dim, next_dim) in enumerate(zip(dims, changed.type.tensor_type.shape.dim, strict=True)):
                if dim.dim_value != next_dim.dim_value:
                    dim.dim_param = _NAME if place == 0 else f"{_NAME}_{value.name}_{place}"
                    source = value.name
    return source


def _kind(node: onnx.NodeProto) -> tuple[str, str, list[str], list[str]]:
    return node.domain, node.op_type, list(node.input), list(node.output)


def _constant(node: onnx.NodeProto) -> np.ndarray:
    """The value of a Constant, in whichever of its attributes it stands."""
    value = helper.get_attribute_value(node.attribute[0])
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _line(one: np.ndarray, two: np.ndarray, sizes: tuple[int, int], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of ``a * n + b``, which is ``one`` at the first of ``sizes`` and ``two`` at the second."""
    if one.shape != two.shape or one.dtype != np.int64 or two.dtype != np.int64:
        raise ExportError(f"its graph has other constants for other batch sizes ({name})")
    slope, left = np.divmod(two - one, sizes[1] - sizes[0])
    if left.any():
        raise ExportError(f"a number of its graph does not grow evenly with the batch size ({name})")
    return np.asarray(slope), np.asarray(one - slope * sizes[0])


def _compute(graph: onnx.GraphProto, grown: dict[str, tuple[np.ndarray, np.ndarray]], source: str) -> None:
    """Compute the constants called ``grown`` from the length of the input ``source``, in place."""
    kept = [node for node in graph.node if not (node.op_type == "Constant" and node.output[0] in grown)]
    weights = [tensor for tensor in graph.initializer if tensor.name not in grown]
    added = [
        helper.make_node("Shape", [source], [f"{_NAME}_size"], start=0, end=1),
        helper.make_node("Squeeze", [f"{_NAME}_size", f"{_NAME}_axis"], [f"{_NAME}_number"]),
    ]
    weights.append(numpy_helper.from_array(np.zeros(1, np.int64), f"{_NAME}_axis"))
    for k, (name, (slope, rest)) in enumerate(grown.items()):
        times, scaled, plus = (f"{_NAME}_{what}_{k}" for what in ("times", "scaled", "plus"))
        weights += [numpy_helper.from_array(slope, times), numpy_helper.from_array(rest, plus)]
        added.append(helper.make_node("Mul", [f"{_NAME}_number", times], [scaled]))
        added.append(helper.make_node("Add", [scaled, plus], [name]))
    del graph.node[:], graph.initializer[:]
    graph.node.extend([*added, *kept])
    graph.initializer.extend(weights)

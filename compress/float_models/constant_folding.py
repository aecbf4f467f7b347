"""Constants that a file computes before it uses them: made plain initializers, so that quantizers see the weights.

Exporters put weights behind Constant, Identity, Transpose or Cast nodes. Folded is only what leads to a weight, bias or
scale of a layer; shapes that are computed stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from compress.onnx_files.contents import graphs_in, opset_of

_FOLDED = (
    "Add", "Cast", "Div", "Expand", "Flatten", "Identity", "Mul", "Reshape", "Squeeze", "Sub", "Transpose", "Unsqueeze",
)  # fmt: skip
_SLOTS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2), "BatchNormalization": (1, 2, 3, 4), "PRelu": (1,),
    "LSTM": (1, 2, 3), "GRU": (1, 2, 3), "RNN": (1, 2, 3),
}  # fmt: skip
"""Inputs of layers that are weights, where they are constant."""
_MOST_NUMBERS = 10**9
"""What is computed to be larger than this stays as it is."""
_SMALL = 64
"""A constant of fewer values may be there twice."""


def fold_constants(model: onnx.ModelProto) -> None:
    """Change ``model`` in place: Constant nodes become initializers, and so does what is computed from them for layers.

    A weight that something else reads as well, before it is turned for a layer, is left where it is: it would be in the
    file twice.
    """
    graph = model.graph
    leaving = {value.name for value in graph.output}
    constants = _unpacked(graph, leaving)
    chosen = _chosen(graph, constants, leaving)
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output and node.output[0] in chosen and all(name in constants for name in node.input if name):
            try:
                constants[node.output[0]] = _value(node, constants, opset_of(model))
                graph.initializer.append(numpy_helper.from_array(constants[node.output[0]], node.output[0]))
                continue
            except Exception:  # the reference implementation lacks a type: what cannot be folded stays
                constants.pop(node.output[0], None)
        kept.append(node)
    replace_nodes(graph, kept)
    _drop_unused(graph)


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Put ``nodes``, some of which may be the graph's own, in place of all nodes of ``graph``."""
    copies = []
    for node in nodes:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copies.append(copied)
    del graph.node[:]
    graph.node.extend(copies)


def _unpacked(graph: onnx.GraphProto, leaving: set[str]) -> _Lazy:
    """Values of all constants by name; Constant nodes with a tensor of numbers become initializers on the way."""
    kept = []
    for node in graph.node:
        tensor = _tensor(node) if node.op_type == "Constant" and node.output[0] not in leaving else None
        if tensor is None:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    if len(kept) < len(graph.node):
        replace_nodes(graph, kept)
    return _Lazy({tensor.name: tensor for tensor in graph.initializer})


class _Lazy(dict[str, np.ndarray]):
    """Constants by name; an initializer is read when it is looked up."""

    def __init__(self, tensors: Mapping[str, onnx.TensorProto]) -> None:
        super().__init__()
        self._tensors = dict(tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors or super().__contains__(name)

    def __missing__(self, name: str) -> np.ndarray:
        found: np.ndarray = numpy_helper.to_array(self._tensors[name])
        return found

    def size(self, name: str) -> int:
        """How many values a constant has."""
        return int(np.prod(self._tensors[name].dims)) if name in self._tensors else 0


def _tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """What a Constant node holds; None for text and sparse tensors."""
    attribute = node.attribute[0] if node.attribute else None
    if attribute is None:
        return None
    if attribute.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(attribute.t)
        return None if tensor.data_type == onnx.TensorProto.STRING else tensor
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name not in kinds:
        return None
    found = np.asarray(onnx.helper.get_attribute_value(attribute), kinds[attribute.name])
    return numpy_helper.from_array(found)


def _chosen(graph: onnx.GraphProto, constants: _Lazy, leaving: set[str]) -> set[str]:
    """Outputs of the nodes that are to be folded: they lead from constants to layers, and to nothing else."""
    known = {tensor.name for tensor in graph.initializer}
    foldable: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type in _FOLDED and len(node.output) == 1 and all(name in known for name in node.input if name):
            known.add(node.output[0])
            foldable[node.output[0]] = node
    wanted = {
        node.input[i] for node in graph.node for i in _SLOTS.get(node.op_type, ()) if i < len(node.input)
    } & foldable.keys()
    for output, node in reversed(foldable.items()):
        if output in wanted:
            wanted.update(name for name in node.input if name in foldable)
    wanted -= leaving
    readers: dict[str, list[onnx.NodeProto]] = {}
    for inner in graphs_in(graph):
        for node in inner.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)

    def shared(node: onnx.NodeProto) -> bool:
        big = [name for name in node.input if constants.size(name) > _SMALL]
        return any(not (one.output and one.output[0] in wanted) for name in big for one in readers[name])

    return {output for output in wanted if not shared(foldable[output])}


def _value(node: onnx.NodeProto, constants: Mapping[str, np.ndarray], opset: int) -> np.ndarray:
    """What ``node`` computes, by ONNX's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    names = list(dict.fromkeys(name for name in node.input if name))
    feeds = {name: np.asarray(constants[name]) for name in names}
    _check_size(node, feeds)
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in feeds.items()
    ]
    output = onnx.ValueInfoProto(name=node.output[0])
    graph = onnx.helper.make_graph([node], "constant", inputs, [output])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    found: Any = ReferenceEvaluator(made).run(None, feeds)
    return np.asarray(found[0])


def _check_size(node: onnx.NodeProto, feeds: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where the node would make far more numbers of what it reads than any weight has."""
    shapes = [x.shape for x in feeds.values()]
    if node.op_type == "Expand":
        shapes[1] = tuple(int(size) for size in feeds[node.input[1]].reshape(-1))
    if node.op_type in ("Expand", "Add", "Sub", "Mul", "Div"):  # these make more of less
        size = math.prod(np.broadcast_shapes(*shapes)) if shapes else 0
        if size > _MOST_NUMBERS:
            raise ValueError(f"{size} numbers")


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove initializers that nothing reads any more."""
    used = {value.name for value in graph.output}
    for inner in graphs_in(graph):
        used.update(name for node in inner.node for name in node.input)
        used.update(value.name for value in inner.output)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)

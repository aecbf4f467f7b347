"""Which nodes stay in float, whatever is asked for, and which operators a named set leaves in float.

The reasons are of two kinds: numbers that eight bits cannot hold (masks of attention, what is not finite), and places
where ONNX Runtime's quantizer (seen with 1.31) would fail or write something wrong without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import onnx

from compress.float_models.masks import masked_nodes
from compress.onnx_files.contents import graphs_inside
from compress.values.configs import OPERATORS

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_MOVING = ("Clip", "Flatten", "MaxPool", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that lose nothing in integers: they move values, or fold into the quantizer in front of them."""
_RECURRENT = ("LSTM", "GRU", "RNN")
_NORMS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization")
_FOLDING = ("Clip", "Relu")
"""Operators that ONNX Runtime's quantizer takes out, giving their range to what stands in front of them."""


def float_nodes(model: onnx.ModelProto, left_out: Collection[str], operators: str = OPERATORS[0]) -> list[str]:
    """Names of the nodes of ``model`` that are not to be quantized; all nodes must have names.

    ``left_out``: tensors without a range; ``operators``: a name of OPERATORS.
    """
    allowed = {"products": (*PRODUCTS, *_MOVING), "convolutions": ("Conv", "ConvTranspose", *_MOVING)}.get(operators)
    tapped = _tapped(model)
    masked = masked_nodes(model)
    norms = _odd_norms(model)
    constant = set(_constant_nodes(model))

    def stays(node: onnx.NodeProto) -> bool:
        if allowed is not None and node.op_type not in allowed:
            return True
        # Recurrent layers have no static int8 kernel; their weights must be constants (OpenVINO), not converted ones.
        if node.op_type in _RECURRENT or node.name in masked or node.name in norms or node.name in constant:
            return True
        if not set(left_out).isdisjoint((*node.input, *node.output)):
            return True
        return node.op_type in _FOLDING and node.input[0] in tapped

    return [node.name for node in model.graph.node if stays(node)]


def other_operators(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Operator -> names of its nodes, for those that int8 changes values by and that are no products."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    constant = set(_constant_nodes(model))
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        quantized = node.op_type in QDQRegistry or node.op_type in QLinearOpsRegistry
        if quantized and node.op_type not in (*PRODUCTS, *_MOVING) and node.name not in constant:
            found.setdefault(node.op_type, []).append(node.name)
    return found


def _tapped(model: onnx.ModelProto) -> set[str]:
    """Values that leave the graph, or that an inner graph reads: with the range of a ReLU they would lose a part."""
    found = {value.name for value in model.graph.output}
    for node in model.graph.node:
        for graph in graphs_inside(node):
            found.update(name for inner in graph.node for name in inner.input)
            found.update(value.name for value in graph.output)
    return found


def _odd_norms(model: onnx.ModelProto) -> set[str]:
    """Norms whose scale is no vector, or is no constant, or is used twice: the quantizer fails at them."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    found = set()
    for node in model.graph.node:
        if node.op_type not in _NORMS:
            continue
        weights = [name for name in node.input[1:3] if name]
        odd = any(name not in tensors or len(tensors[name].dims) != 1 or uses[name] > 1 for name in weights)
        if odd:
            found.add(node.name)
    return found


def _constant_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that compute from constants alone: a recurrent layer's weights, put in order."""
    known = {t.name for t in model.graph.initializer} | {""}
    found = []
    for node in model.graph.node:
        # A random node has no inputs, an If has them inside.
        inside = any(True for _ in graphs_inside(node))
        if (node.input or node.op_type == "Constant") and not inside and known.issuperset(node.input):
            known.update(node.output)
            found.append(node.name)
    return found

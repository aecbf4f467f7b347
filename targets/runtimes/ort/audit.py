"""Which products of a model ONNX Runtime computes in integers, and why the others are not: read from the graph
that it made of the file.

It fuses ``DequantizeLinear -> Conv -> QuantizeLinear`` and its like into one integer kernel where types and
neighbours allow it; what it left alone is computed in floats, with the conversions on top.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from targets.model_files.onnx_graph import Graph, Node, Scope, all_graphs
from targets.target import Layer

_INTEGER = frozenset({
    "QLinearConv", "QLinearMatMul", "QLinearConvTranspose", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "ConvInteger", "ConvTransposeInteger", "MatMulInteger", "MatMulInteger16", "DynamicQuantizeLSTM", "QAttention",
})  # fmt: skip
_RECURRENT = frozenset({"LSTM", "GRU", "RNN", "AttnLSTM"})
_ATTENTION = frozenset({
    "Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention", "PackedAttention",
})  # fmt: skip
_FLOAT = frozenset({
    "Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvTranspose", "ConvTransposeWithDynamicPads", "DeformConv",
    "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", "Einsum",
})  # fmt: skip
_PRODUCTS = _INTEGER | _RECURRENT | _ATTENTION | _FLOAT | {"MatMulNBits"}
_HUNG_ON = re.compile(r"^fused |/\w+Fusion/?|(_token_\d+|_nchwc)+$")
"""What ONNX Runtime adds to the names of nodes that it rewrites."""


@dataclass(frozen=True)
class _File:
    """What the file itself says, branches and loops included."""

    nodes: frozenset[str]
    makers: Mapping[str, Node]
    values: frozenset[str]

    def name(self, node: Node) -> str:
        """What an optimized node is called in the file: by itself or, rewritten, by what it computes."""
        own = _HUNG_ON.sub("", node.name)
        if own in self.nodes:
            return own
        for value in (own, *node.outputs):
            maker = self.makers.get(value)
            while maker is not None and maker.operator not in _PRODUCTS and maker.inputs:
                maker = self.makers.get(maker.inputs[0])
            if maker is not None:
                return maker.name or maker.outputs[0]
        return own or next((one for one in node.outputs if one), node.operator)


def executed_layers(optimized: Graph, original: Graph, *, fuses: bool = True) -> list[Layer]:
    """The products of ``optimized``, which ONNX Runtime made of ``original``, branches and loops included.

    ``fuses``: whether the session was asked to fuse at all.
    """
    graphs = list(all_graphs(original))
    nodes = [node for graph in graphs for node in graph.nodes]
    makers = {name: node for node in nodes for name in node.outputs if name}
    constants = {name for graph in graphs for name in graph.constants}
    file = _File(frozenset(node.name for node in nodes if node.name), makers, frozenset(constants.union(makers)))
    return list(_layers(optimized, Scope({}, {}), file, fuses))


def _layers(graph: Graph, around: Scope, file: _File, fuses: bool) -> Iterator[Layer]:
    scope = around.inside(graph)
    for node in graph.nodes:
        if node.operator in _PRODUCTS:
            yield _layer(node, scope, file, fuses)
        for body in node.bodies:
            yield from _layers(body, scope, file, fuses)


def _layer(node: Node, scope: Scope, file: _File, fuses: bool) -> Layer:
    name = file.name(node)
    operator = node.operator if node.domain in ("", "com.microsoft") else f"{node.domain}:{node.operator}"
    if node.operator in _INTEGER:
        return Layer(name, operator, True, _quantized_here(node, file))
    if node.operator == "MatMulNBits":
        integer = node.numbers.get("accuracy_level", 0) == 4
        why = "" if integer else "only its weights are integers; accuracy_level 4 would compute in integers"
        return Layer(name, operator, integer, why)
    if node.operator in _RECURRENT:
        return Layer(name, operator, False, f"ONNX Runtime has no static int8 kernel for {node.operator}")
    if node.operator in _ATTENTION:
        return Layer(name, operator, False, f"ONNX Runtime computes {node.operator} in floats")
    return Layer(name, operator, False, _why_float(node, scope, fuses))


def _quantized_here(node: Node, file: _File) -> str:
    """Without a bias, float weights between quantized values are quantized by ONNX Runtime itself (seen with 1.31)."""
    own = any(name.endswith("_weight_q") and name not in file.values for name in node.inputs)
    return "float in the file; ONNX Runtime quantized its weights when loading" if own else ""


def _why_float(node: Node, scope: Scope, fuses: bool) -> str:
    both = [name for name in node.inputs[:2] if name]
    types = [scope.quantized(name) for name in both]
    if None in types:
        return _why_not_quantized(both, types, scope)
    said = "quantized in the file, but "
    if len(node.inputs) > 2 and node.inputs[2] and scope.quantized(node.inputs[2]) is None:
        return said + "its bias is not"
    if not fuses:
        return said + "not fused at this optimization level"
    users = [user for name in node.outputs for user in scope.users.get(name, ())]
    other = next((user.operator for user in users if user.operator != "QuantizeLinear"), None)
    if other is not None:
        return f"{said}its output goes on to {other} without being quantized"
    if not users:
        return said + "its output is not quantized"
    if node.words.get("activation"):
        return f"{said}{node.words['activation']} stands between it and its QuantizeLinear"
    result = scope.integer_type(users[0])
    if types[0] == "uint8" and types[1] in ("uint8", "int8") and result == "uint8":
        return "surrounded by DequantizeLinear, but not fused"
    to = "" if result == types[0] else f", quantized to {result},"
    return (
        f"activation and weight types ({', '.join(map(str, types))}){to} have no integer kernel for this operator here"
    )


def _why_not_quantized(names: list[str], types: list[str | None], scope: Scope) -> str:
    weightless = not any(scope.constant(name) for name in names)
    if not any(types):
        return "float in the file" + ("; no constant weight" if weightless else "")
    if weightless:
        return "one of its inputs is float in the file; no constant weight"
    what = "weight" if scope.constant(names[types.index(None)]) else "activation"
    return f"its {what} is float in the file"

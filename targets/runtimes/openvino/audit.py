"""Which products of a model OpenVINO computes in integers, and why the others are not: read from the graph that a
compiled model shows.

What counts is the type of a kernel's operands: ``runtimePrecision`` is float where a float addition was fused into
an integer convolution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from targets.model_files.onnx_graph import Graph, Scope
from targets.target import Layer

_RECURRENT = frozenset({"RNNSeq", "RNNCell", "AUGRUSeq", "AUGRUCell"})
_ATTENTION = frozenset({"ScaledDotProductAttention", "ScaledDotProductAttentionWithKVCache", "PagedAttention", "MHA"})
_PRODUCTS = (
    frozenset({
        "Convolution", "Deconvolution", "DeformableConvolution", "BinaryConvolution", "GroupConvolution",
        "FullyConnected", "MatMul", "GatherMatmul", "QKVProjection", "LLMMLP",
    })
    | _RECURRENT
    | _ATTENTION
)  # fmt: skip
_SNIPPETS = frozenset({"Subgraph"})
"""Several operators in one generated kernel; attention in floats comes as one."""
_INTEGER = frozenset({"i8", "u8"})
_IN_THE_FILE = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum", "DeformConv", "Attention",
    "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
})  # fmt: skip
_RECURRENT_IN_THE_FILE = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})
_BY_HAND = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
"""Integer operators that OpenVINO takes apart into float ones."""


@dataclass(frozen=True)
class _Product:
    """A product as the file has it; ``quantized``: both operands come from integers."""

    name: str
    operator: str
    quantized: bool


def executed_layers(executed: Any, original: Graph) -> list[Layer]:
    """The products of ``executed``, a runtime model, which OpenVINO made of ``original``."""
    named = dict(_products(original, Scope({}, {})))
    recurrent = [one for one in dict.fromkeys(named.values()) if one.operator in _RECURRENT_IN_THE_FILE]
    found: dict[str, Layer] = {}
    for op in executed.get_ordered_ops():
        kind = _said(op, "layerType")
        parts = [
            _plain(part) for part in (op.get_friendly_name(), *_said(op, "originalLayersNames").split(",")) if part
        ]
        inside = list(dict.fromkeys(named[part] for part in parts if part in named))
        if kind in _SNIPPETS:
            for one in inside:
                # The bias of a product goes by the product's name, and may be in a kernel of its own.
                found.setdefault(one.name, _layer(op, f"{kind}({one.operator})", one.name, one))
        elif kind in _PRODUCTS:
            inside = inside or (recurrent if kind in _RECURRENT and len(recurrent) == 1 else [])
            found.update((one.name, _layer(op, kind, one.name, one)) for one in inside)
            if not inside:
                found[parts[0]] = _layer(op, kind, parts[0], None)
    return list(found.values())


def _layer(op: Any, kind: str, name: str, product: _Product | None) -> Layer:
    operator = " ".join(filter(None, (kind, _said(op, "primitiveType"))))
    types = [port.get_element_type().get_type_name() for port in op.inputs()[:2]]
    if types and all(one in _INTEGER for one in types):
        return Layer(name, operator, True)
    runs = f"computed in {' x '.join(types)}"
    if product is None:
        return Layer(name, operator, False, runs)
    if product.operator in _BY_HAND:
        return Layer(name, operator, False, f"{product.operator} in the file, but {runs}")
    return Layer(
        name, operator, False, f"quantized in the file, but {runs}" if product.quantized else "float in the file"
    )


def _products(graph: Graph, around: Scope) -> Iterator[tuple[str, _Product]]:
    """The products of a file, by node name and by the names of what they compute: OpenVINO uses either."""
    scope = around.inside(graph)
    for node in graph.nodes:
        if node.operator in _IN_THE_FILE:
            quantized = all(scope.quantized(name) is not None for name in node.inputs[:2])
            names = [name for name in (node.name, *node.outputs) if name]
            for name in names:
                yield name, _Product(names[0], node.operator, quantized or node.operator.startswith("QLinear"))
        for body in node.bodies:
            yield from _products(body, scope)


def _plain(name: str) -> str:
    """Without what OpenVINO adds to the name of an operator that it takes apart."""
    return re.sub("/(WithoutBiases|DequantizationMultiply)$", "", name)


def _said(op: Any, key: str) -> str:
    known = op.rt_info
    if key not in known:
        return ""
    value = known[key]
    return str(value.astype(str)) if hasattr(value, "astype") else str(value)

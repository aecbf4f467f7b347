"""Keeps float layers in float: without it ONNX Runtime (seen with 1.31) makes integers of them itself.

A Conv or Gemm with float weights whose input is dequantized and whose output is quantized gets its weights quantized
when the file is loaded, with one scale for all channels: worse than what it was excluded from. It does so where
``DequantizeLinear -> Conv -> QuantizeLinear`` stand in a row, and a ReLU between them is folded away first. A LeakyReLU
in between is neither: with slope 0 it is the ReLU, with slope 1 it does nothing, and both are fused into the float
kernel, so that they cost no time.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import onnx

_FENCED = ("Conv", "ConvTranspose", "Gemm")


def fence(model: onnx.ModelProto, names: Collection[str]) -> tuple[onnx.ModelProto, list[str]]:
    """A copy of ``model`` in which the nodes of these ``names`` are fenced, and the names of the fences.

    Fences are not to be quantized either. The tensor behind a fence keeps its name, since ranges are known by it.
    """
    if not names:
        return model, []
    model = copy.deepcopy(model)
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    leaving = {value.name for value in model.graph.output}
    nodes, fences = [], []
    for node in model.graph.node:
        nodes.append(node)
        if node.name not in names or node.op_type not in _FENCED or node.output[0] in leaving:
            continue
        readers = users.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type == "Relu":
            readers[0].op_type = "LeakyRelu"
            readers[0].attribute.append(onnx.helper.make_attribute("alpha", 0.0))
            fences.append(readers[0].name)
        elif readers:
            output, inner = node.output[0], f"{node.output[0]}_unfenced"
            node.output[0] = inner
            fences.append(f"{node.name}_fence")
            nodes.append(onnx.helper.make_node("LeakyRelu", [inner], [output], name=fences[-1], alpha=1.0))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model, fences

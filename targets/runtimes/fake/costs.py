"""What a model would cost on a made-up CPU: multiply-accumulates counted from the graph.

Needs the onnx package, which is imported when a file is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from targets.errors import ModelError

STEP = 8
"""Channels are computed in blocks of this many."""
RUN_SECONDS = 5e-6
"""Fixed cost of a run."""
NODE_SECONDS = 2e-7
"""Fixed cost of a node."""
MAC_SECONDS = 2e-11
"""Cost of one fp32 multiply-accumulate."""
INT8_FACTOR = 0.5
"""Cost of an int8 multiply-accumulate relative to fp32."""

_FREE = frozenset({"QuantizeLinear", "DequantizeLinear", "Constant", "Identity"})
_INTEGER = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm"})
Shape = tuple[int, ...]


def inference_seconds(path: Path, *, step: int = STEP, shapes: Mapping[str, Sequence[int]] | None = None) -> float:
    """Cost of one inference at batch 1; raises ModelError if the file is not a model."""
    graph, known = _read(path, shapes or {})
    from_int8 = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    total = RUN_SECONDS
    for node in graph.node:
        if node.op_type in _FREE:
            continue
        integer = node.op_type in _INTEGER or (len(node.input) > 1 and node.input[1] in from_int8)
        try:
            count = macs(node, known, step)
        except IndexError:
            raise ModelError(f"{path}: operator {node.op_type} ({node.name}) lacks inputs or dimensions") from None
        total += NODE_SECONDS + MAC_SECONDS * (INT8_FACTOR if integer else 1.0) * count
    return total


def macs(node: Any, shapes: Mapping[str, Shape], step: int = 1) -> int:
    """Multiply-accumulates of one node, channels rounded up to ``step``; 0 for what is not a product."""
    if node.op_type in ("Conv", "QLinearConv", "ConvInteger"):
        weight = shapes.get(node.input[3 if node.op_type == "QLinearConv" else 1])
        output = shapes.get(node.output[0])
        if not weight or not output:
            return 0
        inside = weight[1] if weight[1] == 1 else _up(weight[1], step)
        return _up(weight[0], step) * inside * math.prod(weight[2:]) * output[0] * math.prod(output[2:])
    if node.op_type in ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"):
        left, output = shapes.get(node.input[0]), shapes.get(node.output[0])
        if not left or not output:
            return 0
        transposed = any(one.name == "transA" and one.i for one in node.attribute)
        depth = left[-2] if transposed and len(left) > 1 else left[-1]
        return math.prod(output[:-1]) * _up(output[-1], step) * _up(depth, step)
    return 0


def _up(width: int, step: int) -> int:
    return -(-width // step) * step


def _read(path: Path, asked: Mapping[str, Sequence[int]]) -> tuple[Any, dict[str, Shape]]:
    """The graph, and every shape that can be inferred with batch 1 (other dynamic axes 1 too)."""
    import onnx

    try:
        model = onnx.load(str(path))
        if not model.graph.node:
            raise ValueError("no nodes")
    except Exception:
        raise ModelError(f"{path}: truncated or not an ONNX file") from None
    for item in model.graph.input:
        for index, axis in enumerate(item.type.tensor_type.shape.dim):
            if axis.WhichOneof("value") != "dim_value" or axis.dim_value < 0:
                wanted = asked.get(item.name)
                axis.dim_value = wanted[index] if wanted and index < len(wanted) else 1
    # What the exporter wrote down is symbolic in the batch; infer it anew from the inputs.
    del model.graph.value_info[:]
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception as error:
        raise ModelError(f"{path}: its shapes cannot be inferred: {' '.join(str(error).split())[:200]}") from None
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for item in [*graph.input, *graph.value_info, *graph.output]:
        axes = item.type.tensor_type.shape.dim
        shapes.setdefault(item.name, tuple(max(1, axis.dim_value) for axis in axes))
    for node in graph.node:
        # Weights that went through a (de)quantizer keep their shape; older inference leaves them out.
        if node.op_type in _FREE and node.input and node.output and node.input[0] in shapes:
            shapes[node.output[0]] = shapes.get(node.output[0]) or shapes[node.input[0]]
    return graph, shapes

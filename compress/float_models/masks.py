"""Masks of attention: huge negative numbers that a softmax turns into zeros, and that no range of eight bits can hold.

A score of -inf, -1e9 or the least float stretches a tensor's range until every real score is the same integer. So from
where such a number enters to the softmax that uses it up, everything stays in float; none of it is an integer kernel's
work in any runtime known here.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from compress.onnx_files.contents import attributes_of

HUGE = 1e4
"""Beyond this a number in a mask is no score."""
_CARRIERS = frozenset({
    "Add", "And", "Cast", "CastLike", "Concat", "ConstantOfShape", "Div", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "Max", "Min", "Mul", "Neg", "Pad", "ReduceMax", "Reshape", "ScatterND",
    "Slice", "Split", "Squeeze", "Sub", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators that hand a mask on."""
_ENDS = frozenset({"Exp", "LogSoftmax", "ReduceLogSumExp", "Sigmoid", "Softmax"})
"""Operators that make nothing of it."""


def masked_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes between a mask's huge numbers and the softmax, both ends included; nodes must have names."""
    tainted = {tensor.name for tensor in model.graph.initializer if _is_huge(tensor)}
    path: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if not (tainted.intersection(node.input) or _makes_huge(node)):
            continue
        path.append(node)
        if node.op_type in _CARRIERS or _makes_huge(node):
            tainted.update(node.output)
    found: set[str] = set()
    needed: set[str] = set()
    for node in reversed(path):
        if node.op_type in _ENDS or (node.op_type in _CARRIERS | {"Constant"} and needed.intersection(node.output)):
            found.add(node.name)
            needed.update(node.input)
    return found


def masked_tensors(model: onnx.ModelProto, nodes: set[str]) -> set[str]:
    """Names of the values that leave these ``nodes``, but for those behind a softmax: what has no use for a range."""
    return {
        name for node in model.graph.node if node.name in nodes and node.op_type not in _ENDS for name in node.output
    }


def _is_huge(tensor: onnx.TensorProto) -> bool:
    """Whether a constant holds a number below -HUGE, or infinity."""
    if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16):
        return False
    array = numpy_helper.to_array(tensor)
    return bool(array.size and (array.min() <= -HUGE or not np.isfinite(array).all()))


def _makes_huge(node: onnx.NodeProto) -> bool:
    """Whether a node makes such a constant of nothing."""
    if node.op_type not in ("Constant", "ConstantOfShape"):
        return False
    found = attributes_of(node)
    if isinstance(found.get("value_float"), float):
        return not found["value_float"] > -HUGE or not np.isfinite(found["value_float"])
    return isinstance(found.get("value"), onnx.TensorProto) and _is_huge(found["value"])

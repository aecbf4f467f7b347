"""Weights stored in fewer bits and computed in floats: a smaller file that any runtime of the operators runs.

``fp16``: half precision, with a Cast to float behind every weight (folded when the file is loaded: it costs no time).
``int8-weights``: eight bits, a scale for every output channel, with a DequantizeLinear behind every weight.
``int4-weights``: matrix products alone, four bits, a scale for every 32 inputs: ONNX Runtime's own MatMulNBits.
Rounding is to the nearest; nothing is calibrated. bfloat16 is not offered: as large as fp16 and eight times as coarse.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compress.float_models.plain_models import LEAST_OPSET, read_plain
from compress.onnx_files.contents import opset_of
from compress.precision.quantizer import split_gemm
from targets.errors import QuantizeError

VERSION = 2
BITS_DOMAIN, BITS_KIND = "com.microsoft", "MatMulNBits"
BLOCK = 32
"""Inputs that share a scale in four bits."""
_WORTH = 64
"""Weights of fewer values stay as they are: the node behind them is as large as what is saved."""
_HALF_ERROR = 1e-3
"""Weights that half precision would change by more than this share stay in float: they are out of its range."""
_OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def stored_model(
    model: onnx.ModelProto, scheme: str, name: str = "the model"
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """(a copy of ``model`` with its weights stored as ``scheme`` says, names of the layers whose weights are integers).

    ``scheme``: ``fp16``, ``int8-weights`` or ``int4-weights``; ``name``: of the file, for messages.
    Raises QuantizeError where nothing would change.
    """
    model = copy.deepcopy(model)
    version = opset_of(model)
    if scheme == "int8-weights" and version < LEAST_OPSET:
        raise QuantizeError(f"{name} is of opset {version}, int8-weights need {LEAST_OPSET}; export it anew")
    made: dict[str, Callable[[onnx.ModelProto], tuple[str, ...]]] = {
        "fp16": _half, "int8-weights": _eight_bits, "int4-weights": _four_bits,
    }  # fmt: skip
    before = model.SerializeToString(deterministic=True)
    layers = made[scheme](model)
    if before == model.SerializeToString(deterministic=True):
        what = "matrix product with constant weights" if scheme == "int4-weights" else "weights worth storing smaller"
        raise QuantizeError(f"{name} has no {what}: {scheme} would change nothing")
    return model, layers


def write_stored(source: Path, scheme: str, destination: Path) -> tuple[str, ...]:
    """Write what ``stored_model`` makes of a file to ``destination``; names of the layers that are integers now.

    Raises as ``stored_model`` and ``read_plain`` do.
    """
    model = read_plain(source, 0 if scheme == "fp16" else LEAST_OPSET)
    model, layers = stored_model(model, scheme, source.name)
    onnx.save(model, destination)
    return layers


def _half(model: onnx.ModelProto) -> tuple[str, ...]:
    """Every float weight in half precision, where that holds it."""
    casts = []
    for tensor in _weights(model):
        array = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if array.size < _WORTH or not np.linalg.norm(half - array) <= _HALF_ERROR * np.linalg.norm(array):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_to_float", to=TensorProto.FLOAT))
    _put_first(model.graph, casts)
    return ()


def _eight_bits(model: onnx.ModelProto) -> tuple[str, ...]:
    """The weights of products in eight bits."""
    weights = {t.name: t for t in _weights(model)}
    found: dict[str, int] = {}
    layers = []
    for node in model.graph.node:
        if node.op_type in _OUTPUT_AXIS and node.input[1] in weights:
            axis = _output_axis(node, len(weights[node.input[1]].dims))
            if found.setdefault(node.input[1], axis) == axis:
                layers.append(node.name or node.output[0])
    nodes = []
    for name, axis in found.items():
        array = numpy_helper.to_array(weights[name])
        others = tuple(i for i in range(array.ndim) if i != axis)
        scale = np.abs(array).max(others, keepdims=True) / 127
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        levels = np.clip(np.round(array / scale), -127, 127).astype(np.int8)
        weights[name].CopyFrom(numpy_helper.from_array(levels, f"{name}_int8"))
        model.graph.initializer.append(numpy_helper.from_array(scale.reshape(-1), f"{name}_scale8"))
        inputs = [f"{name}_int8", f"{name}_scale8"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name], f"{name}_to_float", axis=axis))
    _put_first(model.graph, nodes)
    return tuple(layers)


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of a product's weight that its outputs lie on."""
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return rank - 1 if node.op_type == "MatMul" else _OUTPUT_AXIS[node.op_type]


def _four_bits(model: onnx.ModelProto) -> tuple[str, ...]:
    """Matrix products with constant weights as MatMulNBits."""

    split = split_gemm(model)
    weights = {t.name: t for t in _weights(split)}
    layers, stored = [], set()
    for node in split.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights or len(weights[node.input[1]].dims) != 2:
            continue
        name = node.input[1]
        array = numpy_helper.to_array(weights[name])
        if name not in stored:
            blocks, scales = pack_four_bits(array)
            for ending, values in (("int4", blocks), ("scale4", scales)):
                split.graph.initializer.append(numpy_helper.from_array(values, f"{name}_{ending}"))
            stored.add(name)
        inputs, outputs, label = [node.input[0], f"{name}_int4", f"{name}_scale4"], list(node.output), node.name
        node.CopyFrom(
            helper.make_node(
                BITS_KIND, inputs, outputs, label, domain=BITS_DOMAIN,
                K=array.shape[0], N=array.shape[1], bits=4, block_size=BLOCK, accuracy_level=4,
            )
        )  # fmt: skip
        layers.append(label or outputs[0])
    if not layers:
        return ()
    used = {name for node in split.graph.node for name in node.input}
    kept = [t for t in split.graph.initializer if t.name not in stored or t.name in used]
    kept = [copy.deepcopy(t) for t in kept]
    del split.graph.initializer[:]
    split.graph.initializer.extend(kept)
    if all(one.domain != BITS_DOMAIN for one in split.opset_import):
        split.opset_import.append(helper.make_opsetid(BITS_DOMAIN, 1))
    model.CopyFrom(split)
    return tuple(layers)


def pack_four_bits(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A weight (inputs, outputs) as MatMulNBits reads it: (outputs, blocks, 16) bytes of two values each, and scales.

    Scales are (outputs * blocks,). w = scale * (level - 8) with levels from 0 to 15; the value of largest size in a
    block is hit exactly.
    """
    inputs, outputs = weight.shape
    count = -(-inputs // BLOCK)
    blocks = np.zeros((outputs, count * BLOCK), np.float32)
    blocks[:, :inputs] = weight.T
    blocks = blocks.reshape(outputs, count, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(2)[..., None], 2)
    scales = np.where(largest != 0, largest / -8, 1).astype(np.float32)
    levels = np.clip(np.round(blocks / scales) + 8, 0, 15).astype(np.uint8)
    return levels[..., ::2] | (levels[..., 1::2] << 4), scales.reshape(-1)


def _weights(model: onnx.ModelProto) -> list[TensorProto]:
    """Float constants that are not inputs as well."""
    given = {value.name for value in model.graph.input}
    return [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.name not in given]


def _put_first(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Put ``nodes`` before all others, in place."""
    rest = [copy.deepcopy(node) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes, *rest])

"""ONNX files read and checked, and facts about a graph that do not depend on its weights: structure, size, work."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import onnx

from compress.onnx_files.contents import all_tensors, graphs_in, inputs_of
from compress.onnx_files.isolation import blaming, isolated
from compress.values.error_lines import one_line
from targets.errors import ModelError
from targets.tflite.tflite_files import SUFFIX, read_tflite

MOST_BYTES = 2 * 10**9
"""Weights beyond this do not fit into one file."""
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_INDICES = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
_TYPES = frozenset(onnx.helper.get_all_tensor_dtypes())
_SMALL = 64
"""Integer constants up to this many elements are shapes and axes: part of the structure."""


def load_model(path: Path) -> onnx.ModelProto:
    """The model in an ``.onnx`` file, which ONNX's own checker has found valid, with its external data.

    Raises ModelError, in one line, for a file that is missing, damaged or invalid, holds no operators or more than
    ``MOST_BYTES`` of weights, has inputs that are no tensors, or whose external data are missing or lie outside its
    folder.
    """
    model = read_unchecked(path)
    with blaming(path):
        reason = _invalid(path)
    if reason:
        raise _unreadable(path, reason)
    for value in inputs_of(model):
        if not value.type.HasField("tensor_type") or value.type.tensor_type.elem_type not in _TYPES:
            raise ModelError(
                f"{str(path)!r}: input {value.name!r} is no tensor; networks of tensors can be worked with"
            )
        _check_input(value, path)
    for tensor in all_tensors(model.graph):
        _values(tensor, path)
    return model


def _check_input(value: onnx.ValueInfoProto, path: Path) -> None:
    """Raise ModelError for an input whose fixed sizes make no sense, or are those of more than a file may hold."""
    tensor = value.type.tensor_type
    sizes = [axis.dim_value for axis in tensor.shape.dim if axis.WhichOneof("value") == "dim_value"]
    each = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).itemsize
    if math.prod(size or 1 for size in sizes) * each > MOST_BYTES:
        raise ModelError(
            f"{str(path)!r}: input {value.name!r} has the sizes {sizes}; up to {MOST_BYTES / 1e9:.0f} GB can be given: "
            "export the model with smaller or open sizes"
        )


def _values(tensor: onnx.TensorProto, path: Path) -> np.ndarray:
    """A tensor's values; raises ModelError where they are not there, or not as many as its shape says."""
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except Exception as error:
        raise _unreadable(path, f"weight {tensor.name!r} has no values of its shape ({one_line(error)})") from None


@isolated("checking")
def _invalid(path: Path) -> str:
    """What ONNX's own checker, which is native code, finds wrong with a file; empty where that is nothing."""
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        return one_line(error)
    return ""


def read_unchecked(path: Path) -> onnx.ModelProto:
    """As ``load_model``, without ONNX's checker: for files that this package has written or checked before."""
    if not path.is_file():
        raise ModelError(f"{str(path)!r} does not exist")
    _check_bytes(path.stat().st_size, path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise _unreadable(path, one_line(error)) from None
    if not model.graph.node:
        raise _unreadable(path, "it holds no operators")
    _open_negative_axes(model)
    _check_size(model, path)
    _check_external(model, path)
    try:
        onnx.load_external_data_for_model(model, str(path.resolve().parent))
    except Exception as error:
        raise _unreadable(path, one_line(error)) from None
    return model


def _open_negative_axes(model: onnx.ModelProto) -> None:
    """Say of axes whose size is negative, as older exporters write it, what ONNX Runtime reads there: that any fits."""
    for graph in graphs_in(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for axis in value.type.tensor_type.shape.dim:
                if axis.dim_value < 0:
                    axis.ClearField("dim_value")


def _check_size(model: onnx.ModelProto, path: Path) -> None:
    """Raise ModelError, before any weight is read, for more weights than one file holds."""
    tensors = list(all_tensors(model.graph))
    wrong = next((tensor for tensor in tensors if any(size < 0 for size in tensor.dims)), None)
    if wrong is not None:
        raise _unreadable(path, f"weight {wrong.name!r} has shape {list(wrong.dims)}")
    _check_bytes(sum(map(_bytes, tensors)), path)


def _check_bytes(size: int, path: Path) -> None:
    """Raise ModelError for more bytes of weights than one file holds."""
    if size > MOST_BYTES:
        raise ModelError(
            f"{str(path)!r}: its weights take {size / 1e9:.1f} GB; files of up to {MOST_BYTES / 1e9:.0f} GB can be "
            "worked with: give a smaller network"
        )


def _bytes(tensor: onnx.TensorProto) -> int:
    """The size of a tensor's values; of types that numpy does not know, one byte each."""
    try:
        each = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        each = 1
    return int(math.prod(tensor.dims)) * each


def _check_external(model: onnx.ModelProto, path: Path) -> None:
    """Raise ModelError for external data that is missing or, links followed, outside the model's folder."""
    folder = path.resolve().parent
    for tensor in all_tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        try:
            file = (folder / location).resolve()
            there = file.is_file()
        except (OSError, ValueError) as error:  # a name that no file can have
            raise _unreadable(path, f"the data of weight {tensor.name!r} is nowhere ({one_line(error)})") from None
        if not file.is_relative_to(folder) or file == folder:
            raise ModelError(
                f"{str(path)!r}: the data of weight {tensor.name!r} is said to be in {location!r}, outside the model's "
                "folder; put the file beside the model and save it again"
            )
        if not there:
            raise ModelError(
                f"{str(path)!r}: the file {location!r} with the data of weight {tensor.name!r} is not beside it; "
                "copy it there as well"
            )
        _check_bytes(file.stat().st_size, path)


def _unreadable(path: Path, reason: str) -> ModelError:
    return ModelError(f"{str(path)!r} is truncated or not a valid ONNX file: {reason}")


def structure_hash(path: Path) -> str:
    """A hash of the graph without the values of weights, scales and zero points: all that latency depends on.

    The first 16 hex digits of a SHA-256 over operators, attributes, shapes, types and small constants; names of values
    and nodes do not count. Raises ModelError where the file cannot be read.
    """
    if path.suffix == SUFFIX:
        return _tflite_hash(path)
    model = read_unchecked(path)
    digest = hashlib.sha256(repr([(o.domain, o.version) for o in model.opset_import]).encode())
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    for value in (*model.graph.input, *model.graph.output):
        digest.update(f"{number(value.name)}".encode() + value.type.SerializeToString(deterministic=True))
    names = {t.name: _shape_and_constants(t, path) for t in model.graph.initializer}
    for node in model.graph.node:
        inputs = [names.get(name) or number(name) for name in node.input]
        digest.update(f"{node.op_type}{node.domain}{inputs}{[number(name) for name in node.output]}".encode())
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            text = (
                _shape_and_constants(attribute.t, path)
                if attribute.HasField("t")
                else attribute.SerializeToString(deterministic=True).hex()
            )
            digest.update(f"{attribute.name}{text}".encode())
    return digest.hexdigest()[:16]


def _tflite_hash(path: Path) -> str:
    """The same of a ``.tflite`` file."""
    file = read_tflite(path)
    tensors = [(one.dtype, one.shape, one.channels, one.constant) for one in file.tensors]
    return hashlib.sha256(repr((tensors, file.operations)).encode()).hexdigest()[:16]


def _shape_and_constants(tensor: onnx.TensorProto, path: Path) -> str:
    text = f"{tensor.data_type}{list(tensor.dims)}"
    if tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL):
        size = int(np.prod(tensor.dims)) if tensor.dims else 1
        # int32 biases of quantized layers are weights; they come with as many elements as channels and no fixed value.
        if size <= _SMALL and tensor.data_type != onnx.TensorProto.INT32:
            text += str(_values(tensor, path).tolist())
    return text


def count_parameters(path: Path) -> int:
    """The number of values in the weights and biases of a float or QDQ file; scales, zero points and shapes are none.

    Raises ModelError where the file cannot be read.
    """
    graph = read_unchecked(path).graph
    scales = {name for n in graph.node if n.op_type in _CONVERSIONS for name in n.input[1:]}
    weights = (t for t in graph.initializer if t.dims and t.data_type not in _INDICES and t.name not in scales)
    return sum(int(np.prod(t.dims)) for t in weights)


def count_macs(path: Path) -> int:
    """The multiply-accumulates of convolutions and matrix products for one sample, from the shapes ONNX infers.

    Raises ModelError where the file cannot be read.
    """
    with blaming(path):
        return _count_macs(path)


@isolated("inferring the shapes of")
def _count_macs(path: Path) -> int:
    model = read_unchecked(path)
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim]
        for v in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    shapes.update({t.name: list(t.dims) for t in model.graph.initializer})
    return sum(_macs(node, shapes) for node in inferred.graph.node)


def _macs(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    """Those of one node; 0 where it is no such product, or its shapes are not known."""
    position = 3 if node.op_type.startswith("QLinear") else 1
    weight = shapes.get(node.input[position]) if len(node.input) > position else None
    source, out = shapes.get(node.input[0]) if node.input else None, shapes.get(node.output[0])
    if not source or not weight or out is None:
        return 0
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return int(np.prod(out)) * int(np.prod(weight[1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(source)) * int(np.prod(weight[1:]))
    if node.op_type == "Gemm":
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return int(np.prod(out)) * weight[1 if transposed else 0]
    if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return int(np.prod(out)) * weight[-2 if len(weight) > 1 else 0]
    return 0

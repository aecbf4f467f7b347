"""ONNX Runtime's quantizer, as the stages need it: calibration, static and dynamic int8 of an ONNX file.

What is left in float and why is decided here; the rewriting of the graph is ONNX Runtime's.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from compress.float_models.float_fences import fence
from compress.float_models.float_nodes import PRODUCTS, float_nodes, other_operators
from compress.float_models.plain_models import LEAST_OPSET, read_plain, with_types
from compress.float_models.tensor_names import names_in, unused
from compress.onnx_files.contents import attributes_of, graphs_in
from compress.onnx_files.isolation import isolated
from compress.onnx_files.sessions import grown_by_one, open_session
from compress.precision.calibration_samples import Batches, fitting
from compress.values.configs import OPERATORS
from compress.values.error_lines import one_line
from targets.errors import QuantizeError, RequestError
from targets.target import Capabilities

VERSION = 6
KINDS = {"minmax": "MinMax", "percentile": "Percentile", "search": "Percentile"}
"""ONNX Runtime's names of the calibration methods."""
_BIAS = 2
"""Which input of a product its bias is."""
LEFT_OUT = "left_out"
"""In a file of ranges: names of the tensors that have none."""


@dataclass(frozen=True)
class Quantized:
    """What was written: its path and size, and which layers (by node name) are in integers and which in float."""

    path: Path
    size: int
    int8: tuple[str, ...]
    kept: tuple[str, ...]
    sqnr: Mapping[str, float] = field(default_factory=dict)
    """Output of floats -> signal to noise ratio against the float file, in decibels; empty where nobody looked."""


def quantizable_layers(path: Path) -> list[str]:
    """The names of the nodes that int8 can speed up, in graph order: products with a constant weight.

    Names as ``read_plain`` gives them. Raises ModelError where the file cannot be read.
    """
    return _quantizable(read_plain(path))


def has_matmul(path: Path) -> bool:
    """Whether the file holds a matrix product with a constant weight, which is what dynamic int8 works on.

    Raises ModelError where the file cannot be read.
    """
    model = read_plain(path)
    return any(n.op_type in ("MatMul", "Gemm") for n in _products(model))


@isolated("quantizing", long=True)
def quantize_static(
    source: Path,
    destination: Path,
    ranges: Path,
    method: str,
    capabilities: Capabilities,
    *,
    keep_float: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    operators: str = OPERATORS[0],
) -> Quantized:
    """Write ``source`` in static int8, in QDQ form, to ``destination``.

    ``ranges``: what ``collect_ranges`` wrote for ``source`` by ``method``. ``keep_float``: names of layers that stay in
    float, or of operators other than products, all of whose nodes do; ``only``: if given, names of nodes, and nothing
    else is quantized; ``operators``: a name of OPERATORS. Raises RequestError for a name that is neither, QuantizeError
    where there is no layer, the opset is too old and cannot be converted, or the quantizer fails.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as rewrite

    model = read_plain(source, LEAST_OPSET)
    names = _checked_layers(model, source.name, keep_float)
    others = other_operators(model)
    activation = QuantType.QUInt8 if capabilities.int8_format == "u8s8" else QuantType.QInt8
    kept_nodes = [node for name in keep_float for node in others.get(name, (name,))]
    aside = float_nodes(model, _left_out(ranges), operators)
    model = _with_own_weights(model)
    model, fences = fence(model, keep_float)
    with quiet():
        try:
            rewrite(
                with_types(model),
                str(destination),
                None,
                quant_format=QuantFormat.QDQ,
                activation_type=activation,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=capabilities.reduce_range,
                nodes_to_exclude=[*kept_nodes, *aside, *fences],
                nodes_to_quantize=list(only),
                calibrate_method=getattr(CalibrationMethod, KINDS[method]),
                calibration_cache_path=ranges,
                extra_options={
                    # Asymmetric in either format: a ReLU then folds into the quantizer after it. With a zero point of 0
                    # it stays an operator of its own, and s8s8 is slower than u8s8 on ARM, where it should be faster.
                    "ActivationSymmetric": False,
                    "WeightSymmetric": True,
                    "TensorQuantOverrides": {name: [{"symmetric": True}] for name in _with_one_scale(model)},
                },
            )
        except Exception as error:
            raise QuantizeError(f"{source.name} cannot be quantized: {one_line(error)}") from error
    outside = {*keep_float, *aside}
    kept = tuple(n for n in names if n in outside or (only and n not in only))
    return Quantized(destination, destination.stat().st_size, tuple(n for n in names if n not in kept), kept)


def _left_out(ranges: Path) -> tuple[str, ...]:
    """Tensors that calibration has found no range for."""
    return tuple(json.loads(ranges.read_text()).get(LEFT_OUT, ()))


def _with_own_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which a product shares no weight with a node that reads it in another way, and its bias with nobody.

    The quantizer gives a constant one scale or one for each channel, and the last who asks is right. Of a bias it makes
    a copy for each product, under a name that may be another tensor's.
    """
    readers: dict[str, list[tuple[str, int]]] = {}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            turned = int(attributes_of(node).get("transB", 0)) if node.op_type == "Gemm" else 0
            readers.setdefault(name, []).append((f"{node.op_type}{turned}", i))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    shared = {
        name
        for name, uses in readers.items()
        if name in tensors and (len(set(uses)) > 1 or (len(uses) > 1 and uses[0][1] == _BIAS))
    }
    if not shared:
        return model
    model = copy.deepcopy(model)
    taken = names_in(model)
    for node in model.graph.node:
        for i in (1, _BIAS):
            if node.op_type in PRODUCTS and len(node.input) > i and node.input[i] in shared:
                own = unused(f"{node.name}_own_{i}", taken)
                model.graph.initializer.append(onnx.TensorProto())
                model.graph.initializer[-1].CopyFrom(tensors[node.input[i]])
                model.graph.initializer[-1].name = own
                node.input[i] = own
    used = names_used(model.graph)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _with_one_scale(model: onnx.ModelProto) -> list[str]:
    """Weights that can have one scale only: of products with what is no matrix, of grouped transposed convolutions.

    The latter's scales would be one for each channel of a group, and a bias has all channels.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        constant = [name for name in node.input[:2] if name in tensors]
        if node.op_type == "MatMul":
            found += [name for name in constant if len(tensors[name].dims) != 2 or name == node.input[0]]
        elif node.op_type == "ConvTranspose" and attributes_of(node).get("group", 1) > 1:
            found += constant
    return list(dict.fromkeys(found))


def _checked_layers(model: onnx.ModelProto, name: str, keep_float: tuple[str, ...]) -> list[str]:
    """The names of the layers that can be quantized; raises as ``quantize_static`` does."""
    names = _quantizable(model)
    unknown = [one for one in keep_float if one not in names and one not in other_operators(model)]
    if unknown:
        raise RequestError(f"keep_float names {unknown}, which {name} lacks; it has {', '.join(names)}")
    if not names:
        raise QuantizeError(f"{name} has no convolution or matrix product to quantize{_other_types(model)}")
    return names


@isolated("quantizing", long=True)
def quantize_dynamic(source: Path, destination: Path, capabilities: Capabilities) -> Quantized:
    """Write ``source`` with int8 weights, and activations that are quantized at run time, to ``destination``.

    Matrix products only, since dynamic convolutions are slow. A 2-D linear layer exports as Gemm, which the quantizer
    passes over in silence: it is rewritten first. Raises QuantizeError where there is no matrix product or the
    quantizer fails.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as rewrite

    original = read_plain(source, LEAST_OPSET)
    model = split_gemm(original)
    matrices = {t.name for t in model.graph.initializer if len(t.dims) == 2}
    # ONNX Runtime's MatMulInteger has a scale for each column of a matrix, and of nothing else.
    names = tuple(n.name for n in _products(model) if n.op_type == "MatMul" and n.input[1] in matrices)
    if not names:
        why = _other_types(model)
        raise QuantizeError(f"{source.name} has no matrix product: dynamic int8 would change nothing{why}")
    del model.graph.value_info[:]  # stale shapes make the quantizer fail
    with quiet():
        try:
            rewrite(
                with_types(model),
                str(destination),
                op_types_to_quantize=["MatMul"],
                nodes_to_quantize=list(names),
                per_channel=True,
                reduce_range=capabilities.reduce_range,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:
            raise QuantizeError(f"{source.name} cannot be quantized: {one_line(error)}") from error
    kept = tuple(name for name in _quantizable(original) if name not in names)
    return Quantized(destination, destination.stat().st_size, names, kept)


def split_gemm(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` in which every plain Gemm with a constant weight is a MatMul and, for a bias, an Add."""
    model = copy.deepcopy(model)
    tensors = {t.name: t for t in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    replaced: set[str] = set()
    for node in model.graph.node:
        attributes = attributes_of(node)
        plain = (
            attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA")
        )
        if node.op_type != "Gemm" or node.input[1] not in tensors or not plain:
            nodes.append(node)
            continue
        weight = onnx.numpy_helper.to_array(tensors[node.input[1]])
        turned = bool(attributes.get("transB"))
        name = f"{node.input[1]}_matmul{'_t' * turned}"
        weight = weight.T if turned else weight
        replaced.add(node.input[1])
        if name not in tensors:
            tensors[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(weight), name)
            model.graph.initializer.append(tensors[name])
        biased = len(node.input) > 2 and node.input[2]
        product = f"{node.output[0]}_product" if biased else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], name], [product], name=node.name))
        if biased:
            nodes.append(
                onnx.helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{node.name}_add")
            )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    # By hand: onnx_ir's RemoveUnusedNodesPass would also remove what nothing read before.
    unread = replaced - names_used(model.graph)
    for values in (model.graph.initializer, model.graph.input):
        kept = [value for value in values if value.name not in unread]
        del values[:]
        values.extend(kept)
    return model


def names_used(graph: onnx.GraphProto) -> set[str]:
    """Names that nodes read, in inner graphs as well, or that are outputs."""
    found: set[str] = set()
    for each in graphs_in(graph):
        found.update(value.name for value in each.output)
        found.update(name for node in each.node for name in node.input)
    return found


def outputs(path: Path, model: onnx.ModelProto, samples: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """All outputs of the file for ``samples``, samples first, run in the batches that ``model`` takes."""
    session = open_session(path)
    most = fitting(partial(grown_by_one, path), samples)
    # Of every sample: how many fit at once differs from file to file, and what is compared has to be of the same ones.
    parts = [session.run(None, batch) for batch in Batches(model, samples, most, every=True)]
    return tuple(np.concatenate(part) if part[0].ndim else part[0] for part in zip(*parts, strict=True))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is logged below errors, and nothing printed, inside.

    The quantizer logs advice at warning level for every call, and the calibrators print what they do.
    """
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _quantizable(model: onnx.ModelProto) -> list[str]:
    """As ``quantizable_layers``, of a model that has been read."""
    return [node.name for node in _products(model)]


def _products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Convolutions and matrix products whose weight is a constant of floats."""
    constants = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    return [n for n in model.graph.node if n.op_type in PRODUCTS and n.input[1] in constants]


def _other_types(model: onnx.ModelProto) -> str:
    """What to add to a message where it is the type of the weights that keeps them from being quantized."""
    names = {onnx.TensorProto.DOUBLE: "double", onnx.TensorProto.FLOAT16: "half", onnx.TensorProto.BFLOAT16: "bfloat16"}
    found = next((names[tensor.data_type] for tensor in model.graph.initializer if tensor.data_type in names), "")
    return f"; its weights are in {found} precision, convert them to float32 first" if found else ""

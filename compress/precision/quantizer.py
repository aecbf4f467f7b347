"""ONNX Runtime's quantizer, as the stages need it: calibration, static and dynamic int8 of an ONNX file.

What is left in float and why is decided here; the rewriting of the graph is ONNX Runtime's.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compress.onnx_files.contents import attributes_of, graphs_in, graphs_inside
from compress.onnx_files.graphs import read_unchecked
from compress.onnx_files.isolation import isolated
from compress.onnx_files.sessions import open_session
from compress.precision.calibration_samples import Batches
from compress.precision.float_fences import fence
from compress.values.error_lines import one_line
from targets.errors import QuantizeError, RequestError
from targets.target import Capabilities

VERSION = 3
_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RECURRENT = ("LSTM", "GRU", "RNN")
_KINDS = {"minmax": "MinMax", "percentile": "Percentile", "search": "Percentile"}
"""ONNX Runtime's names of the calibration methods."""
PERCENTILES = (100.0, 99.999, 99.99, 99.9, 99.0)
"""What a search tries: the share of values within the range; half of the rest is cut off on each side."""


@dataclass(frozen=True)
class Quantized:
    """What was written: its path and size, and which layers (by node name) are in integers and which in float."""

    path: Path
    size: int
    int8: tuple[str, ...]
    kept: tuple[str, ...]


def quantizable_layers(path: Path) -> list[str]:
    """The names of the nodes that int8 can speed up, in graph order: products with a constant weight.

    Names as ``read_named`` gives them. Raises ModelError where the file cannot be read.
    """
    return _quantizable(read_named(path))


def has_matmul(path: Path) -> bool:
    """Whether the file holds a matrix product with a constant weight, which is what dynamic int8 works on.

    Raises ModelError where the file cannot be read.
    """
    model = read_unchecked(path)
    constants = {t.name for t in model.graph.initializer}
    return any(n.op_type in ("MatMul", "Gemm") and n.input[1] in constants for n in model.graph.node)


def read_named(path: Path) -> onnx.ModelProto:
    """The model in the file, with a name of its own for every node: layers go by them, and ONNX does not ask for any.

    Raises ModelError where the file cannot be read.
    """
    model = read_unchecked(path)
    seen: set[str] = set()
    for i, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_node{i}"
        seen.add(node.name)
    return model


@isolated("calibrating", long=True)
def collect_ranges(
    source: Path,
    samples: Mapping[str, np.ndarray],
    method: str,
    path: Path,
    capabilities: Capabilities | None = None,
) -> None:
    """Run ``samples`` through the float model and write every tensor's range to ``path`` (JSON).

    ``samples``: arrays by input name, samples first. ``method``: ``minmax``, ``percentile`` (99.99 % of the values), or
    ``search``, which tries those of PERCENTILES in the format of ``capabilities`` and takes the one that leaves the
    smallest error. Raises QuantizeError where the model does not run.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.quantize import save_tensors_data

    options = {"percentile": 99.99, "symmetric": False} if _KINDS[method] == "Percentile" else {}
    kind = getattr(CalibrationMethod, _KINDS[method])
    model = read_named(source)
    # Of a copy: the quantizer writes files beside the one it is given.
    with tempfile.TemporaryDirectory() as folder, quiet():
        copied, augmented = Path(folder) / "model.onnx", Path(folder) / "augmented.onnx"
        try:
            onnx.save(model, copied)
            calibrator = create_calibrator(copied, [], str(augmented), calibrate_method=kind, extra_options=options)
            calibrator.collect_data(Batches(model, samples))
            if method == "search":
                able = capabilities or Capabilities()
                calibrator.collector.percentile = _best_percentile(copied, calibrator, samples, able, Path(folder))
            save_tensors_data(calibrator.compute_data(), path)
        except Exception as error:
            raise QuantizeError(f"{source.name} cannot be calibrated ({method}): {one_line(error)}") from error


def _best_percentile(
    source: Path, calibrator: Any, samples: Mapping[str, np.ndarray], capabilities: Capabilities, folder: Path
) -> float:
    """The one with the smallest squared error of the first output; the widest of equals."""
    from onnxruntime.quantization.quantize import save_tensors_data

    model = read_named(source)
    reference = outputs(source, model, samples).astype(np.float64)
    errors: dict[float, float] = {}
    for percentile in PERCENTILES:
        ranges, made = folder / f"{percentile}.json", folder / f"{percentile}.onnx"
        calibrator.collector.percentile = percentile
        save_tensors_data(calibrator.compute_data(), ranges)
        quantize_static(source, made, ranges, "search", capabilities)
        errors[percentile] = float(np.mean(np.square(outputs(made, model, samples) - reference)))
    return min(errors, key=lambda p: (not np.isfinite(errors[p]), errors[p]))


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
) -> Quantized:
    """Write ``source`` in static int8, in QDQ form, to ``destination``.

    ``ranges``: what ``collect_ranges`` wrote for ``source`` by ``method``. ``keep_float``: names of nodes that stay in
    float; ``only``: if given, nothing but these nodes is quantized. Raises RequestError for a name that is no
    quantizable layer, QuantizeError where there is none or the quantizer fails.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as rewrite

    model = read_named(source)
    names = _checked_layers(model, source.name, keep_float)
    activation = QuantType.QUInt8 if capabilities.int8_format == "u8s8" else QuantType.QInt8
    model, fences = fence(model, keep_float)
    # Recurrent layers have no static int8 kernel, and their weights must be constants (OpenVINO), not converted ones.
    aside = [node.name for node in model.graph.node if node.op_type in _RECURRENT or _is_wide_norm(model, node)]
    aside += _constants(model) + fences
    with quiet():
        try:
            rewrite(
                model,
                str(destination),
                None,
                quant_format=QuantFormat.QDQ,
                activation_type=activation,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=capabilities.reduce_range,
                nodes_to_exclude=[*keep_float, *aside],
                nodes_to_quantize=list(only),
                calibrate_method=getattr(CalibrationMethod, _KINDS[method]),
                calibration_cache_path=ranges,
                # Asymmetric in either format: a ReLU then folds into the quantizer after it. With a zero point of 0 it
                # stays an operator of its own, and s8s8 is slower than u8s8 on ARM, where it should be faster.
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )
        except Exception as error:
            raise QuantizeError(f"{source.name} cannot be quantized: {one_line(error)}") from error
    kept = tuple(n for n in names if n in keep_float or (only and n not in only))
    return Quantized(destination, destination.stat().st_size, tuple(n for n in names if n not in kept), kept)


def _checked_layers(model: onnx.ModelProto, name: str, keep_float: tuple[str, ...]) -> list[str]:
    """The names of the layers that can be quantized; raises as ``quantize_static`` does."""
    names = _quantizable(model)
    unknown = [one for one in keep_float if one not in names]
    if unknown:
        raise RequestError(f"keep_float names {unknown}, which {name} lacks; it has {', '.join(names)}")
    if not names:
        raise QuantizeError(f"{name} has no convolution or matrix product to quantize")
    return names


def _is_wide_norm(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a LayerNorm has weights of several dimensions: ONNX Runtime's quantizer (1.31) fails at them."""
    if node.op_type != "LayerNormalization":
        return False
    return any(t.name == node.input[1] and len(t.dims) > 1 for t in model.graph.initializer)


@isolated("quantizing", long=True)
def quantize_dynamic(source: Path, destination: Path, capabilities: Capabilities) -> Quantized:
    """Write ``source`` with int8 weights, and activations that are quantized at run time, to ``destination``.

    Matrix products only, since dynamic convolutions are slow. A 2-D linear layer exports as Gemm, which the quantizer
    passes over in silence: it is rewritten first. Raises QuantizeError where there is no matrix product or the
    quantizer fails.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as rewrite

    original = read_named(source)
    model = split_gemm(original)
    constants = {t.name for t in model.graph.initializer}
    names = tuple(n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in constants)
    if not names:
        raise QuantizeError(f"{source.name} has no matrix product: dynamic int8 would change nothing")
    del model.graph.value_info[:]  # stale shapes make the quantizer fail
    with quiet():
        try:
            rewrite(
                model,
                str(destination),
                op_types_to_quantize=["MatMul"],
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
    unused = replaced - _used(model.graph)
    for values in (model.graph.initializer, model.graph.input):
        kept = [value for value in values if value.name not in unused]
        del values[:]
        values.extend(kept)
    return model


def _used(graph: onnx.GraphProto) -> set[str]:
    """Names that nodes read, in inner graphs as well, or that are outputs."""
    found: set[str] = set()
    for each in graphs_in(graph):
        found.update(value.name for value in each.output)
        found.update(name for node in each.node for name in node.input)
    return found


def outputs(path: Path, model: onnx.ModelProto, samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output of the file for ``samples``, samples first, run in the batches that ``model`` takes."""
    session = open_session(path)
    return np.concatenate([session.run(None, batch)[0] for batch in Batches(model, samples)])


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
    constants = {t.name for t in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in _OPERATORS and n.input[1] in constants]


def _constants(model: onnx.ModelProto) -> list[str]:
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

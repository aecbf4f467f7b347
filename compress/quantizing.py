"""Lower precision: static int8 (QDQ), dynamic int8, and int8 with the most sensitive layers left in float.

ONNX Runtime's quantizer does the rewriting; what is decided here is the format (the target's), the layers, and that
a network is calibrated once: ranges are a file of their own that every variant reads.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import targets
from compress.configs import CALIBRATIONS, SCHEMES
from compress.exporting import open_session
from compress.graphs import load_model
from targets.errors import QuantizeError, RequestError
from targets.target import Capabilities

VERSION = 1
BATCH = 32
_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Quantized:
    """What was written: its path and size, and which layers (by node name) are in int8 and which in float."""

    path: Path
    size: int
    int8: tuple[str, ...]
    kept: tuple[str, ...]


def quantize(
    source: str | Path,
    destination: str | Path,
    precision: str = "int8",
    calibration: np.ndarray | Mapping[str, np.ndarray] | None = None,
    target: str | targets.Target = "ort-cpu",
    *,
    method: str = "minmax",
    keep_float: tuple[str, ...] = (),
) -> Quantized:
    """Write ``source`` in another precision, in the format whose integer kernels run on ``target``.

    ``precision``: ``int8`` (static, QDQ), ``mixed`` (static, the nodes in ``keep_float`` stay in float) or
    ``int8-dynamic``. ``calibration``: an array, samples first, or a dict of them by input name; the static schemes
    need it. ``method``: ``minmax``, ``entropy`` or ``percentile``.
    Raises RequestError for what cannot be asked, QuantizeError where the quantizer fails.
    """
    if precision not in SCHEMES or precision == "fp32":
        raise RequestError(f"precision {precision!r}: use one of {', '.join(s for s in SCHEMES if s != 'fp32')}")
    if method not in CALIBRATIONS:
        raise RequestError(f"calibration method {method!r}: use one of {', '.join(CALIBRATIONS)}")
    source, destination = Path(source), Path(destination)
    load_model(source)
    capabilities = targets.get(target).capabilities()
    if precision == "int8-dynamic":
        return quantize_dynamic(source, destination, capabilities)
    if calibration is None:
        raise RequestError(f"precision {precision!r} needs calibration samples: an array, samples first")
    ranges = destination.with_suffix(".ranges.json")
    try:
        collect_ranges(source, _named(source, calibration), method, ranges)
        return quantize_static(source, destination, ranges, method, capabilities, keep_float=keep_float)
    finally:
        ranges.unlink(missing_ok=True)


def layers(path: Path) -> list[str]:
    """Names of the nodes that int8 can speed up, in graph order: products with a constant weight."""
    model = onnx.load(path)
    constants = {t.name for t in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in _OPERATORS and n.input[1] in constants]


def has_matmul(path: Path) -> bool:
    """Whether there is a matrix product with a constant weight: what dynamic int8 can work on."""
    model = onnx.load(path)
    constants = {t.name for t in model.graph.initializer}
    return any(n.op_type in ("MatMul", "Gemm") and n.input[1] in constants for n in model.graph.node)


def collect_ranges(source: Path, samples: Mapping[str, np.ndarray], method: str, path: Path) -> None:
    """Run ``samples`` through the float model and write every tensor's range to ``path`` (JSON)."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.quantize import save_tensors_data

    methods = {
        "minmax": (CalibrationMethod.MinMax, {}),
        "entropy": (CalibrationMethod.Entropy, {}),
        "percentile": (CalibrationMethod.Percentile, {"percentile": 99.99, "symmetric": False}),
    }
    kind, options = methods[method]
    augmented = path.with_suffix(".augmented.onnx")
    with _quiet():
        try:
            calibrator = create_calibrator(source, [], str(augmented), calibrate_method=kind, extra_options=options)
            calibrator.collect_data(_Batches(samples))
            save_tensors_data(calibrator.compute_data(), path)
        except Exception as error:
            raise QuantizeError(f"{source.name} cannot be calibrated ({method}): {_line(error)}") from error
        finally:
            augmented.unlink(missing_ok=True)


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
    """Static int8 in QDQ form with the given ranges. ``only``: nothing but these nodes is quantized."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as rewrite

    names = layers(source)
    unknown = [name for name in keep_float if name not in names]
    if unknown:
        raise RequestError(f"keep_float names {unknown}, which {source.name} lacks; it has {', '.join(names)}")
    if not names:
        raise QuantizeError(f"{source.name} has no convolution or matrix product to quantize")
    activation = QuantType.QUInt8 if capabilities.int8_format == "u8s8" else QuantType.QInt8
    kinds = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    with _quiet():
        try:
            rewrite(
                str(source),
                str(destination),
                None,
                quant_format=QuantFormat.QDQ,
                activation_type=activation,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=capabilities.reduce_range,
                nodes_to_exclude=list(keep_float),
                nodes_to_quantize=list(only),
                calibrate_method=kinds[method],
                calibration_cache_path=ranges,
                extra_options={"ActivationSymmetric": capabilities.int8_format == "s8s8", "WeightSymmetric": True},
            )
        except Exception as error:
            raise QuantizeError(f"{source.name} cannot be quantized: {_line(error)}") from error
    kept = tuple(n for n in names if n in keep_float or (only and n not in only))
    return Quantized(destination, destination.stat().st_size, tuple(n for n in names if n not in kept), kept)


def quantize_dynamic(source: Path, destination: Path, capabilities: Capabilities) -> Quantized:
    """Int8 weights, activations quantized at run time; matrix products only (dynamic convolutions are slow).

    A 2-D linear layer exports as Gemm, which the quantizer passes over in silence: it is rewritten first.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as rewrite

    model = split_gemm(onnx.load(source))
    constants = {t.name for t in model.graph.initializer}
    names = tuple(n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in constants)
    if not names:
        raise QuantizeError(f"{source.name} has no matrix product: dynamic int8 would change nothing")
    del model.graph.value_info[:]  # stale shapes make the quantizer fail
    with _quiet():
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
            raise QuantizeError(f"{source.name} cannot be quantized: {_line(error)}") from error
    kept = tuple(name for name in layers(source) if name not in names)
    return Quantized(destination, destination.stat().st_size, names, kept)


def split_gemm(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every plain Gemm with a constant weight is MatMul + Add."""
    model = copy.deepcopy(model)
    tensors = {t.name: t for t in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        plain = (
            attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA")
        )
        if node.op_type != "Gemm" or node.input[1] not in tensors or not plain:
            nodes.append(node)
            continue
        weight = onnx.numpy_helper.to_array(tensors[node.input[1]])
        name = f"{node.input[1]}_matmul"
        if attributes.get("transB"):
            weight = weight.T
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
    used = {name for node in nodes for name in node.input}
    unused = [t for t in model.graph.initializer if t.name not in used]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    return model


def layer_errors(
    source: Path, ranges: Path, method: str, samples: Mapping[str, np.ndarray], capabilities: Capabilities, folder: Path
) -> list[float]:
    """What int8 costs each layer alone, in the order of ``layers``: squared output error over squared output."""
    reference = open_session(source).run(None, dict(samples))[0]
    scale = float(np.mean(np.square(reference))) or 1.0
    errors = []
    for name in layers(source):
        path = folder / "one.onnx"
        quantize_static(source, path, ranges, method, capabilities, only=(name,))
        found = open_session(path).run(None, dict(samples))[0]
        errors.append(float(np.mean(np.square(found - reference))) / scale)
        path.unlink()
    return errors


class _Batches:
    """A calibration reader over arrays. Every batch is equally large: histogram calibrators cannot stack others."""

    def __init__(self, samples: Mapping[str, np.ndarray]) -> None:
        count = min(len(x) for x in samples.values())
        size = min(BATCH, count)
        starts = range(0, count - size + 1, size)
        self._batches = iter([{name: x[i : i + size] for name, x in samples.items()} for i in starts])

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self._batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None: the interface ONNX Runtime's calibrators read."""
        return next(self._batches, None)


def _named(source: Path, calibration: np.ndarray | Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Calibration samples by input name, checked against the model's inputs."""
    names = [node.name for node in open_session(source).get_inputs()]
    given = dict(calibration) if isinstance(calibration, Mapping) else {names[0]: np.asarray(calibration)}
    if set(given) != set(names):
        raise RequestError(f"calibration has {sorted(given)}; {source.name} has the inputs {sorted(names)}")
    if any(len(x) == 0 for x in given.values()):
        raise RequestError("calibration is empty; some dozens of typical samples are needed")
    return {name: np.asarray(x) for name, x in given.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer logs advice at warning level on the root logger for every call."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

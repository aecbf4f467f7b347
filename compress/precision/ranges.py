"""Calibration: the range of every tensor of a float model on some samples, in a file that every int8 variant reads."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compress.float_models.masks import masked_nodes, masked_tensors
from compress.float_models.plain_models import LEAST_OPSET, read_plain, with_types
from compress.onnx_files.contents import inputs_of
from compress.onnx_files.isolation import isolated
from compress.precision.calibration_samples import Batches, fitting
from compress.precision.noise import noise_share
from compress.precision.quantizer import KINDS, LEFT_OUT, outputs, quantize_static, quiet
from compress.values.error_lines import one_line
from targets.errors import QuantizeError
from targets.machine import memory
from targets.target import Capabilities

PERCENTILES = (100.0, 99.999, 99.99, 99.9, 99.0)
"""What a search tries: the share of values within the range; half of the rest is cut off on each side."""
_USUAL = 99.99
_COPIES = 3
"""Of all inner values that a histogram calibrator holds at once."""
_PART = 700_000_000
"""Bytes of one sample's inner values that histograms are made of in one go: more parts take longer."""


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
    smallest error. Tensors without a range of finite numbers are listed there as left out: what computes with them
    stays in float. Raises QuantizeError where the model does not run.
    """
    model = read_plain(source, LEAST_OPSET)
    # Of a copy: the quantizer writes files beside the one it is given.
    with tempfile.TemporaryDirectory() as folder, quiet():
        copied = Path(folder) / "model.onnx"
        try:
            onnx.save(with_types(model), copied)
            left_out = masked_tensors(model, masked_nodes(model))
            # Histograms have no place for what is not finite: it is looked for first.
            plain = _calibrator("MinMax", copied, left_out)
            plain.collect_data(Batches(model, samples, fitting(_running(plain), samples)))
            found = plain.compute_data()
            left_out |= {name for name in found.keys() if not _is_finite(found[name])}  # noqa: SIM118  no mapping
            if KINDS[method] == "Percentile":
                calibrators = _histograms(copied, model, samples, left_out, list(found.keys()))
                best = _USUAL
                if method == "search":
                    able = capabilities or Capabilities()
                    best = _best_percentile(copied, calibrators, samples, able, left_out, Path(folder))
                found = _within(calibrators, best)
            _save(found, left_out, path)
        except QuantizeError:
            raise
        except Exception as error:
            raise QuantizeError(f"{source.name} cannot be calibrated ({method}): {one_line(error)}") from error


def _histograms(
    source: Path, model: onnx.ModelProto, samples: Mapping[str, np.ndarray], left_out: set[str], names: list[str]
) -> list[Any]:
    """Calibrators that have seen all samples, each of as many of the tensors as have room in memory at once."""
    every = [name for name in names if name not in left_out]
    count = max(1, min(len(every), math.ceil(_inner_bytes(model, samples) / _PART)))
    calibrators = []
    for part in np.array_split(np.array(every, dtype=object), count):
        calibrator = _calibrator("Percentile", source, left_out | (set(every) - set(part)))
        most = fitting(_running(calibrator), samples, _COPIES)
        for batch in Batches(model, samples, most):
            # All at once, all values would be held in memory.
            calibrator.collect_data(Batches(model, batch, most))
        calibrator.infer_session = None
        calibrators.append(calibrator)
    return calibrators


def _inner_bytes(model: onnx.ModelProto, samples: Mapping[str, np.ndarray]) -> int:
    """What all values inside the network take for one sample, as far as their shapes are known beforehand."""
    one = copy.deepcopy(model)
    for value in inputs_of(one):
        for axis, size in zip(value.type.tensor_type.shape.dim, samples[value.name][:1].shape, strict=False):
            axis.dim_value = size
    del one.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(one, data_prop=True)
    shapes = [[axis.dim_value for axis in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info]
    return sum(4 * math.prod(shape) for shape in shapes if shape)


def _within(calibrators: list[Any], percentile: float) -> Any:
    """The ranges of all tensors that so many percent of their values are in."""
    parts = []
    for calibrator in calibrators:
        calibrator.collector.percentile = percentile
        parts.append(calibrator.compute_data())
    for other in parts[1:]:
        parts[0].data.update(other.data)
    return parts[0]


def _calibrator(kind: str, source: Path, left_out: set[str]) -> Any:
    """ONNX Runtime's calibrator of one kind, for all float tensors of ``source`` but those that are left out."""
    from onnxruntime.quantization import calibrate

    base: Any = {"MinMax": calibrate.MinMaxCalibrater, "Percentile": calibrate.PercentileCalibrater}[kind]

    class Calibrator(base):  # type: ignore[misc]  # onnxruntime has no types
        def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], Mapping[str, Any]]:
            """The names of the tensors, and all value infos by name."""
            tensors, known = super().select_tensors_to_calibrate(model)
            return tensors - left_out, known

    options = {"percentile": _USUAL, "symmetric": False} if kind == "Percentile" else {}
    calibrator = Calibrator(source, [], str(source.with_name(f"augmented-{kind}.onnx")), **options)
    calibrator.augment_graph()
    calibrator.create_inference_session()
    return calibrator


def _running(calibrator: Any) -> Callable[[Mapping[str, np.ndarray]], int | None]:
    """What runs a batch through a calibrator's own session, keeps nothing of it, and says what memory it took."""
    return lambda batch: memory.grown_by(lambda: calibrator.infer_session.run(None, dict(batch)))


def _is_finite(found: Any) -> bool:
    """Whether a tensor's range is one of finite numbers."""
    return all(np.isfinite(np.asarray(end)).all() for end in found.range_value)


def _save(found: Any, left_out: set[str], path: Path) -> None:
    """Write ranges as ONNX Runtime reads them, with the names of tensors that have none."""
    from onnxruntime.quantization.quantize import save_tensors_data

    for name in left_out:
        found.data.pop(name, None)
    save_tensors_data(found, path)
    document = json.loads(path.read_text())
    document[LEFT_OUT] = sorted(left_out)
    path.write_text(json.dumps(document))


def _best_percentile(
    source: Path, calibrators: list[Any], samples: Mapping[str, np.ndarray], capabilities: Capabilities,
    left_out: set[str], folder: Path,
) -> float:  # fmt: skip
    """The one with the least noise in the outputs; the widest of equals."""
    model = read_plain(source)
    reference = outputs(source, model, samples)
    errors: dict[float, float] = {}
    for percentile in PERCENTILES:
        ranges, made = folder / f"{percentile}.json", folder / f"{percentile}.onnx"
        _save(_within(calibrators, percentile), left_out, ranges)
        quantize_static(source, made, ranges, "search", capabilities)
        errors[percentile] = noise_share(reference, outputs(made, model, samples))
    return min(errors, key=lambda p: (not np.isfinite(errors[p]), errors[p]))

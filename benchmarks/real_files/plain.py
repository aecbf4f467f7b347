"""What ONNX Runtime's own quantizers make of a file, in the settings that people use."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import targets

_CALIBRATED = 32
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "static": {},
    "static, per channel": {"per_channel": True},
    "static, products": {"op_types_to_quantize": ["Conv", "MatMul", "Gemm"]},
    "static, products, per channel": {"op_types_to_quantize": ["Conv", "MatMul", "Gemm"], "per_channel": True},
    "static, convolutions, per channel": {"op_types_to_quantize": ["Conv"], "per_channel": True},
}


def best_plain(path: Path, samples: Mapping[str, np.ndarray], limit: float) -> dict[str, Any]:
    """The fastest of the settings whose outputs stay within ``limit`` of the original's, with its paired ratio."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = folder / "prepared.onnx"
        try:
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        except Exception:
            prepared = path
        makers: dict[str, Callable[[Path], None]] = {
            setting: lambda made, given=given: quantize_static(  # type: ignore[misc]
                str(prepared), str(made), _Reader(samples), weight_type=QuantType.QInt8, **given
            )
            for setting, given in _SETTINGS.items()
        }
        makers["dynamic"] = lambda made: quantize_dynamic(str(prepared), str(made), weight_type=QuantType.QInt8)
        expected = _outputs(path, samples)
        kept: dict[str, Path] = {}
        for number, (setting, make) in enumerate(makers.items()):
            made = folder / f"{number}.onnx"
            with contextlib.suppress(Exception):
                make(made)
                if 1.0 - _likeness(expected, _outputs(made, samples)) <= limit:
                    kept[setting] = made
        if not kept:
            return {"plain": None, "plain x": 1.0}
        one = {name: x[:1] for name, x in samples.items()}
        compared = targets.compare([path, *kept.values()], target="ort-cpu", inputs=one)
        ratios = {setting: compared.ratio(made).value for setting, made in kept.items()}
    best = min(ratios, key=lambda setting: ratios[setting])
    if ratios[best] >= 1.0:
        return {"plain": None, "plain x": 1.0}
    return {"plain": best, "plain x": round(ratios[best], 3)}


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Calibration samples as ONNX Runtime reads them, one at a time."""

    def __init__(self, samples: Mapping[str, np.ndarray]) -> None:
        self._rows = iter(range(min(_CALIBRATED, min(len(x) for x in samples.values()))))
        self._samples = samples

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample by input name, as a batch of one; None where there are no more."""
        row = next(self._rows, None)
        return None if row is None else {name: x[row : row + 1] for name, x in self._samples.items()}


def _outputs(path: Path, samples: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs of the last fifth of the samples, which nothing was calibrated on."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    count = min(len(x) for x in samples.values())
    rows = [
        session.run(None, {name: x[row : row + 1] for name, x in samples.items()})
        for row in range(count - count // 5, count)
    ]
    return [np.concatenate([np.ravel(row[k])[None] for row in rows]) for k in range(len(rows[0]))]


def _likeness(expected: list[np.ndarray], found: list[np.ndarray]) -> float:
    """As ``compress`` scores what has no labels, of the first output: equal decisions, or the cosine."""
    a, b = expected[0].astype(np.float64), found[0].astype(np.float64)
    if np.allclose(a.sum(axis=1), 1.0, atol=1e-3) and (a >= 0).all():
        return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / np.maximum(lengths, 1e-30)))

"""Calibration samples: arrays by input name, checked, and handed out in batches that a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from compress.onnx_files.contents import inputs_of
from targets.errors import RequestError

BATCH = 32
"""Samples in a batch, where the model takes any number and there are as many."""


def named(model: onnx.ModelProto, name: str, calibration: Any) -> dict[str, np.ndarray]:
    """Calibration samples by input name, in the model's types.

    ``calibration``: an array, samples first, for a model of one input; or such arrays by input name. ``name``: of the
    file, for messages. Raises RequestError for other names, no samples, and samples that are not finite.
    """
    kinds = _inputs(model)
    given = calibration if isinstance(calibration, Mapping) else {next(iter(kinds)): calibration}
    if set(given) != set(kinds):
        raise RequestError(f"calibration has {sorted(given)}; {name} has the inputs {sorted(kinds)}")
    samples: dict[str, np.ndarray] = {}
    for key, values in given.items():
        array = np.asarray(values)
        wanted = onnx.helper.tensor_dtype_to_np_dtype(kinds[key].elem_type)
        if array.ndim == 0 or len(array) == 0:
            raise RequestError("calibration is empty; some dozens of typical samples are needed")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise RequestError(f"calibration of {key!r} holds NaN or infinite values; clean the data first")
        if np.issubdtype(array.dtype, np.floating) and np.issubdtype(wanted, np.floating):
            array = array.astype(wanted, copy=False)
        samples[key] = array
    return samples


class Batches:
    """A calibration reader over arrays. Every batch is equally large: histogram calibrators cannot stack others."""

    def __init__(self, model: onnx.ModelProto, samples: Mapping[str, np.ndarray]) -> None:
        count = min(len(x) for x in samples.values())
        size = next((n for n in _static_batches(model) if n), min(BATCH, count))
        # Fewer samples than a static batch are repeated; what is left over of more is not used.
        starts = range(0, max(1, count // size) * size, size)
        rows = [np.arange(i, i + size) % count for i in starts]
        self._batches = iter([{name: x[r] for name, x in samples.items()} for r in rows])

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self._batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None: the interface ONNX Runtime's calibrators read."""
        return next(self._batches, None)


def _inputs(model: onnx.ModelProto) -> dict[str, Any]:
    """Tensor types by name, of the inputs that are no constants."""
    return {value.name: value.type.tensor_type for value in inputs_of(model)}


def _static_batches(model: onnx.ModelProto) -> list[int]:
    """The first dimension of every input; 0 where it is dynamic."""
    return [int(kind.shape.dim[0].dim_value) if kind.shape.dim else 0 for kind in _inputs(model).values()]

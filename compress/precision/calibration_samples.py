"""Calibration samples: arrays by input name, checked, and handed out in batches that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from compress.onnx_files.contents import inputs_of
from compress.values.error_lines import one_line
from targets.errors import RequestError
from targets.machine import memory
from targets.workers.local import ROOM

BATCH = 32
"""Samples in a batch, where the model takes any number and there are as many."""


def named(model: onnx.ModelProto, name: str, calibration: Any) -> dict[str, np.ndarray]:
    """Calibration samples by input name, in the model's types, samples first.

    ``calibration``: for a model of one input an array, or samples one by one (a list, a generator); for any model a
    dict of these by input name, or such dicts (for several inputs: also tuples in their order) one by one. A sample may
    have a first axis of one, as a batch has. ``name``: of the file, for messages. Raises RequestError for other names,
    no samples, samples of unequal shape, that are not finite, or whose values the model's types do not hold.
    """
    kinds = _inputs(model)
    samples = {key: _array(key, values, kinds.get(key)) for key, values in _by_name(kinds, name, calibration).items()}
    if set(samples) != set(kinds):
        raise RequestError(f"calibration has {sorted(samples)}; {name} has the inputs {sorted(kinds)}")
    if any(array.ndim == 0 or len(array) == 0 for array in samples.values()):
        raise RequestError("calibration is empty; some dozens of typical samples are needed")
    counts = {key: len(array) for key, array in samples.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} of {key!r}" for key, count in counts.items())
        raise RequestError(f"calibration has unequal numbers of samples: {said}; give as many for each input")
    return {key: _in_type(key, array, kinds[key]) for key, array in samples.items()}


def _by_name(kinds: Mapping[str, Any], name: str, calibration: Any) -> dict[str, Any]:
    """What was given for each input."""
    if isinstance(calibration, Mapping):
        return {str(key): values for key, values in calibration.items()}
    if hasattr(calibration, "__array__") or np.isscalar(calibration):
        return {next(iter(kinds)): calibration}
    if not isinstance(calibration, Iterable):
        raise RequestError(
            f"calibration is {type(calibration).__name__}; give an array, samples first, or a dict of them"
        )
    rows = list(calibration)
    if rows and all(isinstance(row, Mapping) for row in rows):
        keys = {str(key) for row in rows for key in row}
        short = next((key for key in sorted(keys) for row in rows if key not in row), None)
        if short is not None:
            raise RequestError(f"calibration lacks {short!r} in some of its samples; every sample needs all inputs")
        return {key: [row[key] for row in rows] for key in sorted(keys)}
    if len(kinds) == 1:
        return {next(iter(kinds)): rows}
    if isinstance(calibration, tuple) and len(rows) == len(kinds):
        return dict(zip(kinds, rows, strict=True))
    if rows and all(isinstance(row, list | tuple) and len(row) == len(kinds) for row in rows):
        return {key: [row[i] for row in rows] for i, key in enumerate(kinds)}
    raise RequestError(
        f"calibration does not name its inputs; {name} has {sorted(kinds)}: give a dict of arrays by them"
    )


def _array(name: str, values: Any, kind: Any) -> np.ndarray:
    """The samples of one input as an array, samples first; ``kind``: the input's tensor type, if there is one."""
    if hasattr(values, "__array__") or np.isscalar(values) or not isinstance(values, Iterable):
        return _plain(name, values)
    rows = [_plain(name, row) for row in values]
    if not rows:
        return np.zeros(0)
    shapes = list(dict.fromkeys(row.shape for row in rows))
    # A list of batches: their axes are as many as the input has.
    whole = kind is not None and kind.HasField("shape") and rows[0].ndim == len(kind.shape.dim) > 0
    if len({shape[1:] if whole else shape for shape in shapes}) > 1 or len({row.ndim for row in rows}) > 1:
        said = " and ".join(str(shape) for shape in shapes[:2])
        raise RequestError(f"calibration of {name!r} is ragged, samples have shapes {said}; pad or cut them to one")
    return np.concatenate(rows) if whole else np.stack(rows)


def _plain(name: str, values: Any) -> np.ndarray:
    """An array of numbers; raises RequestError for anything else."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
    except ValueError:
        raise RequestError(f"calibration of {name!r} is ragged; pad or cut the samples to one shape") from None
    except Exception as error:
        raise RequestError(f"calibration of {name!r} is no array: {one_line(error, kind=True)}") from None
    if array.dtype == object:
        raise RequestError(f"calibration of {name!r} holds {type(array.flat[0]).__name__}, not numbers")
    return array


def _in_type(name: str, array: np.ndarray, kind: Any) -> np.ndarray:
    """``array`` in the input's type; raises RequestError for values that would not survive."""
    wanted = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise RequestError(f"calibration of {name!r} holds NaN or infinite values; clean the data first")
    if array.dtype == wanted:
        return array
    numbers = np.issubdtype(array.dtype, np.number) or array.dtype == bool
    if not numbers or not (np.issubdtype(wanted, np.number) or np.issubdtype(wanted, np.bool_)):
        raise RequestError(f"calibration of {name!r} is of type {array.dtype}; the model takes {wanted}")
    if not _holds(wanted, array):
        raise RequestError(
            f"calibration of {name!r} holds values of type {array.dtype} that {wanted} does not; convert it"
        )
    found: np.ndarray = array.astype(wanted)
    return found


def _holds(wanted: np.dtype[Any], array: np.ndarray) -> bool:
    """Whether a type can hold all values of ``array``: floats up to rounding, whole numbers exactly."""
    if np.issubdtype(wanted, np.integer) and array.dtype.kind in "iu":
        limits = np.iinfo(wanted)
        return limits.min <= int(array.min()) and int(array.max()) <= limits.max
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(wanted)
    if np.issubdtype(wanted, np.floating):
        return bool(np.isfinite(cast).all())
    return np.array_equal(cast.astype(array.dtype), array)


def fitting(
    grown_by: Callable[[Mapping[str, np.ndarray]], int | None], samples: Mapping[str, np.ndarray], copies: int = 1
) -> int:
    """How many of ``samples``, BATCH at most, are run at once so that their inner values have room in memory.

    ``grown_by`` runs a batch and says how many bytes that took. ``copies``: how often what one run takes is held.
    """
    try:
        each = grown_by({name: x[:1] for name, x in samples.items()})
    except Exception:  # the number of samples is fixed, or something is wrong that shows where it matters
        return BATCH
    room = memory.room(ROOM) // copies
    if not each or each * BATCH <= room:
        return BATCH
    return 1 << (max(1, room // each).bit_length() - 1)


class Batches:
    """A calibration reader over arrays. Every batch is equally large: histogram calibrators cannot stack others.

    With ``every`` the last one may be smaller where the model takes any number, and no sample is left over.
    """

    def __init__(
        self, model: onnx.ModelProto, samples: Mapping[str, np.ndarray], most: int = BATCH, *, every: bool = False
    ) -> None:
        count = min(len(x) for x in samples.values())
        static = next((n for n in _static_batches(model) if n), None)
        size = static or min(most, count)
        # Fewer samples than a static batch are repeated; what is left over of more is not used.
        starts = range(0, max(1, count // size) * size, size)
        rows = [np.arange(i, i + size) % count for i in starts]
        if every and not static and count % size:
            rows.append(np.arange(count - count % size, count))
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

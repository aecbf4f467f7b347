"""Feeds for a model: made up where nothing was given, checked and cast where something was, cut into batches.

Made-up values do not influence the latency of dense kernels; they are drawn from a seed so that a run can be
repeated. Integers are kept small, since they are usually indices into a table.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from targets.errors import ModelError, RequestError, TargetError
from targets.machine import memory
from targets.workers.runtime import Input, Session

Shapes = Mapping[str, Sequence[int]]


def check_names(
    names: Iterable[str], given: Mapping[str, object], what: str, kind: type[RequestError] = ModelError
) -> None:
    """Raise an error of that kind for a given name that is not among ``names``, the inputs of all models."""
    known = sorted(set(names))
    for name in given:
        if name not in known:
            raise kind(f"{what} for {name!r}: no model has that input; inputs are {', '.join(known)}")


def checked_shapes(shapes: Mapping[str, object]) -> dict[str, list[int]]:
    """Shapes as lists of sizes; raises TargetError for what is no shape. Sizes below 1 leave nothing to measure."""
    checked: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        try:
            checked[name] = [operator.index(size) for size in shape]  # type: ignore[attr-defined]
        except TypeError:
            checked[name] = [0]
        if min(checked[name], default=1) < 1:
            raise TargetError(
                f"shape {shape!r} for input {name!r} is not allowed; it is a tuple of integers, 1 or more"
            )
    return checked


def make_feeds(
    inputs: Sequence[Input], given: Mapping[str, np.ndarray], shapes: Shapes, seed: int
) -> dict[str, np.ndarray]:
    """Feeds for one inference at batch 1 (or the model's own static batch)."""
    random = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for item in inputs:
        if item.name in given:
            feeds[item.name] = _one_batch(item, cast_input(item, given[item.name]))
        else:
            feeds[item.name] = _made_up(item, _shape(item, shapes), random)
    return feeds


def _shape(item: Input, shapes: Shapes) -> tuple[int, ...]:
    asked = tuple(shapes.get(item.name, ()))
    if asked and (len(asked) != len(item.shape) or any(b is not None and a != b for a, b in zip(asked, item.shape))):
        raise ModelError(f"shape {asked} for input {item.name!r} does not fit the model's {show(item.shape)}")
    return asked or tuple(1 if axis is None else axis for axis in item.shape)


def _made_up(item: Input, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(item.dtype)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    if dtype.kind == "c":
        return (random.standard_normal(shape) + 1j * random.standard_normal(shape)).astype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return random.integers(0, 8, shape).astype(dtype)
    return np.full(shape, "a")


def _one_batch(item: Input, array: np.ndarray) -> np.ndarray:
    """Cut (or repeat) the samples to the batch that is measured."""
    if array.ndim == 0:
        return array
    if len(array) == 0:
        raise ModelError(f"input {item.name!r} was given without any sample, shape {show(array.shape)}")
    size = item.shape[0] or 1
    return np.ascontiguousarray(array[np.arange(size) % len(array)])


def cast_input(item: Input, array: np.ndarray) -> np.ndarray:
    """``array`` in the model's type; raises ModelError where values or shape would not survive."""
    array = np.asarray(array)
    wanted = np.dtype(item.dtype)
    if wanted.kind != "U" and array.dtype != wanted:
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise ModelError(f"input {item.name!r} takes {wanted}, was given {array.dtype}")
        array = array.astype(wanted)
    fits = array.ndim == len(item.shape) and all(b is None or a == b for a, b in zip(array.shape[1:], item.shape[1:]))
    if not fits:
        raise ModelError(f"input {item.name!r} takes shape {show(item.shape)}, was given {show(array.shape)}")
    return np.ascontiguousarray(array)


def show(shape: Sequence[int | None]) -> str:
    """A shape as it stands in messages, as ``?x3x32x32``; ``?`` is an axis of any size."""
    return "x".join("?" if axis is None else str(axis) for axis in shape) or "scalar"


def sample_count(given: Mapping[str, np.ndarray]) -> int:
    """Number of samples, which all inputs must agree on."""
    counts = {name: (len(array) if np.ndim(array) else -1) for name, array in given.items()}
    if not counts or len(set(counts.values())) != 1 or -1 in counts.values():
        raise ModelError(f"inputs must all have the same number of samples on their first axis, have {counts}")
    return next(iter(counts.values()))


def fitting_batch(session: Session, given: Mapping[str, np.ndarray], batch: int, room: int) -> int:
    """How many samples may be run at once, ``batch`` at most, so that their inner values fit into ``room`` bytes.

    One sample is run, and what memory that takes is looked at. Fewer than ``batch`` is a power of two.
    """
    names = [item.name for item in session.inputs]
    open_ended = all(item.shape and item.shape[0] is None for item in session.inputs)
    if batch < 2 or not open_ended or not all(name in given and len(given[name]) for name in names):
        return batch
    one = {item.name: cast_input(item, given[item.name])[:1] for item in session.inputs}
    try:
        each = memory.grown_by(lambda: session.run(one))
    except ModelError:
        return batch  # what is wrong with it shows where it is run, and is said there
    if not each or each * batch <= room:
        return batch
    return 1 << (max(1, room // each).bit_length() - 1)


def run_batches(
    session: Session, given: Mapping[str, np.ndarray], batch: int, report: Callable[[str], None] = lambda _: None
) -> list[np.ndarray]:
    """Outputs for all samples, ``batch`` at a time.

    A model whose first axis is static is run at that size; the last batch is then padded and the result cut. A model
    whose outputs do not have the batch on their first axis is run sample by sample, and each sample's output gets an
    axis in front.
    """
    missing = [item.name for item in session.inputs if item.name not in given]
    if missing:
        raise ModelError(f"no values for input {missing[0]!r}; inputs are {', '.join(i.name for i in session.inputs)}")
    check_names([item.name for item in session.inputs], given, "values")
    count = sample_count(given)
    feeds = {item.name: cast_input(item, given[item.name]) for item in session.inputs}
    static = {item.shape[0] for item in session.inputs if item.shape[0] is not None}
    if len(static) > 1:
        raise ModelError(f"inputs have different static batch sizes {sorted(static)}; cannot batch")
    size = static.pop() if static else None
    most = size or (batch if min(batch, count) > 1 and _is_batch_first(session, feeds) else 1)
    parts: list[list[np.ndarray]] = []
    counts: list[int] = []
    for start in range(0, max(count, 1), most):
        piece = {name: array[start : start + most] for name, array in feeds.items()}
        taken = min(most, count - start)
        run_at = size or max(taken, 1)
        outputs = session.run({name: _padded(array, run_at) for name, array in piece.items()})
        if most == 1 and taken == 1:
            outputs = list(map(_with_batch, outputs))
        parts.append([_cut(output, run_at, taken) for output in outputs])
        counts.append(taken)
        report(f"running sample {start + taken} of {count}")
    return join(parts, counts)


def _is_batch_first(session: Session, feeds: Mapping[str, np.ndarray]) -> bool:
    """Whether every output has the batch on its first axis; of two samples, since one axis may be as long as another.

    True where two samples do not run: what is wrong is said where all of them do.
    """
    try:
        outputs = [session.run({name: array[:some] for name, array in feeds.items()}) for some in (1, 2)]
    except ModelError:
        return True
    return all(one.ndim and len(one) == 1 and len(two) == 2 for one, two in zip(*outputs))


def _with_batch(output: np.ndarray) -> np.ndarray:
    """An output for one sample with an axis in front for it, where it has none there, as of (time, batch, classes)."""
    return output if output.ndim and len(output) == 1 else output[np.newaxis]


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    if len(array) == size:
        return array
    if len(array) == 0:
        return np.zeros((size, *array.shape[1:]), array.dtype)
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def _cut(output: np.ndarray, size: int, taken: int) -> np.ndarray:
    return output[:taken] if output.ndim and len(output) == size else output


def join(parts: Sequence[Sequence[np.ndarray]], counts: Sequence[int]) -> list[np.ndarray]:
    """Outputs of consecutive batches as one; raises ModelError where one is not batch first or its shape varies."""
    if len(parts) == 1:
        return list(parts[0])
    for index, column in enumerate(zip(*parts)):
        shapes = list(dict.fromkeys(output.shape[1:] for output in column))
        if len(shapes) > 1:
            raise ModelError(
                f"output {index} has the shapes {' and '.join(map(show, shapes[:2]))} for different samples: "
                "they cannot be joined to one array; outputs of one size are needed, as before non-maximum suppression"
            )
    for outputs in parts[0:1]:
        for index, output in enumerate(outputs):
            if output.ndim == 0 or any(len(part[index]) != n for part, n in zip(parts, counts)):
                raise ModelError(
                    f"output {index} has shape {show(output.shape)}: its first axis is not the batch, "
                    "so more than one batch cannot be joined"
                )
    return [np.concatenate(column) for column in zip(*parts)]

"""A task from nothing but an ``.onnx`` file and samples.

``FILE.npz`` holds arrays named as the model's inputs, optionally ``labels``, and ``split`` with train, val or test
per sample (without it a seeded 60/20/20). Without labels, quality is how like the original's the outputs are
(``originals.py``), and is called that.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.tasks import original_outputs
from compress.tasks.tasks import Task
from compress.values.arrays import read_arrays
from compress.values.domains import Float, Int
from compress.values.search_spaces import AUTO, SearchSpace
from targets.errors import ModelError, TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from compress.onnx_files.normalizing import NormalizedModel
    from compress.tasks.original_outputs import OutputPart

_SHARES = (0.6, 0.2)
_SHOWN = 64
"""Samples that show what kind of outputs a model has."""
_OWN_SHARE, _TIMED, _FEWEST = 0.15, 4, 16
"""Share of the time that running the original on train may take; samples that this is told from; the fewest used."""
_IGNORED = -100
"""The class number of what has none, as in torch."""
_STEPS, _BATCH = (200, 1000), 64
"""Training steps that a pruned network is given at least and at most, whatever the number of samples."""


def onnx_task(path: Path, data: Path | None, seconds: float | None = None) -> Task:
    """The task; raises ModelError or TaskError in one line.

    ``seconds``: the time of the whole search. Samples without labels take a run of the original each; where those of
    train alone would take a large part of it, only a part of them is used.
    """
    from compress.onnx_files import isolation

    with isolation.kept_worker(), isolation.blaming(path):
        return _onnx_task(path, data, seconds)


def _onnx_task(path: Path, data: Path | None, seconds: float | None) -> Task:
    from compress.onnx_files import contents, normalizing

    source = normalizing.read_normalized(path)
    names = list(contents.input_types(source.model))
    if data is None:
        raise TaskError(f"{path.name}: give samples with --data FILE.npz, arrays named {', '.join(names)}")
    arrays = read_arrays(data, TaskError)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise TaskError(f"--data {str(data)!r} holds {sorted(arrays)}; {path.name} needs {', '.join(missing)}")
    inputs = _inputs(source, arrays, path, data)
    count = len(inputs[0])
    labels, own = arrays.get("labels"), np.zeros(0)
    if labels is not None and (labels.ndim == 0 or len(labels) != count):
        raise TaskError(f"--data {str(data)!r}: labels have shape {labels.shape}; one for each of {count} samples")
    if labels is not None and labels.dtype.kind not in "biuf":
        raise TaskError(
            f"--data {str(data)!r}: labels are of type {labels.dtype}: numbers are needed, of classes or values"
        )
    parts = _split(arrays.get("split"), count, data)
    samples = dict(zip(names, inputs, strict=True))
    source = normalizing.with_free_batch(source, path, samples)
    outputs = [value.name for value in source.model.graph.output]
    metric: Any
    if labels is None:
        with _running(source) as run:
            if seconds is not None and "train" in parts:
                parts["train"] = _affordable(run, samples, parts["train"], _OWN_SHARE * seconds)
            used = np.sort(np.concatenate(list(parts.values())))
            inputs = [x[used] for x in inputs]
            parts = {name: np.searchsorted(used, chosen) for name, chosen in parts.items()}
            known = _own_outputs(run, dict(zip(names, inputs, strict=True)))
        found = original_outputs.goal(known, outputs, inputs)
        own, metric, loss = found.labels, found.metric, found.loss
    elif np.issubdtype(labels.dtype, np.floating):
        metric, loss = "mse", None
    else:
        with _running(source) as run:
            shown = _own_outputs(run, {name: x[:_SHOWN] for name, x in samples.items()})
        few = [x[:_SHOWN] for x in inputs]
        counting = original_outputs.parts_of(shown, outputs, few)
        metric, loss = original_outputs.labelled(shown, counting, labels)
        if metric != "multilabel_accuracy":
            _check_classes(labels, counting, data)
    wanted = own if labels is None else labels
    sets = {name: _dataset([*inputs, wanted], chosen, data) for name, chosen in parts.items()}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "model"
    return Task(name, path, sets.get("train"), sets["val"], sets.get("test"), metric, loss)


def _check_classes(labels: np.ndarray, parts: Sequence[OutputPart], data: Path) -> None:
    """Raise TaskError for class numbers that the output they are compared with does not have."""
    part = next((one for one in parts if one.kind in ("scores", "probabilities")), None)
    if part is None or not part.shape:
        return
    counted = labels[labels != _IGNORED] if labels.dtype.kind == "i" else labels
    if counted.size and (counted.min() < 0 or counted.max() >= part.shape[0]):
        raise TaskError(
            f"--data {str(data)!r}: labels go from {counted.min()} to {counted.max()}; output {part.name!r} has "
            f"{part.shape[0]} classes, 0 to {part.shape[0] - 1}"
        )


def onnx_space(task: Task, *, labelled: bool, timed: bool = False) -> SearchSpace:
    """The default space; without labels, networks are trained mostly by the original's outputs.

    ``timed``: the search has a given time, which then says how long each network is trained. Without, it is for as many
    steps as it takes to recover.
    """
    each = math.ceil(len(task.train) / _BATCH) if task.train is not None else 1
    low, high = (min(100, max(2, math.ceil(steps / each))) for steps in _STEPS)
    epochs: Any = AUTO if timed else Int(low, max(high, low + 1))
    if labelled:
        return SearchSpace(epochs=epochs)
    return SearchSpace(epochs=epochs, distill_weight=Float(0.5, 1.0), label_smoothing=0.0)


def _inputs(source: NormalizedModel, arrays: dict[str, np.ndarray], path: Path, data: Path) -> list[np.ndarray]:
    """The samples in the types that the model takes."""
    from compress.onnx_files.contents import input_types

    types = input_types(source.model)
    inputs = [np.atleast_1d(arrays[name]) for name in types]
    counts = {name: len(x) for name, x in zip(types, inputs, strict=True)}
    if min(counts.values()) < 10 or len(set(counts.values())) > 1:
        said = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise TaskError(
            f"--data {str(data)!r} has {said}: samples come first in every array, at least 10, of each input as many; "
            "what is the same for all of them (a state, a rate) has to be a constant within the model"
        )
    for (name, kind), x in zip(types.items(), inputs, strict=True):
        if not np.can_cast(x.dtype, kind, "same_kind"):
            raise TaskError(
                f"--data {str(data)!r}: {name} is of type {x.dtype}; {path.name} takes {kind}: numbers are needed"
            )
        if np.issubdtype(kind, np.integer) and (x.astype(kind) != x).any():
            raise TaskError(f"--data {str(data)!r}: {name} holds numbers that {kind} cannot; {path.name} takes {kind}")
    return [x.astype(kind) for x, kind in zip(inputs, types.values(), strict=True)]


@contextlib.contextmanager
def _running(source: NormalizedModel) -> Iterator[Callable[[dict[str, np.ndarray]], list[np.ndarray]]]:
    """What gives the original's own outputs for samples; one process serves all calls."""
    import onnx

    import targets

    place = targets.get("ort-cpu")
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(source.model, path)
            yield lambda samples: place.run(path, samples)
    finally:
        place.close()


def _affordable(
    run: Callable[[dict[str, np.ndarray]], object], samples: dict[str, np.ndarray], train: np.ndarray, seconds: float
) -> np.ndarray:
    """The train samples that the original can be run on in ``seconds``: all of them, or a half, a quarter ..."""
    few = {name: x[:_TIMED] for name, x in samples.items()}
    run(few)  # what is loaded for the first time is no sample's fault
    start = time.perf_counter()
    run(few)
    each = (time.perf_counter() - start) / _TIMED
    count = len(train)
    while count * each > seconds and count // 2 >= _FEWEST:
        count //= 2
    chosen = np.random.default_rng(0).permutation(len(train))[:count]
    return train if count == len(train) else train[np.sort(chosen)]


def _own_outputs(
    run: Callable[[dict[str, np.ndarray]], list[np.ndarray]], samples: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """The original's own outputs, to be compared with."""
    found = run(samples)
    count = len(next(iter(samples.values())))
    wrong = next((x.shape for x in found if x.ndim == 0 or len(x) != count), None)
    if wrong is not None:
        raise ModelError(f"an output has shape {wrong} for {count} samples: its first axis must be the samples")
    return found


def _split(given: np.ndarray | None, count: int, data: Path) -> dict[str, np.ndarray]:
    """Name of a split -> indices of its samples."""
    if given is None:
        order = np.random.default_rng(0).permutation(count)
        first, second = int(_SHARES[0] * count), int(sum(_SHARES) * count)
        return {"train": order[:first], "val": order[first:second], "test": order[second:]}
    names = np.asarray([x.decode() if isinstance(x, bytes) else str(x) for x in given.ravel().tolist()])
    unknown = set(names) - {"train", "val", "test"}
    if unknown or len(names) != count or not (names == "val").any():
        raise TaskError(
            f"--data {str(data)!r}: split must name train, val or test for each of {count} samples, and have val"
        )
    return {name: np.flatnonzero(names == name) for name in ("train", "val", "test") if (names == name).any()}


def _dataset(arrays: list[np.ndarray], chosen: np.ndarray, data: Path) -> Any:
    import torch

    try:
        return torch.utils.data.TensorDataset(*(torch.from_numpy(np.ascontiguousarray(x[chosen])) for x in arrays))
    except TypeError:
        kinds = ", ".join(str(x.dtype) for x in arrays)
        raise TaskError(f"--data {str(data)!r}: arrays are of types {kinds}; numbers are needed") from None

"""A task from nothing but an ``.onnx`` file and samples.

``FILE.npz`` holds arrays named as the model's inputs, optionally ``labels``, and ``split`` with train, val or test
per sample (without it a seeded 60/20/20). Without labels, quality is agreement with the original, and is called that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compress.graphs import load_model
from compress.tasks import Task
from targets.errors import TaskError

_SHARES = (0.6, 0.2)


def onnx_task(path: Path, data: Path | None) -> Task:
    """The task; raises ModelError or TaskError in one line."""
    model = load_model(path)
    constants = {t.name for t in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in constants]
    if data is None:
        raise TaskError(f"{path.name}: give samples with --data FILE.npz, arrays named {', '.join(names)}")
    arrays = _read(data)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise TaskError(f"--data {str(data)!r} holds {sorted(arrays)}; {path.name} needs {', '.join(missing)}")
    inputs = [arrays[name] for name in names]
    count = len(inputs[0])
    if count < 10 or any(len(x) != count for x in inputs):
        raise TaskError(
            f"--data {str(data)!r}: inputs have {[len(x) for x in inputs]} samples; at least 10, the same number each"
        )
    labels = arrays.get("labels")
    metric = "accuracy"
    if labels is None:
        labels, metric = _own_decisions(path, names, inputs), "agreement"
    elif np.issubdtype(labels.dtype, np.floating):
        metric = "mse"
    if len(labels) != count:
        raise TaskError(f"--data {str(data)!r}: {len(labels)} labels for {count} samples")
    parts = _split(arrays.get("split"), count, data)
    sets = {name: _dataset(inputs, labels, chosen) for name, chosen in parts.items()}
    return Task(path.stem, path, sets.get("train"), sets["val"], sets.get("test"), metric)


def _read(data: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(data, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise TaskError(f"--data {str(data)!r} is not a readable .npz file: {error}") from None


def _own_decisions(path: Path, names: list[str], inputs: list[np.ndarray]) -> np.ndarray:
    """The original's own outputs as labels."""
    import targets

    place = targets.get("ort-cpu")
    try:
        return place.run(path, dict(zip(names, inputs, strict=True)))[0]
    finally:
        place.close()


def _split(given: np.ndarray | None, count: int, data: Path) -> dict[str, np.ndarray]:
    """Split name -> indices."""
    if given is None:
        order = np.random.default_rng(0).permutation(count)
        first, second = int(_SHARES[0] * count), int(sum(_SHARES) * count)
        return {"train": order[:first], "val": order[first:second], "test": order[second:]}
    names = np.asarray([x.decode() if isinstance(x, bytes) else str(x) for x in given])
    unknown = set(names) - {"train", "val", "test"}
    if unknown or len(names) != count or not (names == "val").any():
        raise TaskError(
            f"--data {str(data)!r}: split must name train, val or test for each of {count} samples, and have val"
        )
    return {name: np.flatnonzero(names == name) for name in ("train", "val", "test") if (names == name).any()}


def _dataset(inputs: list[np.ndarray], labels: np.ndarray, chosen: np.ndarray) -> Any:
    import torch

    tensors = [torch.from_numpy(np.ascontiguousarray(x[chosen])) for x in (*inputs, labels)]
    return torch.utils.data.TensorDataset(*tensors)

"""A task from nothing but an ``.onnx`` file and samples.

``FILE.npz`` holds arrays named as the model's inputs, optionally ``labels``, and ``split`` with train, val or test
per sample (without it a seeded 60/20/20). Without labels, quality is agreement with the original, and is called that;
where the original gives numbers instead of scores of classes, the mean squared difference from them.
"""

from __future__ import annotations

import re
import zipfile
import zlib
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
    arrays = read_arrays(data)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise TaskError(f"--data {str(data)!r} holds {sorted(arrays)}; {path.name} needs {', '.join(missing)}")
    inputs = [np.atleast_1d(arrays[name]) for name in names]
    count = len(inputs[0])
    if count < 10 or any(len(x) != count for x in inputs):
        raise TaskError(
            f"--data {str(data)!r}: inputs have {[len(x) for x in inputs]} samples; at least 10, the same number each"
        )
    labels = arrays.get("labels")
    metric = "accuracy"
    if labels is None:
        labels = _own_outputs(path, names, inputs)
        # Numbers have no decision that could agree.
        metric = "agreement" if labels.ndim > 1 and labels.shape[1] > 1 else "mse"
    elif np.issubdtype(labels.dtype, np.floating):
        metric = "mse"
    if labels.ndim == 0 or len(labels) != count:
        raise TaskError(f"--data {str(data)!r}: labels have shape {labels.shape}; one for each of {count} samples")
    parts = _split(arrays.get("split"), count, data)
    sets = {name: _dataset([*inputs, labels], chosen, data) for name, chosen in parts.items()}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "model"
    return Task(name, path, sets.get("train"), sets["val"], sets.get("test"), metric)


def read_arrays(data: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name; raises TaskError in one line. Nothing is unpickled."""
    try:
        found = np.load(data, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                return {name: found[name] for name in found.files}
        reason = "it holds a single array without a name; write it with numpy.savez"
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise TaskError(f"--data {str(data)!r} is not a readable .npz file: {reason}")


def _own_outputs(path: Path, names: list[str], inputs: list[np.ndarray]) -> np.ndarray:
    """The original's own outputs, to be compared with."""
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

"""Quality of an ONNX file, in the runtime it will ship in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compress import metrics
from compress.caching import Cache
from compress.contexts import Context
from compress.data import Split
from compress.results import Drop, Quality
from compress.serialization import file_hash
from targets.target import Target

VERSION = 1
BATCH = 64


def outputs(
    cache: Cache, target: Target, description: Any, path: Path, split: Split, names: list[str], *, dynamic: bool = False
) -> np.ndarray | tuple[np.ndarray, ...]:
    """The model's outputs on a whole split, computed on the target once and then kept.

    ``dynamic``: dynamically quantized files scale a whole batch at once, so they are scored one by one, as they
    will be run.
    """
    batch = 1 if dynamic else BATCH
    inputs = {
        "file": file_hash(path),
        "target": target.name,
        "device": description,
        "split": split.digest,
        "batch": batch,
    }

    def compute(folder: Path) -> dict[str, Any]:
        found = target.run(path, split.arrays(names), batch=batch)
        np.savez(folder / "outputs.npz", **{str(i): x for i, x in enumerate(found)})  # type: ignore[arg-type]
        return {"count": len(found)}

    artifact = cache.stage("score", VERSION, inputs, compute)
    with np.load(artifact.folder / "outputs.npz") as stored:
        found = tuple(stored[str(i)] for i in range(artifact.info["count"]))
    return found[0] if len(found) == 1 else found


def score(
    context: Context, target: Target, path: Path, split: Split, *, dynamic: bool = False
) -> tuple[Quality, Drop, Any]:
    """Quality and drop against the baseline on ``split``, with intervals; and the outputs they come from."""
    description = context.describe[target.name]
    found = outputs(context.cache, target, description, path, split, context.names, dynamic=dynamic)
    reference = found
    if path != context.baseline_path:
        reference = outputs(context.cache, target, description, context.baseline_path, split, context.names)
    labels = split.labels.numpy()
    quality = metrics.score(context.metric, found, labels, context.seed)
    drop = metrics.drop(context.metric, reference, found, labels, context.seed)
    return quality, drop, found

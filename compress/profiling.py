"""The profile of a baseline: where it may be cut, how well it stands that, what int8 costs each of its layers."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress import data, finetuning, graphs, pruning, quantizing
from compress.caching import Cache
from compress.contexts import Profile, Training
from compress.pruning import Groups
from compress.serialization import file_hash
from targets.target import Capabilities

VERSION = 3
_SAMPLES = 512
_RATIO = 0.5


def make_profile(
    cache: Cache,
    training: Training | None,
    path: Path,
    calibration: Mapping[str, np.ndarray],
    capabilities: Capabilities,
) -> Profile:
    """Everything in it is computed once per baseline; ``path`` is its ONNX file."""
    groups, robustness = Groups((), ()), dict[str, float]()
    if training is not None:
        groups = pruning.find_groups(training.module, training.example)
        robustness = _robustness(cache, training, groups)
    return Profile(groups, robustness, _int8_order(cache, path, calibration, capabilities))


def digest(samples: Mapping[str, np.ndarray]) -> str:
    """Hash of some arrays, in their order."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in samples.values())).hexdigest()[:16]


def _robustness(cache: Cache, training: Training, groups: Groups) -> dict[str, float]:
    """Group -> rank from -0.5 to 0.5 by the loss on train examples after cutting half of that group alone."""

    def compute(_: Path) -> dict[str, Any]:
        inputs, labels = data.sample(training.train, _SAMPLES, 0)
        losses: dict[str, float] = {}
        for group in groups.prunable:
            cut = pruning.prune(training.module, training.example, {group.name: _RATIO}, groups=groups).module
            found = finetuning.predict(cut, inputs, training.mode)
            losses[group.name] = float(training.objective.value(found[0] if len(found) == 1 else found, labels, 0.0))
        return {"losses": losses}

    inputs = {"baseline": training.digest, "train": training.train.digest}
    stored = cache.stage("profile", VERSION, inputs, compute).info["losses"]
    # A loss that is not finite was stored as null: the worst.
    losses = {name: float("inf") if value is None else value for name, value in stored.items()}
    ranked = sorted(losses, key=lambda name: -losses[name])
    last = max(1, len(ranked) - 1)
    return {name: i / last - 0.5 for i, name in enumerate(ranked)}


def _int8_order(
    cache: Cache, path: Path, calibration: Mapping[str, np.ndarray], capabilities: Capabilities
) -> tuple[int, ...]:
    """Positions of the layers by what int8 costs each alone, worst first; empty where nothing can be quantized."""
    if not quantizing.layers(path):
        return ()
    samples = {name: x[: quantizing.BATCH * 2] for name, x in calibration.items()}

    def compute(_: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ranges = folder / "ranges.json"
            quantizing.collect_ranges(path, samples, "minmax", ranges)
            errors = quantizing.layer_errors(path, ranges, "minmax", samples, capabilities, folder)
        return {"errors": errors}

    inputs = {"baseline": graphs.structure_hash(path), "weights": file_hash(path), "calibration": digest(samples)}
    errors = cache.stage("sensitivity", VERSION, inputs, compute).info["errors"]
    return tuple(sorted(range(len(errors)), key=lambda i: -(errors[i] if errors[i] is not None else float("inf"))))

"""The profile of a baseline: where it may be cut, how well it stands that, what int8 costs each of its layers
and saves by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compress.baseline.contexts import Profile, Training
from compress.baseline.int8_profiling import profile_int8
from compress.baseline.steps import ALL_THE_TIME, Steps
from compress.pruning import blocks, pruning
from compress.pruning.groups import Groups
from compress.run_folder.caching import Cache
from compress.tasks import datasets
from compress.tasks.labels import RaggedLabels, on_device
from compress.training import distilling
from targets.target import Capabilities, Target

VERSION = 5
_SAMPLES = 512
_RATIO = 0.5
_CURVE = (0.25, _RATIO, 0.75)
"""Shares at which the damage is measured, where widths are allocated by it."""


def make_profile(
    cache: Cache,
    training: Training | None,
    groups: Groups,
    path: Path,
    calibration: Mapping[str, np.ndarray],
    capabilities: Capabilities,
    timed_on: tuple[Target, Any] | None = None,
    steps: Steps = ALL_THE_TIME,
) -> Profile:
    """Everything in it is computed once per baseline; ``path`` is its ONNX file, ``groups`` are those of its network.

    ``timed_on``: the target, with its description, where layers are timed in int8; None: what they save is left out.
    ``steps``: the time for it.
    """
    scan: Callable[[], Mapping[str, float]] = dict
    if training is not None:
        scan = partial(_losses, cache, training, groups, _RATIO)
    quantized_only = training is None or not groups.prunable
    int8 = profile_int8(cache, path, calibration, capabilities, timed_on, steps, quantized_only=quantized_only)
    return Profile(groups, int8.order, int8.damage, int8.lossy, scan)


def damages(cache: Cache, training: Training, groups: Groups) -> dict[str, list[tuple[float, float]]]:
    """Group -> (share cut of it alone, rise of the loss on train examples by it), measured at a few shares.

    A loss that is not finite counts ten times the worst that is.
    """
    whole = _losses(cache, training, groups, None)[""]
    found = {ratio: _losses(cache, training, groups, ratio) for ratio in _CURVE}
    rises = {ratio: {name: loss - whole for name, loss in losses.items()} for ratio, losses in found.items()}
    finite = [rise for losses in rises.values() for rise in losses.values() if np.isfinite(rise)]
    worst = 10.0 * max([1e-6, *finite])

    def rise(name: str, ratio: float) -> float:
        return max(0.0, rises[ratio][name]) if np.isfinite(rises[ratio][name]) else worst

    return {group.name: [(ratio, rise(group.name, ratio)) for ratio in _CURVE] for group in groups.prunable}


def block_losses(cache: Cache, training: Training) -> dict[str, float]:
    """Removable block -> loss on train examples without it alone."""

    def compute(_: Path) -> dict[str, Any]:
        return {
            "losses": {
                block.name: _loss(training, blocks.without_blocks(training.module, [block]))
                for block in training.blocks.removable
            }
        }

    names = [block.name for block in training.blocks.removable]
    inputs = {**training.key.of_losses(), "blocks": names}
    return _finite(cache.stage("profile", VERSION, inputs, compute).info["losses"])


def _losses(cache: Cache, training: Training, groups: Groups, ratio: float | None) -> dict[str, float]:
    """Group -> loss on train examples after cutting ``ratio`` of that group alone; of the whole network if None."""

    def compute(_: Path) -> dict[str, Any]:
        if ratio is None:
            return {"losses": {"": _loss(training, training.module)}}
        losses: dict[str, float] = {}
        for group in groups.prunable:
            cut = pruning.prune(training.module, training.example, {group.name: ratio}, groups=groups).module
            losses[group.name] = _loss(training, cut)
        return {"losses": losses}

    inputs: dict[str, Any] = training.key.of_losses()
    if ratio != _RATIO:
        inputs["ratio"] = ratio
    return _finite(cache.stage("profile", VERSION, inputs, compute).info["losses"])


def _loss(training: Training, module: Any) -> float:
    inputs, labels = datasets.sample(training.train, _SAMPLES, 0)
    objective, mode = training.objective, training.mode
    if objective.loss is not None:  # it takes outputs as the network gives them: by name, say
        values = [
            float(objective.value(outputs, on_device(labels[part], mode.device), 0.0)) * len(labels[part])
            for part, outputs in distilling.by_batches(module, inputs, mode)
        ]
        return sum(values) / len(labels)
    found = distilling.predict(module, inputs, mode)
    if isinstance(labels, RaggedLabels):  # there is no usual loss: how far from the baseline the outputs go
        expected = distilling.predict(training.module, inputs, mode)
        return float(objective.divergence(found, expected, labels, 1.0))
    return float(objective.value(found[0] if len(found) == 1 else found, labels, 0.0))


def _finite(stored: Mapping[str, float | None]) -> dict[str, float]:
    """A loss that is not finite was stored as null: the worst."""
    return {name: float("inf") if value is None else value for name, value in stored.items()}

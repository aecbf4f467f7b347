"""What fine-tuning works with: objective, teacher, how this machine trains fastest, and a usable learning rate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from compress.baseline.contexts import Say, Training
from compress.metrics.metrics import Metric
from compress.networks import fingerprints
from compress.networks.activation_memory import samples_at_once
from compress.pruning import pruning
from compress.pruning.groups import Groups
from compress.run_folder.caching import Cache
from compress.run_folder.runs import Run
from compress.tasks import datasets
from compress.tasks.tasks import Task
from compress.training import distilling, learning_rates
from compress.training.finetuning import own_finetune
from compress.training.objectives import Objective, make_objective
from compress.training.training_key import TrainingKey, make_key
from compress.training.training_modes import TrainingMode, default_mode, find_mode, resolve_device
from compress.values.configs import FinetuneSettings
from compress.values.domains import corners, middle
from compress.values.search_spaces import AUTO, SearchSpace


@dataclass(frozen=True)
class Setup:
    """What a training is set up from; ``train`` in memory or as a stream."""

    task: Task
    run: Run
    cache: Cache
    metric: Metric
    train: datasets.Split | datasets.Stream
    example: tuple[torch.Tensor, ...]
    deterministic: bool
    """Costs are repeatable, and so is the search as a whole: nothing is decided by timing."""
    warn: Callable[[str], None]
    threads: int | None = None
    """Of a training, at most; None: as many as there are cores."""


def make_training(
    setup: Setup, module: torch.nn.Module, template: onnx.ModelProto, groups: Groups, device: str, say: Say
) -> Training:
    """For the baseline ``module``, whose raw exported graph is ``template`` and which may be cut by ``groups``."""
    task, metric, train = setup.task, setup.metric, setup.train
    outputs = setup.run.state.facts.outputs
    if task.finetune is None:
        objective = make_objective(task.loss, metric.loss, metric.name, outputs)
    else:
        objective = Objective(task.loss, metric.loss or "mse", outputs)
    place = resolve_device(device)
    at_once = _at_once(setup, module, place)
    mode = replace(default_mode(place), at_once=at_once)
    if not setup.deterministic and task.finetune is None:
        say("training mode")
        mode = _found_mode(setup, module, groups, train, objective, mode)
    teacher = distilling.make_teacher(copy.deepcopy(module), train, mode, lambda: setup.cache.timed("teacher"))
    seed, space = setup.run.request.seed, setup.run.request.space
    key = make_key(task, fingerprints.state_hash(module), train.digest, objective, mode, seed)
    if task.finetune is None:
        if space.lr == AUTO:
            say("learning rate")
            _find_rates(setup, module, groups, train, objective, mode, key)
        _check_features(setup, module, space)
    return Training(
        module, key, train, setup.example, objective, teacher, mode, template, task.optimizer, _own_loop(task, seed)
    )


def _at_once(setup: Setup, module: torch.nn.Module, device: str) -> int:
    """Samples of a batch that are trained on at once, where memory has no room for all; the same in the whole run."""
    known = setup.run.state.facts.mode
    if known is not None and known["mode"]["device"] == device:
        return int(known["mode"].get("at_once", 0))
    largest = int(max(corners(setup.run.request.space.batch_size)))
    # Gradients stand beside the values that they are of.
    most = None if device != "cpu" else samples_at_once(module, setup.example, copies_held=2)
    if most is None or most >= largest:
        return 0
    return max(2, most)


def _own_loop(task: Task, seed: int) -> Callable[[torch.nn.Module, FinetuneSettings], torch.nn.Module] | None:
    """The task's own training loop, as every stage calls it."""
    function = task.finetune
    if function is None:
        return None

    def loop(module: torch.nn.Module, settings: FinetuneSettings) -> torch.nn.Module:
        return own_finetune(function, module, task.train, settings, seed)

    return loop


def _typical(setup: Setup, module: torch.nn.Module, groups: Groups) -> torch.nn.Module:
    """About what will be trained: cut as in the middle of the space."""
    ratio = float(middle(setup.run.request.space.prune_ratio))
    return pruning.prune(module, setup.example, ratio, groups=groups).module if groups.prunable else module


def _found_mode(
    setup: Setup,
    module: torch.nn.Module,
    groups: Groups,
    train: datasets.Split | datasets.Stream,
    objective: Objective,
    usual: TrainingMode,
) -> TrainingMode:
    """How to train fastest here: tried on a network and a batch as they will be trained."""
    known, device, most = setup.run.state.facts.mode, usual.device, setup.threads
    if known is not None and known["mode"]["device"] == device:
        mode = TrainingMode(**known["mode"])
        return mode if most is None or mode.threads <= most else replace(mode, threads=most)
    with setup.cache.timed("training mode"):
        network = _typical(setup, module, groups)
        size = int(middle(setup.run.request.space.batch_size))
        inputs, labels = datasets.sample(train, min(size, usual.at_once or size), 0)
        found, seconds = find_mode(network, inputs, lambda outputs: objective.value(outputs, labels, 0.0), device, most)
    mode = replace(found, at_once=usual.at_once)
    setup.run.record.note("mode", {"mode": mode, "seconds": seconds})
    return mode


def _find_rates(
    setup: Setup, module: torch.nn.Module, groups: Groups, train: datasets.Split | datasets.Stream,
    objective: Objective, mode: TrainingMode, key: TrainingKey,
) -> None:  # fmt: skip
    """The range of learning rates, tested once and noted as a fact of the run."""
    size = int(middle(setup.run.request.space.batch_size))

    def compute(_: Path) -> dict[str, Any]:
        found = learning_rates.find_range(
            _typical(setup, module, groups), train, objective, mode=mode, seed=setup.run.request.seed,
            optimizer=setup.task.optimizer, batch_size=size,
        )  # fmt: skip
        return {"low": found.low, "high": found.high, "rates": found.rates, "losses": found.losses}

    # The network that is tried is cut as in the middle of the space.
    inputs = {**key.of_trainings(), "batch_size": size, "ratio": float(middle(setup.run.request.space.prune_ratio))}
    found = setup.cache.stage("learning rate", learning_rates.VERSION, inputs, compute).info
    if setup.run.state.facts.learning_rates != (found["low"], found["high"]):
        setup.run.record.note("learning_rates", (found["low"], found["high"]))


def _check_features(setup: Setup, module: torch.nn.Module, space: SearchSpace) -> None:
    """Warn where ``feature_weight`` is asked for and can do nothing."""
    if not any(corners(space.feature_weight)):
        return
    inputs, _ = datasets.sample(setup.train, 3, 0)
    if not distilling.matching(module, module, inputs):
        setup.warn("feature_weight: the network has no layers with positions to compare, so it does nothing")

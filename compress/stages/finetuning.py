"""The stage that trains a cut network again: in one training, or a short one first and the rest where it is earned.

A training works on a copy and gives back a module; what it began with stays as it is. ``run_training`` is also what
sparsity learning and training in int8 train with.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.baseline.contexts import Context, Say, Training
from compress.metrics.metrics import Metric
from compress.networks.weights_files import write_weights
from compress.pruning.pruning import Pruned
from compress.run_folder.caching import Cache
from compress.stages import early_stopping
from compress.tasks.datasets import Split
from compress.tasks.user_code import describe
from compress.training import distilling, finetuning
from compress.training.training_modes import TrainingMode
from compress.values.configs import Config, FinetuneSettings
from compress.values.constraints import Constraint
from compress.values.serialization import stable_hash, to_json
from targets.documents import file_hash
from targets.errors import StageError, TrainingError


@dataclass(frozen=True)
class Trained:
    """A trained network, and the file with its weights."""

    module: nn.Module
    weights: Path


@dataclass(frozen=True)
class Validation:
    """What the quality of a network in torch is computed on while it is trained."""

    split: Split
    metric: Metric

    def quality(self, module: nn.Module, mode: TrainingMode) -> float:
        """The metric's value on val, in its own orientation."""
        found = tuple(x.numpy() for x in distilling.predict(module, self.split.inputs, mode))
        return float(self.metric.function(found[0] if len(found) == 1 else found, self.split.labels.numpy()))


def finetuned(
    cache: Cache, training: Training, validation: Validation, start: Mapping[str, Any], pruned: Pruned,
    settings: FinetuneSettings, say: Say, after: Trained | None = None,
) -> Trained:  # fmt: skip
    """The network ``pruned``, trained; ``after``: by an earlier training, which it goes on from.

    ``start`` is what stands in keys for the network that it was cut from. Raises TrainingError where that fails.
    """
    begun = pruned.module if after is None else after.module
    inputs = {
        **training.key.of_trainings(),
        **start,
        **({"after": file_hash(after.weights)[:16]} if after else {}),
        "removed": stable_hash({name: list(indices) for name, indices in pruned.removed.items()}),
        "settings": to_json(settings),
        "val": validation.split.digest if settings.patience else None,
    }

    def compute(folder: Path) -> dict[str, Any]:
        module, history = run_training(training, copy.deepcopy(begun), settings, say, validation=validation)
        write_weights(module.state_dict(), folder / "weights.pt")
        return {"history": to_json(history)}

    with failing_as("fine-tuning"):
        weights = cache.stage("finetune", finetuning.VERSION, inputs, compute).folder / "weights.pt"
    return Trained(loaded(begun, weights), weights)


def as_earned(
    context: Context, training: Training, settings: FinetuneSettings, constraints: tuple[Constraint, ...], say: Say,
    train: Callable[[int, Trained | None], Trained],
) -> tuple[Trained, int]:  # fmt: skip
    """(the trained network, epochs saved where a short training left no hope).

    ``train`` trains for some epochs, after an earlier training where one is given.
    """
    first = early_stopping.short_epochs(settings)
    if not first:
        return train(settings.epochs, None), 0
    short = train(first, None)
    say("judge")
    quality = Validation(context.val, context.metric).quality(copy.deepcopy(short.module), training.mode)
    zero = context.baseline.candidate.measured[context.targets.first.name].quality.val.value
    better = context.metric.higher_is_better
    if early_stopping.is_hopeless(quality, zero, constraints, higher_is_better=better):
        return short, settings.epochs - first
    return train(settings.epochs - first, short), 0


def shortened(config: Config, saved: int) -> Config:
    """The config as it came about where a network got fewer epochs; in int8 it gets none then."""
    finetune = replace(config.finetune, epochs=config.finetune.epochs - saved)
    return replace(config, finetune=finetune, precision=replace(config.precision, qat_epochs=0))


def run_training(
    training: Training, module: nn.Module, settings: FinetuneSettings, say: Say, *, named: str = "finetune",
    mode: TrainingMode | None = None, taught: bool = True, validation: Validation | None = None,
) -> tuple[nn.Module, finetuning.History]:  # fmt: skip
    """Train ``module``, the caller's own, with the task's loop or ours: the trained module, and what it went through.

    ``named``: as the progress line says it; ``mode``: other than the usual one; ``taught``: whether the baseline
    teaches. A loop of the task's own has no history.
    """
    if training.loop is not None:
        return training.loop(module, settings), finetuning.History()
    usual, higher = training.mode, validation is None or validation.metric.higher_is_better

    def quality(network: nn.Module) -> float:
        value = validation.quality(network, usual) if validation is not None else 0.0
        return value if higher else -value

    history = finetuning.finetune(
        module,
        training.train,
        settings,
        training.objective,
        mode=mode or usual,
        seed=training.key.seed,
        teacher=training.teacher if taught else None,
        val_quality=None if validation is None else quality,
        on_epoch=lambda epoch: say(f"{named}, epoch {epoch} of {settings.epochs}"),
        optimizer=training.optimizer,
    )
    return module, history


@contextlib.contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Whatever is raised inside ends the trial with a TrainingError that says ``what`` failed, in one line."""
    try:
        yield
    except StageError:
        raise
    except (Exception, SystemExit) as error:
        raise TrainingError(f"{what} failed: {describe(error)}") from error


def loaded(module: nn.Module, weights: Path) -> nn.Module:
    """A copy of ``module`` that holds the weights in a file."""
    network = copy.deepcopy(module)
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval()

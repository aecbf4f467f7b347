"""What determines a training, said once: every stage that trains, or looks at a loss, makes its key from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.tasks.fingerprints import source_hash
from compress.tasks.tasks import Task
from compress.training.objectives import Objective
from compress.training.training_modes import TrainingMode
from compress.values.serialization import to_json


@dataclass(frozen=True)
class TrainingKey:
    """What is the same for all trainings of a search. Hashes, so that it can be written down."""

    baseline: str
    """Of the baseline's weights."""
    train: str
    """Of the train data."""
    objective: dict[str, Any]
    """The loss: its kind, and the hash of the task's own."""
    finetune: str | None
    """Of the task's own training loop."""
    optimizer: str | None
    """Of the task's function that makes an optimizer."""
    seed: int
    mode: dict[str, Any]
    """Device, threads and number format of the training."""

    def of_losses(self) -> dict[str, Any]:
        """What the losses of untrained networks on train examples depend on, their own making left out."""
        return {"baseline": self.baseline, "train": self.train, "objective": self.objective}

    def of_trainings(self) -> dict[str, Any]:
        """What a training depends on, besides its settings and what was cut."""
        found: dict[str, Any] = to_json(self)
        return found


def make_key(task: Task, baseline: str, train: str, objective: Objective, mode: TrainingMode, seed: int) -> TrainingKey:
    """The key of all trainings of ``task``; ``baseline`` and ``train`` are hashes of weights and data."""
    kind = {"kind": objective.kind, "own": source_hash(objective.loss)}
    if objective.outputs != "logits":
        kind["outputs"] = objective.outputs
    own = source_hash(task.finetune), source_hash(task.optimizer)
    said = to_json(mode)
    if not mode.at_once:
        del said["at_once"]
    return TrainingKey(baseline, train, kind, *own, seed, said)

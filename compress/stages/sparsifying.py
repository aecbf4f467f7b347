"""Sparsifying: carried here."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compress.training import finetuning
from compress.training.sparsity import penalised
from compress.values.configs import FinetuneSettings, PruneSettings
from compress.values.serialization import to_json
from targets.errors import StageError, TrainingError

if TYPE_CHECKING:
    from compress.baseline.contexts import Context, Say, Training

VERSION = 1


def sparsified(context: Context, training: Training, settings: PruneSettings, say: Say) -> Path:
    """The file with the baseline's weights after sparsity learning; once for each setting."""
    finetune = FinetuneSettings(epochs=settings.sparsity_epochs)
    inputs = {
        **training.key.of_trainings(),
        "strength": settings.sparsity, "kind": settings.sparsity_kind, "settings": to_json(finetune),
        "training": finetuning.VERSION,
    }  # fmt: skip

    def compute(folder: Path) -> dict[str, Any]:
        trained = _train(context, training, settings, finetune, say)
        torch.save(trained.state_dict(), folder / "weights.pt")
        return {}

    try:
        return context.cache.stage("sparsify", VERSION, inputs, compute).folder / "weights.pt"
    except (StageError, KeyboardInterrupt):
        raise
    except Exception as error:
        from compress.tasks.user_code import describe

        raise TrainingError(f"sparsity learning failed: {describe(error)}") from error


def _train(
    context: Context, training: Training, settings: PruneSettings, finetune: FinetuneSettings, say: Say
) -> nn.Module:
    task, module = context.task, copy.deepcopy(training.module)
    steps = finetune.epochs * math.ceil(len(training.train) / finetune.batch_size)
    groups = context.profile.groups
    with penalised(module, groups, settings.sparsity_kind, settings.sparsity, steps) as count:
        if task.finetune is not None:
            trained = finetuning.own_finetune(task.finetune, module, task.train, finetune, context.seed)
        else:
            trained = module
            finetuning.finetune(
                module, training.train, finetune, training.objective, mode=training.mode, seed=context.seed,
                on_epoch=lambda epoch: say(f"sparsify, epoch {epoch} of {finetune.epochs}"), optimizer=task.optimizer,
            )  # fmt: skip
    if not count[0] or trained is not module:
        raise TrainingError(
            "sparsity learning had no effect: the task's finetune must train the network it is given, with a torch "
            "optimizer; or set sparsity=0"
        )
    return trained

"""The stage of sparsity learning: the baseline is trained with a penalty on whole channels before it is cut."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from torch import nn

from compress.baseline.contexts import Say, Training
from compress.networks.weights_files import write_weights
from compress.pruning.groups import Groups
from compress.run_folder.caching import Cache
from compress.stages.finetuning import failing_as, run_training
from compress.training import finetuning
from compress.training.sparsity import penalised
from compress.values.configs import FinetuneSettings, PruneSettings
from compress.values.serialization import to_json
from targets.errors import TrainingError

VERSION = 2


def sparse_weights(cache: Cache, training: Training, groups: Groups, settings: PruneSettings, say: Say) -> Path:
    """The file with the baseline's weights after sparsity learning; it is trained once for each setting.

    Raises TrainingError where that fails.
    """
    finetune = FinetuneSettings(epochs=settings.sparsity_epochs)
    inputs = {
        **training.key.of_trainings(),
        "strength": settings.sparsity, "kind": settings.sparsity_kind, "settings": to_json(finetune),
        "training": finetuning.VERSION,
    }  # fmt: skip

    def compute(folder: Path) -> dict[str, Any]:
        trained = _train(training, groups, settings, finetune, say)
        write_weights(trained.state_dict(), folder / "weights.pt")
        return {}

    with failing_as("sparsity learning"):
        return cache.stage("sparsify", VERSION, inputs, compute).folder / "weights.pt"


def _train(
    training: Training, groups: Groups, settings: PruneSettings, finetune: FinetuneSettings, say: Say
) -> nn.Module:
    module = copy.deepcopy(training.module)
    steps = finetune.epochs * math.ceil(len(training.train) / finetune.batch_size)
    with penalised(module, groups, settings.sparsity_kind, settings.sparsity, steps) as count:
        trained, _ = run_training(training, module, finetune, say, named="sparsify", taught=False)
    if not count[0] or trained is not module:
        raise TrainingError(
            "sparsity learning had no effect: the task's finetune must train the network it is given, with a torch "
            "optimizer; or set sparsity=0"
        )
    return trained

"""The stage that reads what a network has lost on train examples.

A small network is held back by its size, and errs on the examples it was trained on as well. There are many more of
these than there are of val, and nothing was chosen by them, so they tell networks apart that val cannot.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from compress.baseline.contexts import Context, Training
from compress.tasks import datasets
from compress.tasks.user_code import describe
from compress.training import distilling
from targets.documents import file_hash
from targets.errors import TrainingError

VERSION = 1
MOST = 2048
"""Train examples that are read."""


def train_drop(context: Context, training: Training, module: nn.Module, weights: Path | None) -> float:
    """The metric of the baseline minus that of ``module`` on the same train examples; positive is always worse.

    ``weights``: the file that the module's weights are in. Raises TrainingError where the metric does not take train
    examples.
    """
    own = _quality(context, training, module, file_hash(weights)[:16] if weights else training.digest)
    zero = _quality(context, training, training.module, training.digest)
    return (zero - own) if context.metric.higher_is_better else own - zero


def _quality(context: Context, training: Training, module: nn.Module, digest: str) -> float:
    def compute(_: Path) -> dict[str, Any]:
        inputs, labels = datasets.sample(training.train, MOST, context.run.request.seed)
        found = tuple(x.numpy() for x in distilling.predict(module, inputs, training.mode))
        try:
            return {"value": float(context.metric.function(found[0] if len(found) == 1 else found, labels.numpy()))}
        except (Exception, SystemExit) as error:
            raise TrainingError(f"the metric on train examples raised {describe(error)}") from error

    inputs = {"weights": digest, "train": training.train.digest, "metric": context.metric.name, "examples": MOST}
    return float(context.cache.stage("train score", VERSION, inputs, compute).info["value"])

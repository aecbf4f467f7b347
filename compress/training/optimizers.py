"""What takes the steps: AdamW, or the optimizer that the task brings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from compress.tasks.user_code import describe
from compress.values.configs import FinetuneSettings
from targets.errors import TrainingError

OptimizerFunction = Callable[[list[dict[str, Any]], FinetuneSettings], torch.optim.Optimizer]
"""(groups of parameters, settings) -> an optimizer; each group has its ``weight_decay`` already."""


def make_optimizer(
    module: nn.Module, settings: FinetuneSettings, function: OptimizerFunction | None = None
) -> torch.optim.Optimizer:
    """AdamW without weight decay on biases and normalisation weights, or what ``function`` makes of the same groups.

    Raises TrainingError where the function raises or makes no torch optimizer.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if function is None:
        return torch.optim.AdamW(groups, lr=settings.lr)
    try:
        made = function(groups, settings)
    except (Exception, SystemExit) as error:
        raise TrainingError(f"the task's optimizer raised {describe(error)}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise TrainingError(
            f"the task's optimizer returned {type(made).__name__}, not a torch.optim.Optimizer; "
            "for example: lambda parameters, settings: torch.optim.SGD(parameters, lr=settings.lr)"
        )
    return made

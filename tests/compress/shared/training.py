"""What the tests of training share: a way to call it, a network without BatchNorm, and ways to compare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.training.finetuning import History, finetune
from compress.training.objectives import Objective
from compress.training.training_modes import TrainingMode
from compress.values.configs import FinetuneSettings

CPU = TrainingMode()
CROSS = Objective(None, "cross_entropy")
NAN = float("nan")
_KEYWORDS = ("mode", "teacher", "val_quality", "on_epoch", "optimizer")


def accuracy(module: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of ``data`` (inputs, labels) that is right."""
    with torch.no_grad():
        return float((module.eval()(data[0]).argmax(1) == data[1]).float().mean())


def tune(module: nn.Module, train: Any, seed: int = 0, objective: Objective = CROSS, **settings: Any) -> History:
    """``finetune`` with its keywords and the settings side by side."""
    keywords = {n: settings.pop(n) for n in _KEYWORDS if n in settings}
    return finetune(module, train, FinetuneSettings(**settings), objective, **{"mode": CPU, **keywords}, seed=seed)


def weights(module: nn.Module) -> Tensor:
    """All matrices and kernels as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.dim() > 1])


def linear() -> nn.Module:
    """Two linear layers for the digits, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether all weights and buffers are equal, bit for bit."""
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())

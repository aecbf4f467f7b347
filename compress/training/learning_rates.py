"""A usable range of learning rates, found by trying (Smith 2017, "Cyclical learning rates", the range test).

The network at half its width, which is what will be trained, takes steps while the rate grows exponentially. The range
begins before the smoothed loss has come down by a tenth of all that it comes down, and ends at a fraction of the rate
at which it is lowest: beyond that it rises again. Nothing is timed and all is seeded, so the answer repeats.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.networks.running import seed_all, threads
from compress.tasks.datasets import Split, Stream, batches
from compress.tasks.labels import on_device
from compress.training.objectives import Objective
from compress.training.optimizers import OptimizerFunction, make_optimizer
from compress.training.training_modes import TrainingMode, suited
from compress.values.configs import FinetuneSettings
from targets.errors import TrainingError

VERSION = 1
LOWEST, HIGHEST = 1e-6, 1.0
"""Rates tried, for any optimizer."""
_STEPS = 120
_SMOOTHING = 0.9
_BEGUN = 0.1
"""Share of the descent at which training has begun."""
_LAG = 3.0
"""The smoothed loss is some ten steps late, in which the rate has grown this many times."""
_BELOW_BEST = 5.0
"""The lowest loss is reached on the edge of instability: the usable end is this many times lower."""
_BLOWN_UP = 4.0
"""The test ends where the smoothed loss is this many times the lowest."""
_NARROWEST, _WIDEST = 3.0, 30.0


@dataclass(frozen=True)
class RateRange:
    """From ``low`` to ``high``; ``rates`` and smoothed ``losses`` are what it was read from."""

    low: float
    high: float
    rates: list[float]
    losses: list[float]


def find_range(
    module: nn.Module, train: Split | Stream, objective: Objective, *, mode: TrainingMode, seed: int,
    optimizer: OptimizerFunction | None = None, batch_size: int = 64,
) -> RateRange:  # fmt: skip
    """The range for ``module``, of which a copy is trained.

    Raises TrainingError where no rate brings the loss down, or the loss is not finite from the start.
    """
    seed_all(seed)
    mode = suited(mode, module)
    network = copy.deepcopy(module).to(mode.device).train()
    if mode.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made = make_optimizer(network, FinetuneSettings(lr=LOWEST, batch_size=batch_size), optimizer)
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    with threads(mode.threads):
        for inputs, labels in _endless(train, min(batch_size, mode.at_once or batch_size), seed):
            rate = LOWEST * (HIGHEST / LOWEST) ** (len(rates) / (_STEPS - 1))
            for group in made.param_groups:
                group["lr"] = rate
            loss = _step(network, made, inputs, labels, objective, mode)
            if not math.isfinite(loss):
                break
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            rates.append(rate)
            losses.append(mean / (1 - _SMOOTHING ** len(rates)))
            if len(rates) == _STEPS or losses[-1] > _BLOWN_UP * min(losses) + 1e-12:
                break
    low, high = read_range(rates, losses)
    return RateRange(low, high, rates, losses)


def read_range(rates: list[float], losses: list[float]) -> tuple[float, float]:
    """(low, high) of a curve; raises TrainingError where it does not come down."""
    best = min(range(len(losses)), key=losses.__getitem__, default=0)
    if not losses or not losses[best] < losses[0]:
        raise TrainingError(
            "lr='auto': no learning rate between 1e-06 and 1 brings the loss down; give lr as a Float in the space"
        )
    begun = losses[0] - _BEGUN * (losses[0] - losses[best])
    low = next(rate for rate, loss in zip(rates, losses, strict=True) if loss <= begun)
    high = max(rates[best] / _BELOW_BEST, rates[0] * _NARROWEST)
    return min(high / _NARROWEST, max(low / _LAG, high / _WIDEST)), high


def _endless(train: Split | Stream, size: int, seed: int) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for _, inputs, labels in batches(train, size, generator):
            yield inputs, labels


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, inputs: tuple[Tensor, ...], labels: Any,
    objective: Objective, mode: TrainingMode,
) -> float:  # fmt: skip
    optimizer.zero_grad(set_to_none=True)
    with mode.autocast():
        outputs = network(*(mode.place(x) for x in inputs))
    loss = objective.value(outputs, on_device(labels, mode.device), 0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())

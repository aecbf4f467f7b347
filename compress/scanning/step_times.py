"""The stage that times steps of training, so that the seconds of an epoch are known before a network is trained."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from compress.baseline.contexts import Training
from compress.networks.running import threads
from compress.tasks import datasets
from compress.tasks.labels import on_device
from compress.training.training_modes import suited

_STEPS = 4
"""Of each network; the first one is not timed."""


def step_seconds(training: Training, module: nn.Module, batch_size: int) -> float:
    """Seconds of one step of training ``module``, a copy nobody needs any more: forward, backward, update."""
    mode = suited(training.mode, module)
    size = min(batch_size, mode.at_once or batch_size)
    inputs, labels = datasets.sample(training.train, size, 0)
    module.to(torch.device(mode.device)).train()
    if mode.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    placed = tuple(mode.place(x) for x in inputs)
    labels = on_device(labels, mode.device)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-6)
    least = math.inf
    with threads(mode.threads):
        for number in range(_STEPS):
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            with mode.autocast():
                outputs = module(*placed)
            training.objective.value(outputs, labels, 0.0).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if number:
                least = min(least, time.perf_counter() - start)
    return least * batch_size / size


def seconds_of(timed: np.ndarray, seconds: Sequence[float], others: np.ndarray) -> np.ndarray:
    """Seconds of a step of networks that were not timed, (n,).

    ``timed``: what a step is a weighted sum of, for the networks that were, (m, columns), in ``seconds`` each;
    ``others``: the same of those that were not, (n, columns). No weight is negative.
    """
    from scipy.optimize import nnls

    took = np.asarray(seconds, dtype=np.float64)
    scale = np.maximum(timed.max(axis=0), 1e-300)
    weights, _ = nnls(timed / scale / took[:, None], np.ones(len(took)))
    return np.asarray(np.maximum(others / scale @ weights, 0.2 * took.min()))

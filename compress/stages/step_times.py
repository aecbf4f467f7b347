"""The stage that times steps of training, so that the seconds of an epoch are known before a network is trained."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from compress.baseline.contexts import Training
from compress.networks.running import threads
from compress.tasks import datasets
from compress.training.training_modes import suited

_STEPS = 4
"""Of each network; the first one is not timed."""


def step_seconds(training: Training, module: nn.Module, batch_size: int) -> float:
    """Seconds of one step of training ``module``, a copy nobody needs any more: forward, backward, update."""
    mode = suited(training.mode, module)
    inputs, labels = datasets.sample(training.train, batch_size, 0)
    module.to(torch.device(mode.device)).train()
    if mode.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    placed = tuple(mode.place(x) for x in inputs)
    labels = labels.to(mode.device) if isinstance(labels, torch.Tensor) else labels
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
    return least


def epoch_seconds(rows: Sequence[Mapping[str, float]], measured: Mapping[int, float], steps: int) -> np.ndarray:
    """Seconds of an epoch of ``steps`` steps, for each of some networks.

    ``rows``: what a step is a weighted sum of, for each network; ``measured``: index of a network -> seconds of a step.
    """
    from scipy.optimize import nnls

    names = sorted({name for row in rows for name in row})
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    scale = np.maximum(matrix.max(axis=0), 1e-300)
    known, seconds = list(measured), np.array(list(measured.values()))
    weights, _ = nnls(matrix[known] / scale / seconds[:, None], np.ones(len(known)))
    return np.asarray(np.maximum(matrix / scale @ weights, 0.2 * seconds.min()) * steps)

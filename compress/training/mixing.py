"""Mixup: a network is trained on convex combinations of pairs of examples (Zhang et al. 2018).

x = s * x_i + (1 - s) * x_j with s from Beta(alpha, alpha), one s for a batch as the paper's authors do. The losses of
both labels are mixed rather than the labels, s * L(f(x), y_i) + (1 - s) * L(f(x), y_j), so that any loss will do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from targets.errors import TrainingError


@dataclass(frozen=True)
class Mixed:
    """A batch in which example i is ``share`` of itself and the rest of example ``partner[i]``."""

    inputs: tuple[Tensor, ...]
    share: float
    partner: Tensor


class Mixer:
    """Mixes batch after batch, decided by a seed."""

    def __init__(self, alpha: float, seed: int) -> None:
        self._alpha, self._draw = alpha, np.random.default_rng(seed)

    def mix(self, inputs: tuple[Tensor, ...]) -> Mixed:
        """``inputs`` (samples first) mixed; raises TrainingError for whole numbers."""
        check_mixable(inputs)
        share = float(self._draw.beta(self._alpha, self._alpha))
        partner = torch.from_numpy(self._draw.permutation(len(inputs[0]))).to(inputs[0].device)
        return Mixed(tuple(torch.lerp(x[partner], x, share) for x in inputs), share, partner)


def check_mixable(inputs: tuple[Tensor, ...]) -> None:
    """Raise TrainingError unless every input holds real numbers: class or token numbers cannot be mixed."""
    for index, x in enumerate(inputs):
        if not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            raise TrainingError(f"mixup: input {index} holds {kind}, which cannot be mixed; set mixup=0")

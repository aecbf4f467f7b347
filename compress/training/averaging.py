"""An exponential moving average of a network's weights and statistics, which is less noisy than the last ones.

average <- d * average + (1 - d) * weights after every step, with d = min(decay, (1 + steps) / (10 + steps)): without
that warm-up a training of a few hundred steps would end on what it began with (Tarvainen & Valpola 2017; Izmailov
et al. 2018 for why averages generalise). BatchNorm's statistics are averaged as the weights are.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_Tensors = tuple[Tensor, ...] | list[Tensor]


class Average:
    """The average of one module's state while it is trained, ``decay`` of it being kept at every step in the end."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        self._averaged = AveragedModel(module, multi_avg_fn=_warmed_up(decay), use_buffers=True)
        self._averaged.update_parameters(module)  # it begins with the module as it is

    def update(self) -> None:
        """Take in the module as it is after a step."""
        self._averaged.update_parameters(self._module)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The module holds the average inside, and its own state again afterwards."""
        own = copy.deepcopy(self._module.state_dict())
        self.take()
        try:
            yield
        finally:
            self._module.load_state_dict(own)

    def take(self) -> None:
        """Put the average into the module, for good."""
        self._module.load_state_dict(self._averaged.module.state_dict())


def _warmed_up(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """How ``AveragedModel`` moves tensors of one type towards the module's; it counts its own first state as a step."""

    @torch.no_grad()
    def average(kept: _Tensors, now: _Tensors, steps: Tensor | int) -> None:
        kept_share = min(decay, (1 + int(steps)) / (10 + int(steps)))
        if kept[0].is_floating_point():
            torch._foreach_lerp_(kept, now, 1.0 - kept_share)
        else:  # counters
            torch._foreach_copy_(kept, now)

    return average

"""An exponential moving average of a network's weights and statistics, which is less noisy than the last ones.

average <- d * average + (1 - d) * weights after every step, with d = min(decay, (1 + steps) / (10 + steps)): without
that warm-up a training of a few hundred steps would end on what it began with (Tarvainen & Valpola 2017; Izmailov
et al. 2018 for why averages generalise). BatchNorm's statistics are averaged as the weights are.

``torch.optim.swa_utils.AveragedModel`` is not used: it averages every buffer, and between the infinities of a mask
there is no average.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """The average of one module's state while it is trained."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay, self._steps = module, decay, 0
        self._kept = {name: x.detach().clone() for name, x in _state(module).items()}
        # Counters are not averaged, nor are masks: between infinities there is no average.
        self._averaged = {n for n, x in self._kept.items() if x.is_floating_point() and bool(x.isfinite().all())}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module as it is after a step."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        now = _state(self._module)
        floating = [name for name, x in now.items() if name in self._averaged]
        torch._foreach_lerp_([self._kept[n] for n in floating], [now[n] for n in floating], 1.0 - decay)
        for name, x in now.items():
            if name not in self._averaged:
                self._kept[name].copy_(x)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The module holds the average for a while."""
        own = {name: x.detach().clone() for name, x in _state(self._module).items()}
        self.take()
        try:
            yield
        finally:
            _write(self._module, own)

    def take(self) -> None:
        """Put the average into the module, for good."""
        _write(self._module, self._kept)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: x for name, x in module.state_dict().items() if isinstance(x, Tensor)}


@torch.no_grad()
def _write(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, x in _state(module).items():
        x.copy_(values[name])

"""How this machine trains fastest: device, threads, memory layout, bf16. Found out by trying, then recorded.

Small networks train faster on one thread than on two, channels-last helps convolutions and bf16 helps wide ones;
which of it holds depends on the network and the CPU, so a few steps of each are timed.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.networks.running import threads
from compress.values.error_lines import one_line
from targets.errors import RequestError

_STEPS = 10
"""Of each mode; the first one is not timed."""
_HOPELESS = 2.0
"""A mode that is slower by this factor is timed no more."""
_GAIN = 0.9
"""A mode must take at most this share of the simpler one's time to be worth it."""
_GAIN_OF_THREADS = 0.7
"""Several threads must gain more: when anything else runs beside them, they wait for each other (10 times as long)."""
_HARM = 0.05
"""bf16 is given up where its loss after the trial steps is off by more than this share."""


@dataclass(frozen=True)
class TrainingMode:
    """The device, threads, memory layout and number format that a network is trained with."""

    device: str = "cpu"
    threads: int = 1
    channels_last: bool = False
    bf16: bool = False
    at_once: int = 0
    """Samples whose inner values fit into memory together: a larger batch is run in parts, and their gradients added
    up. 0: any number."""

    def described(self) -> str:
        """The mode in words, as the report says it."""
        return f"{self.threads} threads{', channels-last' * self.channels_last}{', bf16' * self.bf16}"

    def place(self, x: Tensor) -> Tensor:
        """An input on the device, in the layout."""
        x = x.to(self.device)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    def parts(self, count: int) -> list[slice]:
        """A batch of ``count`` samples in parts that fit into memory."""
        size = self.at_once or count
        starts = list(range(0, count, size))
        if len(starts) > 1 and count - starts[-1] == 1:
            starts.pop()  # BatchNorm takes no single sample
        return [slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """bf16 where the mode says so."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bf16)


def resolve_device(device: str) -> str:
    """``auto``: a GPU where there is one. Raises RequestError for a device that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(f"device {device!r} cannot be used: {one_line(error)}; use 'cpu' or 'auto'") from None
    return device


def gpus(device: str) -> int:
    """How many GPUs there are to train on, where ``device`` is one; else 0."""
    return torch.cuda.device_count() if resolve_device(device) == "cuda" else 0


_NARROW = 8
"""Input channels below which torch 2.13 corrupts memory in the backward pass of such a layer, see ``suited``."""


def suited(mode: TrainingMode, module: nn.Module) -> TrainingMode:
    """``mode``, without channels-last where that ends the process.

    Seen with torch 2.13 on the CPU: a 1x1 convolution with a stride and fewer than 8 input channels writes beyond its
    memory in the backward pass if its weights are channels-last.
    """
    narrow = any(
        isinstance(m, nn.Conv2d) and set(m.kernel_size) == {1} and max(m.stride) > 1 and m.in_channels < _NARROW
        for m in module.modules()
    )
    return replace(mode, channels_last=False) if narrow else mode


def default_mode(device: str) -> TrainingMode:
    """One thread, nothing special: what a reproducible search uses."""
    return TrainingMode(device=device)


def find_mode(
    module: nn.Module, inputs: tuple[Tensor, ...], loss: Callable[[object], Tensor], device: str,
    most_threads: int | None = None,
) -> tuple[TrainingMode, dict[str, float]]:  # fmt: skip
    """The fastest way to train ``module`` that does no harm, and the seconds a step took in each way tried.

    ``loss`` maps the network's outputs for ``inputs`` to a scalar. ``most_threads``: None for as many as there are
    cores.
    """
    if not device.startswith("cpu"):
        return TrainingMode(device, channels_last=_has_images(module, inputs), bf16=torch.cuda.is_bf16_supported()), {}
    modes = dict.fromkeys(suited(mode, module) for mode in _modes(_has_images(module, inputs), most_threads))
    tried = _timed(module, inputs, loss, tuple(modes))
    best, least = TrainingMode(), float("inf")
    reference = next(iter(tried.values()))[1]
    for mode, (took, value) in tried.items():
        harmless = abs(value - reference) <= _HARM * max(1.0, abs(reference))
        cost = took if mode.threads == 1 else took / _GAIN_OF_THREADS
        plain = (mode.channels_last, mode.bf16) == (best.channels_last, best.bf16)
        if harmless and cost < (least if plain else _GAIN * least):
            best, least = mode, cost
    return best, {mode.described(): took for mode, (took, _) in tried.items()}


def _modes(images: bool, most_threads: int | None) -> list[TrainingMode]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({1, max(1, min(cores, most_threads or cores))})
    modes = [TrainingMode(threads=n) for n in counts]
    if images:
        modes += [TrainingMode(threads=n, channels_last=True) for n in counts]
    return modes + [TrainingMode(threads=n, channels_last=images, bf16=True) for n in counts]


def _timed(
    module: nn.Module, inputs: tuple[Tensor, ...], loss: Callable[[object], Tensor], modes: tuple[TrainingMode, ...]
) -> dict[TrainingMode, tuple[float, float]]:
    """Mode -> (fastest seconds of a step, loss after the steps), for those that work; each on a copy of its own.

    They take turns, so that a minute in which the machine is slow is one for all. What is far behind is timed no more.
    """
    steps = {mode: _Steps(module, inputs, loss, mode) for mode in modes}
    for number in range(_STEPS):
        least = min((one.least for one in steps.values()), default=math.inf)
        for mode, one in list(steps.items()):
            if one.least > _HOPELESS * least:
                continue
            try:
                one.step(timed=number > 0)
            except RuntimeError:
                if mode == modes[0]:
                    raise
                del steps[mode]  # an operator or a loss that knows no bf16: not a way to train
    return {mode: (one.least, one.value) for mode, one in steps.items()}


class _Steps:
    """Training steps in one mode."""

    def __init__(
        self, module: nn.Module, inputs: tuple[Tensor, ...], loss: Callable[[object], Tensor], mode: TrainingMode
    ) -> None:
        self.network = copy.deepcopy(module).train()
        if mode.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for layer in self.network.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                layer.p = 0.0  # the losses of two modes could not be compared otherwise
        self.inputs, self.loss, self.mode = tuple(mode.place(x) for x in inputs), loss, mode
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-4)
        self.least, self.value = math.inf, 0.0

    def step(self, *, timed: bool) -> None:
        """One more; the first one of all, which prepares what the others find ready, is not timed."""
        with threads(self.mode.threads):
            start = time.perf_counter()
            self.optimizer.zero_grad(set_to_none=True)
            with self.mode.autocast():
                outputs = self.network(*self.inputs)
            result = self.loss(outputs)
            result.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.value = float(result.detach())
            if timed:
                self.least = min(self.least, time.perf_counter() - start)


def _has_images(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    return any(x.dim() == 4 for x in inputs) and any(isinstance(m, nn.Conv2d) for m in module.modules())

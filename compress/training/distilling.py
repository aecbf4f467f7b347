"""The baseline as teacher: its outputs, and where it looks.

Outputs are looked up where the train set is in memory, and computed for examples that are new each time or mixed.

Intermediate features are compared as attention maps (Zagoruyko & Komodakis 2017): of a layer's output the mean of
squares over its channels, one number for each position (pixel, time step, token), scaled to unit length. The distance
is the squared one, between 0 and 2. FitNets' hints (Romero et al. 2015) would need a trained regressor for each pruned
width; a map has the same shape at any width, needs no weights, and is as robust to channels that are cut, permuted
or scaled. Layers without positions (of a plain MLP) have none to compare: the outputs are what there is to learn from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.networks.activation_memory import samples_at_once
from compress.networks.running import evaluating, outputs_of, threads
from compress.tasks.datasets import Split, Stream
from compress.training.training_modes import TrainingMode
from targets.machine import memory

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_CHANNELS_LAST = (
    nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)  # fmt: skip


_MOST_KEPT = 1_000_000_000
"""Bytes of the outputs on a whole train set, at most."""


@dataclass(frozen=True)
class Teacher:
    """The baseline's outputs: looked up where the train set is in memory, else computed."""

    module: nn.Module
    look: Callable[[], tuple[Tensor, ...] | None] | None = None
    """Computes the table; None where there is none, and what gives None where it would be too large."""

    @cached_property
    def table(self) -> tuple[Tensor, ...] | None:
        """Outputs for the whole train set, computed when they are first asked for."""
        return None if self.look is None else self.look()

    def prepare(self) -> None:
        """Compute the table now, so that it is in no training's time."""
        _ = self.table

    def outputs(self, indices: Tensor | None, inputs: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
        """For the train examples at ``indices``; None: for ``inputs`` as they are."""
        if indices is not None and self.table is not None:
            return tuple(x[indices].to(device) for x in self.table)
        with evaluating(self.module), torch.no_grad():
            return outputs_of(self.module.to(device)(*inputs))


def make_teacher(
    module: nn.Module, train: Split | Stream, mode: TrainingMode, timed: Callable[[], Any] = contextlib.nullcontext
) -> Teacher:
    """The baseline, to be run over the train set once where that can be kept; ``timed``: a context to do it in."""
    if isinstance(train, Stream):
        return Teacher(module)

    def look() -> tuple[Tensor, ...] | None:
        few = predict(module, train.first(2), mode)
        if sum(x.nbytes for x in few) / len(few[0]) * len(train) > memory.room(_MOST_KEPT):
            return None  # it is asked anew for every batch
        with timed():
            return predict(module, train.inputs, mode)

    return Teacher(module, look)


def predict(module: nn.Module, inputs: tuple[Tensor, ...], mode: TrainingMode, batch: int = 256) -> tuple[Tensor, ...]:
    """Outputs in eval mode for all of ``inputs`` (samples first), on the CPU."""
    parts = [
        tuple(x.float().cpu() for x in outputs_of(outputs)) for _, outputs in by_batches(module, inputs, mode, batch)
    ]
    return tuple(torch.cat([part[k] for part in parts]) for k in range(len(parts[0])))


def by_batches(
    module: nn.Module, inputs: tuple[Tensor, ...], mode: TrainingMode, batch: int = 256
) -> Iterator[tuple[slice, Any]]:
    """Which of ``inputs`` (samples first), and what the network itself gives for them in eval mode, batch by batch.

    Between batches nothing is set: whoever takes them may leave by an error, and be done with them long before this is.
    """
    batch = min(batch, samples_at_once(module, inputs) or batch)
    module = module.to(torch.device(mode.device))
    for start in range(0, len(inputs[0]), batch):
        part = slice(start, start + batch)
        with threads(mode.threads), evaluating(module), torch.no_grad():
            found = module(*(mode.place(x[part]) for x in inputs))
        yield part, found


@dataclass(frozen=True)
class Layer:
    """One call of a layer that both networks have, and the axis of its channels."""

    name: str
    call: int
    axis: int


@dataclass(frozen=True)
class _Seen:
    """A call of a layer on a batch of samples."""

    layer: Layer
    shape: tuple[int, ...]
    """Without the batch."""

    @property
    def positions(self) -> tuple[int, ...]:
        rest = list(self.shape)
        del rest[self.layer.axis - 1]
        return tuple(rest)


class Recorder:
    """Keeps what a network's layers put out, while ``on``."""

    def __init__(self, module: nn.Module, names: set[str] | None = None) -> None:
        self.on = False
        self.seen: dict[tuple[str, int], Tensor] = {}
        self.kinds: dict[str, nn.Module] = dict(module.named_modules())
        self._calls: dict[str, int] = {}
        self._hooks = [
            layer.register_forward_hook(self._hook(name))
            for name, layer in module.named_modules()
            if name and (names is None or name in names)
        ]

    def _hook(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = _first(output) if self.on else None
            if first is not None:
                call = self._calls[name] = self._calls.get(name, -1) + 1
                self.seen[name, call] = first

        return keep

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Forget what was, and keep what comes."""
        self.seen.clear()
        self._calls.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def close(self) -> None:
        """Take the hooks off the network that was watched."""
        for hook in self._hooks:
            hook.remove()


def matching(student: nn.Module, teacher: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Layer, ...]:
    """The last layer of each stage that both networks have, with as many positions; ``inputs``: three samples or more.

    A stage is a run of layers, in the order in which they end, of one number of positions. Modules that are called
    several times count once a call. None of a network that has no layers with positions.
    """
    theirs = [seen for seen in _trace(teacher, inputs) if max(seen.positions, default=1) > 1]
    mine = {(seen.layer.name, seen.layer.call): seen for seen in _trace(student, inputs)}
    stages: list[list[_Seen]] = []
    for seen in theirs:
        if not stages or stages[-1][-1].positions != seen.positions:
            stages.append([])
        stages[-1].append(seen)
    found = []
    for stage in stages:
        fitting = [seen.layer for seen in stage if _fits(seen, mine.get((seen.layer.name, seen.layer.call)))]
        found += fitting[-1:]
    return tuple(found)


def _fits(theirs: _Seen, mine: _Seen | None) -> bool:
    return mine is not None and mine.layer.axis == theirs.layer.axis and mine.positions == theirs.positions


def _trace(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[_Seen]:
    """Every layer's calls in the order in which they end, as far as the axis of its channels is known."""
    recorder = Recorder(module)
    shapes: list[dict[tuple[str, int], tuple[int, ...]]] = []
    try:
        # Two batch sizes tell an axis of samples from one of time steps.
        for size in (2, 3):
            with evaluating(module), torch.no_grad(), recorder.recording():
                module(*(x[:size] for x in inputs))
            shapes.append({k: tuple(x.shape[1:]) for k, x in recorder.seen.items() if x.dim() > 2 and len(x) == size})
    finally:
        recorder.close()
    axes: dict[tuple[int, ...], int] = {}
    found = []
    for (name, call), shape in shapes[1].items():
        if shapes[0].get((name, call)) != shape:
            continue
        kind = recorder.kinds[name]
        if isinstance(kind, _CHANNELS_FIRST):
            axes[shape] = 1
        elif isinstance(kind, _CHANNELS_LAST):
            axes[shape] = len(shape)
        # Blocks and activations: as the last layer of the same shape had it.
        if shape in axes:
            found.append(_Seen(Layer(name, call, axes[shape]), shape))
    return found


def _first(output: Any) -> Tensor | None:
    """The first tensor of an output: of a recurrent layer its sequence."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return next((x for x in map(_first, values) if x is not None), None)


def attention_map(features: Tensor, axis: int) -> Tensor:
    """(batch, positions): where a layer is active, at unit length."""
    return F.normalize(features.float().square().mean(axis).flatten(1), dim=1)


class Features:
    """The distance between attention maps of a student and its teacher, while both run."""

    def __init__(self, student: nn.Module, teacher: nn.Module, layers: Sequence[Layer]) -> None:
        self._layers = layers
        names = {layer.name for layer in layers}
        self.student, self.teacher = Recorder(student, names), Recorder(teacher, names)

    def distance(self) -> Tensor:
        """Mean over the layers of |a - b|^2, of the batch that both were last run on."""
        terms = []
        for layer in self._layers:
            key = layer.name, layer.call
            if key in self.student.seen and key in self.teacher.seen:
                mine, theirs = (attention_map(x.seen[key], layer.axis) for x in (self.student, self.teacher))
                terms.append((mine - theirs).square().sum(1).mean())
        return torch.stack(terms).mean() if terms else torch.zeros(())

    def close(self) -> None:
        """Take the hooks off student and teacher."""
        self.student.close()
        self.teacher.close()

"""Repeats: stretches of an ``nn.Sequential`` that come several times in a row, keep their shape, and may be left out.

A DS-CNN has four times the same six children, a VGG several convolutions of one width. They have no shortcut, so
dropping one is another network, not the same one with something times zero: it has to be trained again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.networks.running import repeatable


@dataclass(frozen=True)
class Repeat:
    """One of several equal stretches of an ``nn.Sequential``."""

    name: str
    """The only child's, or the first one's and the last one's place, as ``features.3..8``."""
    children: tuple[str, ...]
    """Qualified names of its modules."""

    @property
    def served(self) -> tuple[str, ...]:
        """Modules that go with it, as of a residual block: all but the one it is called after."""
        return tuple(child for child in self.children if child != self.name)


def possible_repeats(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Repeat]:
    """All repeats in ``module``, in the order of its modules, as one run on ``inputs`` shows their shapes.

    In each ``nn.Sequential`` that run of equal periods is taken which covers most children, then the next in what is
    left. A period begins with a child that has weights of its own (a convolution, a linear layer, a block of them),
    and gives what it was given: the same shape. Inside a repeat none is looked for.
    """
    shapes = _shapes(module, inputs)
    found: list[Repeat] = []
    for name, sequence in module.named_modules():
        inside = any(name == child or name.startswith(child + ".") for one in found for child in one.children)
        if isinstance(sequence, nn.Sequential) and not inside:
            found += _repeats_in(name, sequence, shapes)
    return found


@dataclass(frozen=True)
class _Run:
    """``count`` periods of ``period`` children, from the child at ``start``."""

    start: int
    period: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.period * self.count


def _repeats_in(name: str, sequence: nn.Sequential, shapes: dict[str, tuple[Any, Any]]) -> Iterator[Repeat]:
    """The repeats among the direct children of one Sequential."""
    prefix = f"{name}." if name else ""
    places = [place for place, _ in sequence.named_children()]
    if len(places) != len(sequence):  # one module in several places
        return
    children = [f"{prefix}{place}" for place in places]
    table: dict[Any, int] = {}
    kinds = [table.setdefault(_signature(child), len(table)) for child in sequence]
    begins = [any(weight.ndim > 1 for weight in child.parameters()) for child in sequence]
    given = [shapes.get(child, (None, None)) for child in children]
    for run in sorted(_runs(kinds, begins, given, 0, len(kinds)), key=lambda run: run.start):
        for first in range(run.start, run.end, run.period):
            last = first + run.period - 1
            whole = children[first] if first == last else f"{children[first]}..{places[last]}"
            yield Repeat(whole, tuple(children[first : last + 1]))


def _runs(
    kinds: Sequence[int], begins: Sequence[bool], given: Sequence[tuple[Any, Any]], low: int, high: int
) -> list[_Run]:
    """The run that covers most of the children from ``low`` up to ``high``, and those on both sides of it."""
    best: _Run | None = None
    for start in range(low, high - 1):
        if not begins[start]:
            continue
        for period in range(1, (high - start) // 2 + 1):
            count = _count(kinds, given, start, period, high)
            covered = 0 if best is None else best.period * best.count
            if count > 1 and period * count > covered:
                best = _Run(start, period, count)
    if best is None:
        return []
    return [*_runs(kinds, begins, given, low, best.start), best, *_runs(kinds, begins, given, best.end, high)]


def _count(kinds: Sequence[int], given: Sequence[tuple[Any, Any]], start: int, period: int, high: int) -> int:
    """How often the period at ``start`` comes in a row, each time with the shape it began with at its end."""
    count, first = 0, kinds[start : start + period]
    for at in range(start, high - period + 1, period):
        entering, leaving = given[at][0], given[at + period - 1][1]
        if kinds[at : at + period] != first or entering is None or entering != leaving:
            break
        count += 1
    return count


def _signature(module: nn.Module) -> Any:
    """Equal for modules of one kind and size: types, settings, and shapes of weights, of all that is inside."""
    weights = tuple((name, tuple(p.shape)) for name, p in module.named_parameters(recurse=False))
    inner = tuple((name, _signature(child)) for name, child in module.named_children())
    return type(module), module.extra_repr(), weights, inner


def _shapes(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, tuple[Any, Any]]:
    """Module -> (shape and type of what it takes, of what it gives), of modules called once, from tensor to tensor."""
    calls: dict[str, list[tuple[Any, Any]]] = {}

    def recorder(name: str) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            plain = len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            calls.setdefault(name, []).append((_form(args[0]), _form(output)) if plain else (None, None))

        return record

    hooks = [layer.register_forward_hook(recorder(name)) for name, layer in module.named_modules() if name]
    try:
        with repeatable(module):
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: made[0] for name, made in calls.items() if len(made) == 1}


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype

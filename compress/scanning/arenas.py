"""What a network needs of memory: tables that grow with it, and an arena in which its tensors are laid out.

An arena is no sum over layers: tensors that are not needed at the same time share their place. So they are laid out
here as TensorFlow Lite Micro does it (``GreedyMemoryPlanner``: the largest first, each at the lowest place that is free
as long as it is needed), from the shapes of the network (``values/runs.py``). What the runtime does beside that is
found out from what was measured, as one of a few habits: whether it copies what a convolution pads, and what it gathers
before it multiplies. A regression says what a byte of the arena counts, and what the tables beside it take.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from compress.sampling.cost_model import FeatureTable, Predictor, solve
from compress.sampling.network_arrays import Patterns, by_pattern
from compress.values.networks import Network
from compress.values.runs import CONV, DEPTHWISE, VALUE, Buffer, sizes

ALIGNMENT = 128
"""Bits that tensors take a multiple of."""


@dataclass(frozen=True)
class Habit:
    """What a runtime does with memory beside laying out tensors."""

    copies: bool
    """Whether a convolution's input is copied where its border is not the least that there can be."""
    gathered: Mapping[str, int]
    """Kind of window -> its elements' size, where one of the tensors' is 1; 0: it is not gathered."""


HABITS = tuple(
    Habit(copies, {VALUE: 1, CONV: conv, DEPTHWISE: depthwise})
    # CMSIS-NN gathers two windows of a convolution and one of a depthwise one, from 8 bits to 16.
    for copies, conv, depthwise in itertools.product((True, False), (0, 1, 2, 4), (0, 1, 2))
)


def arena(elements: Sequence[float], together: Sequence[Sequence[int]]) -> float:
    """The length of the arena that tensors are laid out in, the largest first and of equal ones the last.

    ``elements``: of each tensor; ``together``: of each the numbers of those that are needed at the same time as it.
    """
    starts: dict[int, float] = {}
    longest = 0.0
    for i in sorted(range(len(elements)), key=lambda number: (-elements[number], -number)):
        at, size = 0.0, elements[i]
        for start, other in sorted((starts[j], elements[j]) for j in together[i] if j in starts):
            if start - at >= size:
                break
            at = max(at, start + other)
        starts[i] = at
        longest = max(longest, at + size)
    return longest


_MANY = 8
"""Networks from which on habits, and tables by what they grow with, are told apart: of fewer all would fit."""


@dataclass(frozen=True)
class ArenaTable:
    """What the memory of networks goes by, each network looked at once."""

    patterns: Patterns
    aligned: int = 16
    """Elements that tensors take a multiple of: ``ALIGNMENT`` over the bits of an element."""
    _known: dict[tuple[Network, int], float] = field(default_factory=dict, compare=False, repr=False)
    _layouts: dict[tuple[tuple[str, ...], bool], _Layout] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _tables(self) -> FeatureTable:
        """What grows with a network: numbers of layers, channels, weights."""
        return FeatureTable(self.patterns, 1, places=False)

    def learn(self, networks: Sequence[Network], ratios: np.ndarray) -> Predictor:
        """The memory of any network, from what ``networks`` need, by the first habit of those that fit best."""
        habits = range(len(HABITS) if len(networks) >= _MANY else 1)
        fitted = [(number, *self._fitted(networks, ratios, number)) for number in habits]
        number, weights, _ = min(fitted, key=lambda one: (round(one[2], 4), one[0]))
        return partial(self._predicted, number, weights)

    def at_peak(self, network: Network) -> tuple[str, ...]:
        """Names of the groups whose channels are live at the moment at which most is live: what memory is cut by."""
        buffers = self._layout(network.dropped, True).buffers
        full = self.patterns[network.dropped].full
        left = {name: np.array([network.width_of[name] / channels]) for name, channels in full.items()}
        elements = sizes(buffers, left, 1)[0]

        def live(moment: int) -> list[int]:
            return [i for i, one in enumerate(buffers) if one.kind == VALUE and one.first <= moment <= one.last]

        last = max((one.last for one in buffers), default=0)
        peak = max(range(last + 1), key=lambda moment: sum(elements[i] for i in live(moment)))
        return tuple(sorted({name for i in live(peak) for _, names in buffers[i].elements for name in names}))

    def _fitted(self, networks: Sequence[Network], ratios: np.ndarray, habit: int) -> tuple[np.ndarray, float]:
        """(Weights of the columns, root of the mean squared relative error) of one habit."""
        columns = self._columns(networks, habit)
        if len(networks) < _MANY:
            columns = columns * self._rough
        weights = solve(columns, ratios)
        return weights, float(np.sqrt(np.mean((columns @ weights / ratios - 1) ** 2)))

    @cached_property
    def _rough(self) -> np.ndarray:
        """1 for the columns that go by few networks: the constant, all channels together, the arena; (columns,)."""
        return np.array([*(float(name in ("1", "moved")) for name in self._tables.names), 1.0])

    def _predicted(self, habit: int, weights: np.ndarray, networks: Sequence[Network]) -> np.ndarray:
        return np.asarray(self._columns(networks, habit) @ weights)

    def _columns(self, networks: Sequence[Network], habit: int) -> np.ndarray:
        self._lay_out([one for one in dict.fromkeys(networks) if (one, habit) not in self._known], habit)
        arenas = np.array([self._known[network, habit] for network in networks])
        return np.hstack([self._tables.matrix(networks), arenas.reshape(-1, 1)])

    def _lay_out(self, networks: Sequence[Network], habit: int) -> None:
        """Find the arenas of ``networks``, in elements."""
        for dropped, indices in by_pattern(networks).items():
            some = [networks[i] for i in indices]
            layout = self._layout(dropped, HABITS[habit].copies)
            full = self.patterns[dropped].full
            left = {name: np.array([one.width_of[name] / channels for one in some]) for name, channels in full.items()}
            each = np.array([HABITS[habit].gathered[one.kind] for one in layout.buffers])
            elements = np.round(sizes(layout.buffers, left, len(some))) * each
            taken = np.ceil(elements / self.aligned) * self.aligned
            for network, row in zip(some, taken.tolist(), strict=True):
                self._known[network, habit] = arena(row, layout.together)

    def _layout(self, dropped: tuple[str, ...], copies: bool) -> _Layout:
        if (dropped, copies) not in self._layouts:
            run = self.patterns[dropped].run
            self._layouts[dropped, copies] = _Layout(run.buffers(copies=copies) if run is not None else ())
        return self._layouts[dropped, copies]


@dataclass(frozen=True)
class _Layout:
    """What takes memory in a pattern, and what of it at the same time."""

    buffers: tuple[Buffer, ...]

    @cached_property
    def together(self) -> list[list[int]]:
        """Of each buffer the numbers of the others that are needed while it is."""
        found = [(one.first, one.last) for one in self.buffers]
        return [
            [j for j, (first, last) in enumerate(found) if j != i and first <= own_last and own_first <= last]
            for i, (own_first, own_last) in enumerate(found)
        ]

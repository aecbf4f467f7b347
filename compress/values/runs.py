"""One run of a network as plain data: which tensors its operators make, how large, and how long each is needed.

Which of them are needed at the same time is the same at all widths; how large they are follows from the widths of the
groups. That is what a runtime lays out in memory before it runs anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Terms = tuple[tuple[float, tuple[str, ...]], ...]
"""(elements, groups): so many elements times the share that is left of each of these groups; all added up."""
VALUE, CONV, DEPTHWISE = "value", "conv", "depthwise"
WINDOWS = (CONV, DEPTHWISE)


@dataclass(frozen=True)
class Step:
    """One operator of a run. Values are numbers, in the order in which they are made."""

    name: str
    """As torch calls it: ``convolution``, ``add``."""
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    padded: Terms = ()
    """Of a convolution whose border is not the least that there can be: its input with that border, for one example."""
    window: Terms = ()
    """Of a convolution over several positions: what its filters are multiplied by at one of them."""
    window_kind: str = ""
    """``conv`` or ``depthwise``, where there is a window."""


@dataclass(frozen=True)
class Buffer:
    """Something that takes memory from one operator to another, both included, which are numbered from 0."""

    elements: Terms
    first: int
    last: int
    kind: str = VALUE
    """``value``; or of a window that a kernel gathers before it multiplies, ``conv`` or ``depthwise``."""


@dataclass(frozen=True)
class Run:
    """The operators of one run, and the sizes of the values that they read and make."""

    values: tuple[Terms, ...]
    """The elements of each value for one example; the network's inputs come first."""
    inputs: int
    """How many of the values are those."""
    outputs: tuple[int, ...]
    steps: tuple[Step, ...]

    def buffers(self, *, copies: bool) -> tuple[Buffer, ...]:
        """What takes memory when: values in the order in which they are made, then windows.

        ``copies``: whether a convolution's input is copied, in a step of its own, where its border is not the least.
        """
        found: dict[int, list[int]] = {number: [0, 0] for number in range(self.inputs)}
        between: list[Buffer] = []
        windows: list[Buffer] = []
        at = 0
        for step in self.steps:
            copied = bool(copies and step.padded)
            for number in step.reads:
                found[number][1] = at
            if copied:
                between.append(Buffer(step.padded, at, at + 1))
                at += 1
            found |= {number: [at, at] for number in step.writes}
            if step.window:
                windows.append(Buffer(step.window, at, at, step.window_kind))
            at += 1
        for number in self.outputs:
            found[number][1] = at - 1
        values = [Buffer(self.values[number], first, last) for number, (first, last) in found.items()]
        return (*sorted([*values, *between], key=lambda one: one.first), *windows)


def sizes(buffers: Sequence[Buffer], left: Mapping[str, np.ndarray], networks: int) -> np.ndarray:
    """The elements of ``buffers`` in some networks, of shape (networks, buffers).

    ``left``: group -> the share of its channels that each network has, of shape (networks,).
    """
    found = np.zeros((networks, len(buffers)))
    for column, buffer in enumerate(buffers):
        for elements, groups in buffer.elements:
            found[:, column] += elements * np.prod([left[name] for name in groups], axis=0)
    return found

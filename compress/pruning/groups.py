"""Dependency groups as plain data: which channels can only be cut together, and where they sit in a network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["out", "in"]
"""Whether a tensor makes (or carries) the channels, or reads them."""
Place = tuple[str, int, bool]
"""Tensor, dimension, whether grouped: a channel axis of the network."""


KEPT_AS_ASKED = "asked to keep"
"""The reason of layers that the user wants to stay as wide as they are."""


class Unsupported(Exception):
    """A layer or group that is not known how to be cut; caught where groups are judged, never seen by users."""


@dataclass(frozen=True)
class Slot:
    """Where a group's channels sit in one tensor: position ``index[i]`` belongs to the group's channel ``root[i]``."""

    tensor: str
    """Qualified name of a parameter or buffer."""
    dim: int
    side: Side
    index: tuple[int, ...]
    root: tuple[int, ...]
    grouped: bool = False
    """Whether these are the input channels of a grouped convolution, held block by block in ``dim``."""

    @property
    def layer(self) -> str:
        """Qualified name of the module that the tensor belongs to."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Knob:
    """A whole number in a module of the user's that must change with a group's width."""

    module: str
    attribute: str
    """With a dot in it: an attribute, and what that holds under the name behind the dot (``held_numbers.py``)."""
    place: int | None = None
    """Its place in the attribute, where that is a tuple; in the source, where it is written there."""
    written: bool = False
    """Whether ``attribute`` is a method that has the number in its source (``source_numbers.py``)."""
    each: int = 0
    """What each channel takes from it; 0 where it is scaled: it counts nothing but the group's channels."""


@dataclass(frozen=True)
class Group:
    """One dependency group: channels that can only be cut together, in all its members at once."""

    name: str
    """Of its root layer, the first one in module order whose output channels these are; with ``:heads`` and the like
    where that layer's channels are divided into several groups."""
    channels: int
    multiple: int
    """Widths stay a multiple of this, each of ``multiple`` equal contiguous blocks losing the same number."""
    members: tuple[str, ...]
    """Names of the layers (and bare parameters) that change with it, the root first."""
    slots: tuple[Slot, ...] = field(default=(), repr=False)
    unit: int = 1
    """Positions of the root layer's width that one channel stands for: more than 1 for whole heads."""
    knobs: tuple[Knob, ...] = ()
    mixed: bool = False
    """Whether something normalises or averages over the channels, so that removing is not the same as zeroing."""

    def owners(self) -> tuple[str, ...]:
        """The members whose own width this group is, not just their input's."""
        return tuple(dict.fromkeys(owner_of(slot) for slot in self.slots if slot.side == "out"))

    def blocks(self) -> list[range]:
        """The channels, in the blocks that must lose the same number."""
        size = self.channels // self.multiple
        return [range(start, start + size) for start in range(0, self.channels, size)]

    def step(self, asked: int) -> int:
        """The step, in channels of the group, that keeps the layer's width a multiple of ``asked``; 1 if none does."""
        own = asked // math.gcd(asked, self.unit)
        return own if own < self.channels or self.unit == 1 else 1


@dataclass(frozen=True)
class Groups:
    """The groups of a network that may be cut, and the layers whose widths stay."""

    prunable: tuple[Group, ...]
    kept: tuple[tuple[str, str], ...]
    """(name of a layer, why its width stays), in module order."""


def owner_of(slot: Slot) -> str:
    """The name of the layer that the slot's tensor belongs to; the tensor's own where it belongs to no layer."""
    leaf = slot.tensor.rpartition(".")[2]
    return slot.layer if slot.layer and leaf.startswith(("weight", "bias", "in_proj_", "running_")) else slot.tensor

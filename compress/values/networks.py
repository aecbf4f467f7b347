"""Networks as points of a search: which blocks of the baseline are dropped, and how wide every group that is left is.

Plain data, so that thousands of them can be looked at without torch: what a network costs and how much it computes
follows from the shapes of its layers, which are linear in the widths of the groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class LayerShape:
    """A layer that computes products, as it is in a pattern before any group is cut."""

    name: str
    """Of the module, in the baseline."""
    kind: str
    """``conv``, ``depthwise``, ``linear`` or ``recurrent``."""
    kernel: int
    """Weights for each pair of an input and an output channel: 9 for a convolution of 3 x 3, 1 for a linear layer."""
    positions: int
    """Places at which it computes for one example: height times width of its output, or length; 1 for none."""
    inputs: int
    outputs: int
    """Channels, or features. A depthwise layer has as many inputs as outputs, each output reading one of them."""
    input_groups: tuple[tuple[str, int], ...] = ()
    output_groups: tuple[tuple[str, int], ...] = ()
    """(group, channels of this layer for each channel of the group), for the groups that reach it."""

    def channels(self, widths: Mapping[str, int], full: Mapping[str, int]) -> tuple[int, int]:
        """(inputs, outputs) with groups at ``widths``; ``full``: the groups' channels before they are cut."""
        inputs = self.inputs - sum(each * (full[name] - widths[name]) for name, each in self.input_groups)
        outputs = self.outputs - sum(each * (full[name] - widths[name]) for name, each in self.output_groups)
        return inputs, outputs

    def macs(self, inputs: int, outputs: int) -> int:
        """Multiplications and additions for one example."""
        pairs = outputs if self.kind == "depthwise" else inputs * outputs
        return pairs * self.kernel * self.positions


@dataclass(frozen=True)
class GroupLadder:
    """A group of channels, and the widths that it may have."""

    name: str
    channels: int
    widths: tuple[int, ...]
    """Ascending; the last one is ``channels``."""


@dataclass(frozen=True)
class Pattern:
    """The baseline without some of its blocks: the groups and layers that are left."""

    dropped: tuple[str, ...]
    """Names of the blocks that it lacks, sorted; empty for the baseline."""
    groups: tuple[GroupLadder, ...]
    layers: tuple[LayerShape, ...]

    @cached_property
    def full(self) -> dict[str, int]:
        """Group -> channels before it is cut."""
        return {group.name: group.channels for group in self.groups}

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiplications and additions of its layers for one example, with groups at ``widths``."""
        return sum(layer.macs(*layer.channels(widths, self.full)) for layer in self.layers)


@dataclass(frozen=True)
class Network:
    """One network: a pattern's blocks dropped, and a width for each of the pattern's groups."""

    dropped: tuple[str, ...]
    widths: tuple[tuple[str, int], ...]
    """(group, channels left), sorted by name, for all groups of the pattern."""

    @cached_property
    def width_of(self) -> dict[str, int]:
        """Group -> channels left."""
        return dict(self.widths)

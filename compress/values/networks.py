"""Networks as points of a search: which blocks of the baseline are dropped, and how wide every group that is left is.

Plain data, so that thousands of them can be looked at without torch: what a network costs and how much it computes
follows from the shapes of its layers, which are linear in the widths of the groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compress.values.runs import Run


@dataclass(frozen=True)
class LayerShape:
    """A layer that computes products, as it is in a pattern before any group is cut."""

    name: str
    """Of the module, in the baseline; of the weight, where a module has several (``lstm.weight_ih_l0``)."""
    kind: str
    """``conv``, ``depthwise``, ``linear`` or ``recurrent``."""
    kernel: int
    """Weights for each pair of an input and an output channel: 9 for a convolution of 3 x 3, 1 for a linear layer."""
    positions: int
    """Places at which it computes for one example: height times width of its output, or length; 1 for none."""
    inputs: int
    outputs: int
    """Channels, or features. A depthwise layer has as many inputs as outputs, each output reading one of them."""
    input_groups: tuple[tuple[str, float], ...] = ()
    output_groups: tuple[tuple[str, float], ...] = ()
    """(group, channels of this layer for each channel of the group), for the groups that reach it. A half where the
    layer gets one of two blocks of channels that lose equally many."""
    parts: int = 1
    """Of a grouped convolution that is not depthwise: each output reads the inputs of its own part only."""
    input_overlaps: tuple[tuple[str, str, float], ...] = ()
    output_overlaps: tuple[tuple[str, str, float], ...] = ()
    """(group, another one, channels of this layer for each pair of their channels), where one channel of the layer
    belongs to both: to a head and to a place in each head."""
    position_groups: tuple[tuple[str, float], ...] = ()
    """(group, positions for each channel of the group), of a layer that is computed for each channel of another one:
    a mixer's, over tokens."""

    def channels(self, widths: Mapping[str, int], full: Mapping[str, int]) -> tuple[int, int]:
        """(inputs, outputs) with groups at ``widths``; ``full``: the groups' channels before they are cut."""
        inputs = self.inputs - _lost(self.input_groups, widths, full, self.input_overlaps)
        outputs = self.outputs - _lost(self.output_groups, widths, full, self.output_overlaps)
        return inputs, outputs

    def places(self, widths: Mapping[str, int], full: Mapping[str, int]) -> int:
        """Positions with groups at ``widths``: ``positions``, but for layers with ``position_groups``."""
        return self.positions - _lost(self.position_groups, widths, full)

    def macs(self, inputs: int, outputs: int, positions: int | None = None) -> int:
        """Multiplications and additions for one example; ``positions``: where they are not those of the whole layer."""
        pairs = outputs if self.kind == "depthwise" else inputs * outputs // self.parts
        return pairs * self.kernel * (self.positions if positions is None else positions)


def _lost(
    groups: tuple[tuple[str, float], ...],
    widths: Mapping[str, int],
    full: Mapping[str, int],
    overlaps: tuple[tuple[str, str, float], ...] = (),
) -> int:
    """What a layer loses where ``groups`` are cut from ``full`` to ``widths``; widths are such that it is whole."""
    gone = sum(each * (full[name] - widths[name]) for name, each in groups)
    twice = sum(each * (full[a] - widths[a]) * (full[b] - widths[b]) for a, b, each in overlaps)
    return round(gone - twice)


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
    run: Run | None = None
    """What is live when, where memory is asked for and the run can be followed."""

    @cached_property
    def full(self) -> dict[str, int]:
        """Group -> channels before it is cut."""
        return {group.name: group.channels for group in self.groups}

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiplications and additions of its layers for one example, with groups at ``widths``."""
        full = self.full
        return sum(
            layer.macs(*layer.channels(widths, full), layer.places(widths, full) if layer.position_groups else None)
            for layer in self.layers
        )


@dataclass(frozen=True)
class Network:
    """One network: a pattern's blocks dropped, and a width for each of the pattern's groups."""

    dropped: tuple[str, ...]
    widths: tuple[tuple[str, int], ...]
    """(group, channels left), sorted by name, for all groups of the pattern."""

    @cached_property
    def width_of(self) -> dict[str, int]:
        """Group -> channels that are left of it."""
        return dict(self.widths)


PATTERN = "pattern"
"""The parameter of a trial that says which blocks its network lacks."""
WIDTH = "width."
"""How the parameters begin that say how wide a group is."""
_WHOLE = "whole"


def params_of(network: Network) -> dict[str, Any]:
    """The parameters that stand for a network: ``pattern``, and ``width.GROUP`` for each group of it.

    >>> params_of(Network(("b",), (("conv", 16),)))
    {'pattern': 'b', 'width.conv': 16}
    """
    return {PATTERN: pattern_name(network.dropped), **{WIDTH + name: width for name, width in network.widths}}


def pattern_name(dropped: tuple[str, ...]) -> str:
    """What stands for a pattern without these blocks."""
    return "+".join(dropped) or _WHOLE


def network_of(params: Mapping[str, Any]) -> Network | None:
    """The network that parameters stand for; None where they name none."""
    if PATTERN not in params:
        return None
    dropped = () if params[PATTERN] == _WHOLE else tuple(str(params[PATTERN]).split("+"))
    widths = [(name.removeprefix(WIDTH), int(width)) for name, width in params.items() if name.startswith(WIDTH)]
    return Network(dropped, tuple(sorted(widths)))


def settings_in(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without those that name a network."""
    return {name: value for name, value in params.items() if name != PATTERN and not name.startswith(WIDTH)}

"""Many networks at once, as arrays: the channels of their layers and what they compute.

A search looks at thousands of networks for every training, so shapes are computed for all networks of one pattern
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compress.values.networks import Network, Pattern

Patterns = Mapping[tuple[str, ...], Pattern]
"""Dropped blocks -> the pattern that is left."""


def patterns_by_dropped(patterns: Sequence[Pattern]) -> dict[tuple[str, ...], Pattern]:
    """The patterns by the blocks that they lack. Raises ValueError if two lack the same, or none lacks nothing."""
    found = {pattern.dropped: pattern for pattern in patterns}
    if len(found) != len(patterns):
        raise ValueError("two patterns lack the same blocks")
    if () not in found:
        raise ValueError("there is no pattern of the whole baseline, the one that lacks no block")
    return found


def whole(pattern: Pattern) -> Network:
    """The network of a pattern of which no group is cut."""
    return Network(pattern.dropped, tuple(sorted((group.name, group.channels) for group in pattern.groups)))


def narrowest(pattern: Pattern) -> Network:
    """The network of a pattern of which every group is as narrow as it may be."""
    return Network(pattern.dropped, tuple(sorted((group.name, group.widths[0]) for group in pattern.groups)))


def channels(pattern: Pattern, networks: Sequence[Network]) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, outputs) of every layer, each of shape (networks, layers). All ``networks`` are of ``pattern``."""
    names = [group.name for group in pattern.groups]
    widths = np.array([[network.width_of[name] for name in names] for network in networks], dtype=np.float64)
    removed = np.array([group.channels for group in pattern.groups], dtype=np.float64) - widths.reshape(-1, len(names))
    of_inputs = np.zeros((len(names), len(pattern.layers)))
    of_outputs = np.zeros_like(of_inputs)
    place = {name: i for i, name in enumerate(names)}
    for j, layer in enumerate(pattern.layers):
        for name, each in layer.input_groups:
            of_inputs[place[name], j] += each
        for name, each in layer.output_groups:
            of_outputs[place[name], j] += each
    inputs = np.array([layer.inputs for layer in pattern.layers]) - removed @ of_inputs
    outputs = np.array([layer.outputs for layer in pattern.layers]) - removed @ of_outputs
    return inputs, outputs


def by_pattern(networks: Sequence[Network]) -> dict[tuple[str, ...], list[int]]:
    """Dropped blocks -> indices of the networks that lack just these, ascending."""
    found: dict[tuple[str, ...], list[int]] = {}
    for i, network in enumerate(networks):
        found.setdefault(network.dropped, []).append(i)
    return found


def macs(patterns: Patterns, networks: Sequence[Network]) -> np.ndarray:
    """Multiplications and additions of each network for one example, exactly, of shape (networks,)."""
    found = np.zeros(len(networks))
    for dropped, indices in by_pattern(networks).items():
        pattern = patterns[dropped]
        inputs, outputs = channels(pattern, [networks[i] for i in indices])
        alone = np.array([layer.kind == "depthwise" for layer in pattern.layers])
        each = np.array([layer.kernel * layer.positions for layer in pattern.layers])
        found[indices] = (outputs * np.where(alone, 1.0, inputs)) @ each
    return found

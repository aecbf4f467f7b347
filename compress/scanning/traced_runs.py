"""The stage that follows one run of every pattern: what is live when, and how large it is at any widths of groups."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from compress.networks.prepared_modules import ready
from compress.pruning.blocks import Blocks, without_blocks
from compress.pruning.groups import Group, Groups
from compress.pruning.narrow_attention import adapt
from compress.tracing.labels import FIXED, ChannelTrace, Labels
from compress.tracing.recorded_runs import RecordedRun, RecordedStep, record_run
from compress.values.networks import Pattern
from compress.values.runs import CONV, DEPTHWISE, Run, Step, Terms


def with_runs(
    patterns: Sequence[Pattern], module: nn.Module, inputs: tuple[Tensor, ...], blocks: Blocks,
    groups_without: Callable[[tuple[str, ...]], Groups],
) -> tuple[Pattern, ...]:  # fmt: skip
    """The ``patterns`` of ``module`` with their runs, as far as these can be followed.

    ``inputs``: samples, batch first. ``groups_without``: names of blocks -> the groups that are left without them.
    """
    whole, given = ready(module, inputs)
    found = []
    for pattern in patterns:
        left = blocks.named(pattern.dropped)
        network = (without_blocks(whole, left) if left else copy.deepcopy(whole)).eval()
        adapt(network)
        found.append(replace(pattern, run=traced_run(network, given, groups_without(pattern.dropped))))
    return tuple(found)


def traced_run(network: nn.Module, inputs: tuple[Tensor, ...], groups: Groups) -> Run | None:
    """The run of ``network`` on the first of ``inputs``, its values' sizes by the widths of ``groups``.

    ``network`` is in eval mode and adapted, as groups are found in it. None where its run cannot be followed.
    """
    try:
        return _run(record_run(network, inputs), groups)
    except Exception:  # it shows, and is said, where the groups are found
        return None


def _run(recorded: RecordedRun, groups: Groups) -> Run:
    held = _Held(recorded.seen, groups.prunable)

    def step(one: RecordedStep) -> Step:
        channels = recorded.labels[one.reads[0]][:2]
        padded = held.terms([*channels, *(np.full(n, FIXED) for n in one.padded[2:])]) if one.padded else ()
        window = held.terms(one.weight) if one.weight is not None else ()
        kind = (DEPTHWISE if one.depthwise else CONV) if window else ""
        return Step(one.name, one.reads, one.writes, padded, window, kind)

    values = tuple(held.terms(labels) for labels in recorded.labels)
    return Run(values, recorded.inputs, recorded.outputs, tuple(map(step, recorded.steps)))


class _Held:
    """Which groups the positions of a dimension belong to, by their labels."""

    def __init__(self, seen: ChannelTrace, groups: tuple[Group, ...]) -> None:
        self.seen = seen
        self.groups_of: dict[int, set[str]] = {}
        axes = {(axis.tensor, axis.dim, axis.grouped): axis.labels for axis in seen.axes}
        for group in groups:
            for slot in group.slots:
                labels = axes.get((slot.tensor, slot.dim, slot.grouped))
                if labels is not None:
                    for atom in seen.atoms.find(labels[list(slot.index)]).tolist():
                        if atom > FIXED:
                            self.groups_of.setdefault(atom, set()).add(group.name)

    def terms(self, labels: Labels) -> Terms:
        """The elements of a tensor with these labels, as a sum of products."""
        sides = [self._side(label) for label in labels]
        found: Counter[tuple[str, ...]] = Counter()
        for parts in itertools.product(*(side.items() for side in sides)):
            names = tuple(sorted(name for some, _ in parts for name in some))
            found[names] += math.prod(count for _, count in parts)
        return tuple((float(count), names) for names, count in sorted(found.items()))

    def _side(self, label: np.ndarray) -> Counter[tuple[str, ...]]:
        """The groups that positions of one dimension belong to, and how many positions each such set has."""
        atoms = self.seen.atoms.find(label).tolist()
        return Counter(tuple(sorted(self.groups_of.get(atom, ()))) for atom in atoms)

"""Groups of repeated blocks: what was found out about one of them holds for those that are like it.

Two groups are alike when the same layers, of the same sizes, hold their channels at the same places, in modules of the
same classes with the same numbers; only the numbers in the names of modules differ (``blocks.0.mlp`` and
``blocks.7.mlp``). That is no proof: all groups that are taken are checked together in the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from compress.pruning.cutting import tensor_named
from compress.pruning.dependent_numbers import modules_around, numbers_in
from compress.pruning.groups import Group, Knob


def likeness(module: nn.Module, group: Group, parts: Sequence[Sequence[int]]) -> str:
    """What is the same for groups that are alike; ``parts``: of the group's channels, where those are divided."""
    slots = [
        (_masked(slot.tensor), tuple(tensor_named(module, slot.tensor).shape), slot.dim, slot.side, slot.grouped,
         slot.index, slot.root)
        for slot in group.slots
    ]  # fmt: skip
    around = [
        (_masked(name), type(layer).__qualname__, [(attribute, value) for attribute, value in numbers_in(layer)])
        for name in modules_around(module, group)
        for layer in [module.get_submodule(name)]
    ]
    text = repr((_masked(group.name), group.channels, group.multiple, group.unit, group.mixed, slots, around, parts))
    return hashlib.sha256(text.encode()).hexdigest()


def transferred(found: Group, first: Group, other: Group) -> Group | None:
    """``other`` cut as ``found``, which came of ``first``, to which it is alike; None where that cannot be said."""
    knobs = []
    for knob in found.knobs:
        name = _counterpart(knob.module, first, other)
        if name is None:
            return None
        knobs.append(Knob(name, knob.attribute, knob.place, knob.written, knob.each))
    return replace(other, multiple=found.multiple, knobs=tuple(knobs))


def _counterpart(name: str, first: Group, other: Group) -> str | None:
    """The module around the tensors of ``other`` that ``name`` is around those of ``first``."""
    depth = len(name.split(".")) if name else 0
    for mine, theirs in zip(first.slots, other.slots, strict=True):
        if f"{mine.tensor}.".startswith(f"{name}.") or not name:
            return ".".join(theirs.tensor.split(".")[:depth])
    return None


def _masked(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))

"""Numbers in the user's own modules that may have to change with a group's width: heads, split sizes, flat sizes.

Found, not asked for: whole numbers in the modules around a group's layers that equal one of its sizes. Which of them
really belong to it, the gate decides: a wrong one breaks the network or changes its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from torch import nn

from compress.attention import NarrowAttention
from compress.cutting import Group, Knob, owner_of

_MOST = 8
"""More candidates than these are not tried in pairs: a number that common says nothing."""


def candidates(module: nn.Module, group: Group) -> Iterator[tuple[Knob, ...]]:
    """Sets of knobs worth trying for ``group``: each alone, all together, then in twos."""
    found = _matching(module, group)
    for knob in found:
        yield (knob,)
    if 2 <= len(found) <= _MOST:
        yield tuple(found)
        if len(found) > 2:
            yield from combinations(found, 2)


def _matching(module: nn.Module, group: Group) -> list[Knob]:
    """Nearest modules first."""
    sizes = {group.channels, group.channels // group.multiple}
    for slot in group.slots:
        if len(set(slot.index)) == max(slot.index) + 1:  # the whole axis
            sizes.add(len(slot.index))
    found: list[Knob] = []
    for name in _around(module, group):
        layer = module.get_submodule(name)
        for attribute, value in _numbers(layer):
            if isinstance(value, int):
                if value in sizes:
                    found.append(Knob(name, attribute))
                continue
            found += [Knob(name, attribute, place) for place, one in enumerate(value) if _whole(one) and one in sizes]
    return [knob for knob in found if knob]


def _around(module: nn.Module, group: Group) -> list[str]:
    """Names of modules that contain a member of the group, nearest first, and of layers that hold shapes."""
    owners = dict.fromkeys(owner_of(slot) for slot in group.slots)
    above: dict[str, int] = {}
    for owner in owners:
        parts = owner.split(".")
        for depth in range(len(parts) - 1, -1, -1):
            above[".".join(parts[:depth])] = depth
        above[owner] = len(parts)
    known = dict(module.named_modules())
    names = [name for name in sorted(above, key=lambda name: -above[name]) if name in known]
    return names + [name for name, m in known.items() if isinstance(m, nn.Unflatten) or _plain_norm(m)]


def _plain_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.LayerNorm) and layer.weight is None


def _numbers(layer: nn.Module) -> list[tuple[str, Any]]:
    """(attribute, whole number or tuple of them) that may be changed in ``layer``."""
    if isinstance(layer, nn.Unflatten):
        return [("unflattened_size", layer.unflattened_size)]
    if _plain_norm(layer):
        return [("normalized_shape", layer.normalized_shape)]
    if type(layer).__module__.startswith("torch."):
        return []
    if isinstance(layer, NarrowAttention):
        return [("num_heads", layer.num_heads)]
    return [
        (name, value)
        for name, value in vars(layer).items()
        if not name.startswith("_") and (_whole(value) or (isinstance(value, list | tuple) and len(value) < 9))
    ]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1

"""Numbers in the user's own modules that may have to change with a group's width: heads, split sizes, flat sizes.

Found, not asked for: whole numbers in the modules around a group's layers, or in the source of their methods, that
equal one of its sizes, or the width of a tensor of which its channels are a part. Which of them really belong to it,
the permutation check decides: a wrong one breaks the network or changes its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from torch import nn

from compress.networks.held_numbers import numbers_held
from compress.pruning.cutting import channels_at
from compress.pruning.groups import Group, Knob, owner_of
from compress.pruning.narrow_attention import NarrowAttention
from compress.pruning.source_numbers import numbers

_MOST = 8
"""More candidates than these are not tried in pairs: a number that common says nothing."""


def possible_knobs(module: nn.Module, group: Group) -> Iterator[tuple[Knob, ...]]:
    """Sets of knobs worth trying for ``group``: each alone, all together, in twos; attributes before source."""
    found = _matching(module, group)
    held = [knob for knob in found if not knob.written]
    yield from _sets(held)
    if len(found) > len(held):
        yield from _sets(found[len(held) :])
        if held:
            yield tuple(found)


def _sets(knobs: list[Knob]) -> Iterator[tuple[Knob, ...]]:
    for knob in knobs:
        yield (knob,)
    if 2 <= len(knobs) <= _MOST:
        yield tuple(knobs)
        if len(knobs) > 2:
            yield from combinations(knobs, 2)


def _matching(module: nn.Module, group: Group) -> list[Knob]:
    """Nearest modules first; those in the source after all others."""
    sizes = _sizes(module, group)
    found: list[Knob] = []
    written: list[Knob] = []
    for name in modules_around(module, group):
        layer = module.get_submodule(name)
        for attribute, value in numbers_in(layer):
            if isinstance(value, int):
                if value in sizes or _several(module, group, value):
                    found.append(Knob(name, attribute, each=sizes.get(value, 0)))
                continue
            found += [
                Knob(name, attribute, place, each=sizes[one])
                for place, one in enumerate(value)
                if _whole(one) and one in sizes
            ]
        written += [
            Knob(name, method, which, written=True, each=sizes[value])
            for method, which, value in numbers(type(layer))
            if value in sizes
        ]
    return found + written


def _several(module: nn.Module, group: Group, value: int) -> bool:
    """Whether it may count heads of which each channel of the group takes several with it (grouped queries)."""
    whole = [channels_at(module, (slot.tensor, slot.dim, slot.grouped)) for slot in group.slots]
    return group.unit > 1 and value % group.channels == 0 and any(n % value == 0 for n in whole)


def _sizes(module: nn.Module, group: Group) -> dict[int, int]:
    """Number that may belong to the group -> what each channel takes from it (0: it is scaled)."""
    sizes = {group.channels: 0, group.channels // group.multiple: 0}
    partial: dict[int, int] = {}
    for slot in group.slots:
        whole, held = channels_at(module, (slot.tensor, slot.dim, slot.grouped)), len(set(slot.index))
        if held == whole:
            sizes[held] = 0
        elif held % group.channels == 0:
            each = held // group.channels
            partial[whole] = each
            if whole % each == 0:  # in a product: 20 * 4 * 4
                partial.setdefault(whole // each, 1)
    return partial | sizes


def modules_around(module: nn.Module, group: Group) -> list[str]:
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


def numbers_in(layer: nn.Module) -> list[tuple[str, Any]]:
    """(attribute, whole number or tuple of them) to change in ``layer``; ``config.width`` of what it keeps."""
    if isinstance(layer, nn.Unflatten):
        return [("unflattened_size", layer.unflattened_size)]
    if _plain_norm(layer):
        return [("normalized_shape", layer.normalized_shape)]
    if type(layer).__module__.startswith("torch."):
        return []
    if isinstance(layer, NarrowAttention):
        return [("num_heads", layer.num_heads)]
    own = [(name, value) for name, value in vars(layer).items() if not name.startswith("_")]
    held = [(f"{name}.{key}", number) for name, value in own for key, number in numbers_held(value).items()]
    return [(name, value) for name, value in own if _is_number(value)] + held


def _is_number(value: Any) -> bool:
    return _whole(value) or (isinstance(value, list | tuple) and len(value) < 9)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1

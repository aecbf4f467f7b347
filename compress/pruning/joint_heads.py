"""Heads of attention that can only go together with a part of the embedding, as many networks are written.

``x.reshape(B, N, 3, heads, C // heads)`` takes the width of a head from that of the embedding, and so do
``split(n_embd)`` and ``view(B, T, n_head, C // n_head)``. Neither can be cut alone. What can is one head of every layer
that reads the embedding, with as many channels of that as a head is wide: the width of a head, and by it the scale of
the scores, stays what it is. Numbers in the modules (``heads``, ``n_embd``) change with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from torch import nn

from compress.pruning.dependent_numbers import modules_around, numbers_in
from compress.pruning.groups import Group, Knob, owner_of

HEADS = "heads"
"""Ends the name of a group of whole heads."""
_MOST = 6
"""More kinds of numbers than these are not tried in twos."""


def joint_groups(groups: Sequence[Group]) -> list[tuple[Group, list[Group]]]:
    """(an embedding with the heads of all layers that read it, as one group; the groups that it is made of).

    ``groups``: those that cannot be cut alone.
    """
    found = []
    heads = [group for group in groups if group.name.rpartition(":")[2].startswith(HEADS) and group.multiple == 1]
    for embedding in groups:
        if embedding in heads or embedding.multiple != 1:
            continue
        read = {slot.tensor for slot in embedding.slots if slot.side == "in"}
        own = [one for one in heads if any(s.side == "out" and s.tensor in read for s in one.slots)]
        counts = {one.channels for one in own}
        if len(counts) == 1 and embedding.channels % (count := counts.pop()) == 0 and embedding.channels > count:
            joint = _joined(embedding, own, count)
            if joint is not None:
                found.append((joint, [embedding, *own]))
    return found


def _joined(embedding: Group, heads: Sequence[Group], count: int) -> Group | None:
    """One group of ``count`` channels, each a head of every layer and a run of the embedding; None if they overlap."""
    each = embedding.channels // count
    slots = [replace(slot, root=tuple(root // each for root in slot.root)) for slot in embedding.slots]
    slots += [slot for one in heads for slot in one.slots]
    places = [(slot.tensor, slot.dim, slot.grouped) for slot in slots]
    if len(set(places)) < len(places):
        return None
    slots = [slots[0], *sorted(slots[1:], key=lambda slot: slot.side == "in")]
    members = tuple(dict.fromkeys(owner_of(slot) for slot in slots))
    mixed = embedding.mixed or any(one.mixed for one in heads)
    name = f"{embedding.name}:{HEADS}"
    return Group(name, count, 1, members, tuple(slots), unit=each * embedding.unit, mixed=mixed)


def joint_knobs(module: nn.Module, joint: Group, parts: Sequence[Group]) -> Iterator[tuple[Knob, ...]]:
    """Sets of numbers that may have to change with a joint group, to be tried in this order; ``parts``: what it is of.

    A number of one name changes in all modules of a class, or in none.
    """
    embedding, *heads = parts
    sizes = {joint.channels, *(k * embedding.channels for k in (1, 2, 3))}
    kinds: dict[Any, dict[Knob, None]] = {}
    around = [name for group in heads for name in modules_around(module, group)]
    known = dict(module.named_modules())
    # Layers of the user's own that make the embedding may hold how wide that is.
    making = [owner_of(slot) for slot in embedding.slots if slot.side == "out"]
    for name in dict.fromkeys([*around, *(name for name in making if name in known)]):
        layer = known[name]
        for attribute, value in numbers_in(layer):
            listed = list(enumerate(value)) if isinstance(value, list | tuple) else [(None, value)]
            for place, one in listed:
                if isinstance(one, int) and not isinstance(one, bool) and one in sizes:
                    knob = Knob(name, attribute, place)
                    kinds.setdefault((type(layer), attribute, place), {})[knob] = None
    choices = [tuple(found) for found in kinds.values()]
    yield from _sets(choices)


def _sets(choices: Sequence[tuple[Knob, ...]]) -> Iterator[tuple[Knob, ...]]:
    """All, none, each alone, and in twos."""
    yield tuple(knob for one in choices for knob in one)
    if choices:
        yield ()
    if len(choices) > 1:
        yield from choices
    if 2 < len(choices) <= _MOST:
        for first, second in combinations(choices, 2):
            yield (*first, *second)

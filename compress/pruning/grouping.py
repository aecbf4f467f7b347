"""Which channels of a network belong together: found by following them through one run, then put to a check.

The tracing of channels says what every position of every parameter stands for. Here that becomes groups: for each
layer, the channels it makes, and for each of those everything that has to go with it. The permutation check then tries
to refute them.

A layer whose channels cannot go, that the check refutes, or that is not supported keeps its width, and the reason is
given: nothing is left alone in silence.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress.networks.prepared_modules import ExampleInputs, ready, uncopied
from compress.networks.running import RANDOM, few_samples, forward, is_random
from compress.pruning.cutting import is_depthwise, side_of, why_uncuttable
from compress.pruning.groups import KEPT_AS_ASKED, Group, Groups, Slot, Unsupported, owner_of
from compress.pruning.narrow_attention import adapt
from compress.pruning.permutation_check import PermutationCheck
from compress.pruning.prunable_groups import select_prunable
from compress.tracing.channels import OUTPUT, trace_channels
from compress.tracing.labels import FIXED, Axis, ChannelTrace, Removal
from compress.values.error_lines import one_line
from targets.errors import SpaceError, TaskError

_MOST_PARTS = 4
_HEADS = "heads"
"""Ends the name of a group of whole heads."""


def find_groups(module: nn.Module, example_inputs: ExampleInputs, *, keep: Iterable[str] = ()) -> Groups:
    """The groups of ``module`` that may be cut, and why the others may not.

    ``example_inputs``: a tensor, a tuple of tensors, or a dict of tensors by the names of forward's arguments, batch
    first, on the module's device. ``keep``: names of layers
    (or of modules that contain them) whose widths stay. ``module`` is untouched; weights that it computes (weight norm,
    masks) are taken as they are now.

    Raises SpaceError if ``keep`` names nothing, TaskError if the module cannot be run on ``example_inputs`` or copied,
    or is of a kind that has no layers to cut (TorchScript, a ``torch.export`` program, quantized or sharded layers).
    """
    module, inputs = ready(module, example_inputs)
    asked = _check_keep(module, keep)
    found = _found(module, inputs)
    kept = dict(found.kept)
    groups = []
    for group in found.groups:
        if any(_within(owner, name) for owner in group.owners() for name in asked):
            kept[group.name] = KEPT_AS_ASKED
        else:
            groups.append(group)
    check = PermutationCheck(module, inputs, trained=found.trained)
    prunable, refused = select_prunable(found.module, check, groups, found.parts)
    for name, why in refused.items():
        kept.setdefault(name, why)
    kept = _worth_saying(kept, prunable)
    position = {name: i for i, (name, _) in enumerate(module.named_modules())}
    order = sorted(kept.items(), key=lambda item: position.get(item[0].partition(":")[0], len(position)))
    return Groups(tuple(prunable), tuple(order))


def _worth_saying(kept: dict[str, str], prunable: Sequence[Group]) -> dict[str, str]:
    """One reason for each layer, and none for one that is pruned; heads and head width each have their own."""
    found: dict[str, str] = {}
    for name, why in kept.items():
        layer, _, part = name.partition(":")
        siblings = [group.name for group in prunable if layer in group.owners()]
        heads = part and (f"{layer}:{_HEADS}" in kept or any(one.endswith(":" + _HEADS) for one in siblings))
        if heads and (part == _HEADS or siblings):
            found[name] = why
        elif not siblings:
            found.setdefault(layer, why)
    return found


@dataclass(frozen=True)
class _Found:
    module: nn.Module
    """A copy in eval mode, adapted."""
    groups: list[Group]
    kept: dict[str, str]
    parts: dict[str, list[list[int]]] = field(default_factory=dict)
    """Group -> its channels, part by part, where the network divides them in parts of unequal kinds."""
    trained: bool = False
    """Whether the network has layers that work only in training mode."""


def _found(module: nn.Module, inputs: tuple[Tensor, ...]) -> _Found:
    """All groups as one run shows them, unchecked."""
    try:
        copied = copy.deepcopy(module).eval()
    except Exception as error:
        raise uncopied(error) from error
    try:
        forward(copied, inputs)
    except Exception as error:
        raise TaskError(
            f"the model does not run on example_inputs ({one_line(error, kind=True)}): "
            "give them as its forward takes them"
        ) from error
    few = few_samples(copied, inputs)
    if is_random(copied, few):
        return _Found(copied, [], {name: RANDOM for name, layer in module.named_modules() if _has_width(layer)})
    adapt(copied)
    try:
        seen = trace_channels(copied, few)
    except Exception as error:
        why = f"the network could not be traced ({one_line(error, kind=True)})"
        return _Found(copied, [], {name: why for name, layer in module.named_modules() if _has_width(layer)})
    return _Builder(copied, seen).built()


def _has_width(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd | nn.Linear | nn.Bilinear | nn.Embedding | nn.RNNBase | nn.RNNCellBase)


class _Builder:
    """Makes groups of channels out of the labels that one run has left."""

    def __init__(self, module: nn.Module, seen: ChannelTrace) -> None:
        self.module, self.seen = module, seen
        for axis in seen.axes:
            parent, _, leaf = axis.tensor.rpartition(".")
            if (reason := why_uncuttable(module.get_submodule(parent), leaf)) is not None:
                seen.atoms.freeze(axis.labels, reason)
        self.removal = Removal(seen.atoms)
        self.frozen = seen.atoms.reasons()
        self.classes = [seen.atoms.find(axis.labels).tolist() for axis in seen.axes]
        self.places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """Class of atoms -> (axis, position along it) of all of them."""
        for number, classes in enumerate(self.classes):
            for place, one in enumerate(classes):
                self.places[one].append((number, place))
        self.sides = [self._side(axis) for axis in seen.axes]
        self.mixed = {int(c) for label in seen.mixed for c in seen.atoms.find(label)}
        self.family = self._families()
        self.stored = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        self.slices = list(
            dict.fromkeys(frozenset(c for c in seen.atoms.find(label).tolist() if c > FIXED) for label in seen.parts)
        )

    def built(self) -> _Found:
        """The groups in the order of their root layers, and the reasons of layers without any."""
        assigned: set[int] = set()
        groups: list[Group] = []
        kept: dict[str, str] = {}
        parts: dict[str, list[list[int]]] = {}
        for axis, classes, side in self._roots_first():
            if side == "in":
                continue
            families: dict[Any, list[int]] = {}
            for basic in dict.fromkeys(b for c in classes for b in self.removal.basics(c)):
                if basic > FIXED:
                    families.setdefault(self.family.get(basic), []).append(basic)
            for kind, seeds in families.items():
                channels = self._channels([seed for seed in seeds if seed not in assigned])
                assigned.update(seeds)
                if len(channels) != 1:  # what can only go all at once may still go in another way
                    assigned.update(*channels)
                if not channels:
                    continue
                name = self._name(axis, kind, {*kept, *(group.name for group in groups)})
                try:
                    group = self._group(name, axis, channels)
                    if self.stored.isdisjoint(slot.tensor for slot in group.slots if slot.side == "out"):
                        continue  # a mask, or a table of angles or places: no layer makes these
                    groups.append(group)
                    parts[name] = self._parts(channels) if groups[-1].multiple == 1 else []
                except Unsupported as error:
                    kept[name] = str(error)
        for name, why in self._reasons(groups).items():
            kept.setdefault(name, why)
        return _Found(self.module, groups, kept, parts, self.seen.trained)

    def _roots_first(self) -> list[tuple[Axis, list[int], str]]:
        """All axes, those of layers before those of bare parameters (a position embedding is no root)."""
        table = list(zip(self.seen.axes, self.classes, self.sides, strict=True))
        bare = [owner_of(Slot(axis.tensor, axis.dim, "out", (), ())) == axis.tensor for axis in self.seen.axes]
        return [row for row, late in sorted(zip(table, bare, strict=True), key=lambda item: item[1])]

    def _side(self, axis: Axis) -> str:
        parent, _, leaf = axis.tensor.rpartition(".")
        layer = self.module.get_submodule(parent)
        if not _has_width(layer) and not self.seen.summed.isdisjoint(axis.labels.tolist()):
            return "in"  # of a layer of the user's own, which a product has shown the sides of
        return "in" if axis.grouped else side_of(layer, leaf, axis.dim)

    def _families(self) -> dict[int, tuple[int, str]]:
        """Basic atom -> (division, heads, blocks or width) that made it."""
        found: dict[int, tuple[int, str]] = {}
        heads = {int(c) for label in self.seen.heads for c in self.seen.atoms.find(label)}
        for k, division in enumerate(self.seen.atoms.divisions):
            for kind, label in (("blocks", division.rows), ("width", division.columns)):
                for atom in self.seen.atoms.find(label).tolist():
                    found.setdefault(atom, (k, _HEADS if kind == "blocks" and atom in heads else kind))
        return found

    def _name(self, axis: Axis, kind: tuple[int, str] | None, taken: set[str]) -> str:
        """The layer's, with what part of its width it is where that is divided; numbered where there are several."""
        layer = owner_of(Slot(axis.tensor, axis.dim, "out", (), ()))
        name = layer if kind is None else f"{layer}:{kind[1]}"
        number = 2
        while name in taken:
            name = f"{layer if kind is None else f'{layer}:{kind[1]}'}{number}"
            number += 1
        return name

    def _channels(self, seeds: Sequence[int]) -> list[frozenset[int]]:
        """What goes with each seed; seeds that go together are one channel, what cannot go is left out."""
        found: list[frozenset[int] | None] = []
        held: dict[int, int] = {}
        """Which of those found a basic atom is in; pairs are shared by every row and column."""
        for seed in seeds:
            gone = self.removal.closure(seed)
            met = sorted({held[atom] for atom in gone if atom in held})
            place = met[0] if met else len(found)
            if not met:
                found.append(gone)
            else:
                gone = gone.union(*(found[k] or () for k in met))
                for k in met[1:]:
                    found[k] = None
                found[place] = gone
            held.update((atom, place) for atom in gone if self.removal.is_basic(atom))
        return [one for one in found if one is not None and FIXED not in one and one.isdisjoint(self.frozen)]

    def _group(self, name: str, root: Axis, channels: list[frozenset[int]]) -> Group:
        """A group of these channels, with all places they sit at; raises Unsupported where one cannot be cut."""
        if len(channels) < 2:
            alone = len(root.labels) == 1
            raise Unsupported("it has only one channel" if alone else "its channels can only go all at once")
        belongs: dict[int, int] = {}
        for k, gone in enumerate(channels):
            for atom in gone:  # no channels share more than pairs: see _channels
                belongs.setdefault(atom, k)
        held: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for atom, k in belongs.items():
            for number, place in self.places.get(atom, ()):
                held[number].append((place, k))
        slots = []
        for number in sorted(held):
            axis, side = self.seen.axes[number], self.sides[number]
            index, of = zip(*sorted(held[number]), strict=True)
            slots.append(Slot(axis.tensor, axis.dim, side, index, of, axis.grouped))  # type: ignore[arg-type]
        slots.sort(key=lambda slot: ((slot.tensor, slot.dim) != (root.tensor, root.dim), slot.side == "in"))
        multiple = self._multiple(belongs, len(channels))
        members = tuple(dict.fromkeys(owner_of(slot) for slot in slots))
        unit = max(1, min(len(slot.index) for slot in slots) // len(channels))
        mixed = not self.mixed.isdisjoint(belongs)
        return Group(name, len(channels), multiple, members, tuple(slots), unit=unit, mixed=mixed)

    def _parts(self, channels: Sequence[frozenset[int]]) -> list[list[int]]:
        """The channels by the slices and pieces that they are in; none where those are one, or too many or small."""
        held: dict[tuple[bool, ...], list[int]] = {}
        for k, gone in enumerate(channels):
            held.setdefault(tuple(not gone.isdisjoint(part) for part in self.slices), []).append(k)
        found = list(held.values())
        return found if 1 < len(found) <= _MOST_PARTS and min(map(len, found)) > 1 else []

    def _multiple(self, belongs: dict[int, int], channels: int) -> int:
        """What grouped convolutions and GroupNorms ask of the width. Raises Unsupported."""
        found = 1
        for label, parts in self.seen.blocks:
            held = [belongs.get(c) for c in self.seen.atoms.find(label).tolist()]
            if parts == 1 or all(k is None for k in held):
                continue
            each = len(held) // parts
            counts = [
                np.bincount([k for k in held[s : s + each] if k is not None], minlength=channels)
                for s in range(0, len(held), each)
            ]
            if all((counts[0] == other).all() for other in counts):
                continue  # each channel takes as much from every part: any of them may go
            if held != list(range(channels)):
                raise Unsupported("its channels are only a part of what a grouped convolution or GroupNorm takes")
            found = math.lcm(found, parts)
        if channels % found or channels == found:
            raise Unsupported(
                f"its {channels} channels must stay a multiple of {found} (grouped convolution or GroupNorm)"
            )
        return found

    def _reasons(self, groups: Sequence[Group]) -> dict[str, str]:
        """Layer -> why none of its own channels can go, for those in no group."""
        told = {owner for group in groups for owner in group.owners()}
        found: dict[str, str] = {}
        for axis, classes, side in zip(self.seen.axes, self.classes, self.sides, strict=True):
            owner = owner_of(Slot(axis.tensor, axis.dim, "out", (), ()))
            parent = axis.tensor.rpartition(".")[0]
            if side == "in" or owner in told or owner in found or not _has_width(self.module.get_submodule(parent)):
                continue
            if axis.dim > 1:  # the taps of a filter
                continue
            reasons = [self.frozen[b] for c in classes for b in [c, *self.removal.basics(c)] if b in self.frozen]
            if reasons:
                found[owner] = OUTPUT if OUTPUT in reasons else reasons[0]
        for name, layer in self.module.named_modules():
            if _has_width(layer) and name not in told and name not in found:
                found[name] = _unused(layer)
        return found


def _unused(layer: nn.Module) -> str:
    if isinstance(layer, _ConvNd | nn.Linear) and layer.weight.shape[int(getattr(layer, "transposed", 0))] == 1:
        return "it has only one channel"
    if is_depthwise(layer):
        return "its channels are those of the layer before it"
    return "it takes no part in computing the output"


def _check_keep(module: nn.Module, keep: Iterable[str]) -> tuple[str, ...]:
    """The names to keep; raises SpaceError for one that is no module or parameter of the network."""
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    known = [n for n, _ in module.named_modules(remove_duplicate=False) if n]
    known += [n for n, _ in module.named_parameters(remove_duplicate=False)]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = (
                f"; did you mean {', '.join(map(repr, close))}?" if close else f"; it has {', '.join(known[:5])}, ..."
            )
            raise SpaceError(f"keep names {name!r}, which is no layer of the network{hint}")
    return names


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")

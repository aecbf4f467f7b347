"""Dependency groups as plain data, and the surgery on them: take some channels of a network, in some order.

A group's channels sit in many tensors: the rows of the layers that produce them, the scales of the norms in
between, the columns of the layers that read them. A ``Slot`` says where, in the indices of the network as it came.
Cutting and permuting are then one operation, ``take``: for each axis, the old positions in their new order. All
groups are cut in one go, in original indices, so the result does not depend on an order of cutting, and a search
that prunes one network a hundred times traces it once.

What is changed: tensors, the attributes of torch's layers that say their width, and the numbers in the user's own
modules that a group was found to need (``Knob``: the number of heads, a split size). Everything else (hooks, modes,
``requires_grad``, weight sharing) stays. A ``nn.MultiheadAttention`` that is touched becomes a ``NarrowAttention``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compress.networks.held_numbers import numbers_held, with_number
from compress.pruning.groups import Group, Knob, Place, Side, Slot, Unsupported, owner_of
from compress.pruning.source_numbers import numbers, put

_RUN = 8
"""Neighbours in a run from which on runs are faster to copy than positions."""
_COMPUTED = "its weight is computed from others"


def side_of(layer: nn.Module, leaf: str, dim: int) -> Side:
    """Whether dimension ``dim`` of the tensor ``leaf`` of ``layer`` reads channels or makes them."""
    if isinstance(layer, _ConvNd) and leaf == "weight" and not is_depthwise(layer):
        return "in" if dim == (0 if isinstance(layer, _ConvTransposeNd) else 1) else "out"
    if isinstance(layer, nn.Bilinear):
        return "in" if dim > 0 else "out"
    reads = isinstance(layer, nn.Linear | nn.RNNBase | nn.RNNCellBase) or leaf.endswith("_proj_weight")
    return "in" if reads and dim == 1 else "out"


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each input channel of the convolution ``layer`` is filtered on its own."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels


def why_uncuttable(layer: nn.Module, leaf: str) -> str | None:
    """Why the tensor ``leaf`` of ``layer`` cannot be cut, as far as the layer's kind tells; None if it can."""
    if isinstance(layer, _ConvNd | nn.Linear | _NormBase | nn.Embedding) and leaf not in (
        "weight", "bias", "running_mean", "running_var",
    ):  # fmt: skip
        return _COMPUTED
    return None


def tensor_named(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that qualified name; raises Unsupported where it is neither."""
    parent, _, leaf = name.rpartition(".")
    found = getattr(module.get_submodule(parent), leaf)
    if not isinstance(found, Tensor):
        raise Unsupported(f"{name!r} is neither a parameter nor a buffer")
    return found


def distinct_slots(module: nn.Module, group: Group) -> list[Slot]:
    """The group's slots, in their order; of a tensor that goes by several names, as a shared one does, the first."""
    found: dict[tuple[int, int, Side], Slot] = {}
    for slot in group.slots:
        found.setdefault((id(tensor_named(module, slot.tensor)), slot.dim, slot.side), slot)
    return list(found.values())


def channels_at(module: nn.Module, place: Place) -> int:
    """The number of channels along ``place``; raises Unsupported for a place that cannot be cut."""
    name, dim, grouped = place
    if grouped:
        layer = module.get_submodule(name.rpartition(".")[0])
        if not isinstance(layer, _ConvNd):
            raise Unsupported(f"{name!r} is not the weight of a convolution layer: a grouped one cannot be cut")
        return layer.in_channels
    return tensor_named(module, name).shape[dim]


def positions(removed: Iterable[tuple[Group, Sequence[int]]]) -> dict[Place, set[int]]:
    """{place: the positions along it} that the given channels of the groups sit at, in original indices."""
    gone: dict[Place, set[int]] = defaultdict(set)
    for group, channels in removed:
        chosen = set(channels)
        for slot in group.slots:
            gone[slot.tensor, slot.dim, slot.grouped].update(
                i for i, root in zip(slot.index, slot.root, strict=True) if root in chosen
            )
    return gone


def cut(module: nn.Module, removed: Iterable[tuple[Group, Sequence[int]]]) -> None:
    """Remove the given channels of each group (in the network's original indices) from ``module``, in place.

    Raises Unsupported for what is not known how to be cut.
    """
    removed = list(removed)
    gone = positions(removed)
    take(module, {place: [i for i in range(channels_at(module, place)) if i not in out] for place, out in gone.items()})
    for group, channels in removed:
        for knob in group.knobs:
            turn(module, knob, group.channels - len(channels), group.channels)


def zero(module: nn.Module, removed: Iterable[tuple[Group, Sequence[int]]]) -> None:
    """Make the given channels nothing, in place: neither made nor read; what ``cut`` must agree with."""
    with torch.no_grad():
        for (name, dim, grouped), gone in positions(removed).items():
            tensor = tensor_named(module, name)
            if name.endswith("running_var"):
                continue
            if not grouped:
                tensor.index_fill_(dim, torch.tensor(sorted(gone), dtype=torch.long, device=tensor.device), 0.0)
                continue
            inner = tensor.shape[1]
            rows = tensor.shape[0] // (channels_at(module, (name, dim, True)) // inner)
            for i in gone:
                tensor[i // inner * rows : (i // inner + 1) * rows, i % inner] = 0.0


def duplicate(module: nn.Module, twins: Iterable[tuple[Group, Mapping[int, int]]]) -> None:
    """Make channels copies of others of their group ({copy: original}) that are read by nothing, in place.

    Means, variances and the like over the channels are then the same with or without the copies, if each original
    has equally many: what ``cut`` must agree with where something normalises over the channels. A weight that one layer
    makes channels by and another reads them by, as tied embeddings do, becomes two, since only one of them is copied.
    """
    twins = list(twins)
    for group, _ in twins:
        _untie(module, group)
    with torch.no_grad():
        for group, copies in twins:
            for slot in group.slots:
                if slot.side == "in":
                    continue
                held: dict[int, list[int]] = defaultdict(list)
                for i, root in sorted(zip(slot.index, slot.root, strict=True)):
                    held[root].append(i)
                to = [i for twin in copies for i in held[twin]]
                of = [i for original in copies.values() for i in held[original]]
                tensor = tensor_named(module, slot.tensor)
                picked = tensor.index_select(slot.dim, torch.tensor(of, dtype=torch.long, device=tensor.device))
                tensor.index_copy_(slot.dim, torch.tensor(to, dtype=torch.long, device=tensor.device), picked)
    read = [(replace(g, slots=tuple(s for s in g.slots if s.side == "in")), tuple(c)) for g, c in twins]
    zero(module, read)


def _untie(module: nn.Module, group: Group) -> None:
    """Give layers that read the channels of ``group`` a copy of a weight that others make them by, in place."""
    made = {id(tensor_named(module, slot.tensor)) for slot in group.slots if slot.side == "out"}
    for slot in group.slots:
        tensor = tensor_named(module, slot.tensor)
        if slot.side == "in" and id(tensor) in made and isinstance(tensor, nn.Parameter):
            setattr(
                module.get_submodule(slot.layer), slot.tensor.rpartition(".")[2], _like(tensor, tensor.clone().detach())
            )


def permute(module: nn.Module, orders: Iterable[tuple[Group, Sequence[int]]], *, root_only: bool = False) -> None:
    """Reorder each group's channels in ``module``, in place: channel k becomes the old channel ``order[k]``.

    ``root_only`` does it in the root layer alone, which breaks the network: a control for the permutation check.
    Raises Unsupported if some channels sit in more places than others.
    """
    moves: dict[Place, list[int]] = {}
    for group, order in orders:
        root = owner_of(group.slots[0])
        for slot in group.slots:
            if root_only and (owner_of(slot) != root or slot.side == "in"):
                continue
            place: Place = (slot.tensor, slot.dim, slot.grouped)
            move = moves.setdefault(place, list(range(channels_at(module, place))))
            before = list(move)
            held: dict[int, list[int]] = defaultdict(list)
            for i, channel in sorted(zip(slot.index, slot.root, strict=True)):
                held[channel].append(i)
            for k, old in enumerate(order):
                if len(held[k]) != len(held[old]):
                    raise Unsupported(f"its channels have unequal parts in {slot.layer!r}")
                for target, source in zip(held[k], held[old], strict=True):
                    move[target] = before[source]
    take(module, moves)


def take(module: nn.Module, orders: Mapping[Place, Sequence[int]]) -> None:
    """For each place, keep the given old positions, in that order; in place.

    A parameter shared by several layers stays shared. Raises Unsupported for what is not known how to be cut.
    """
    from compress.pruning.narrow_attention import adapt

    touched = {name.rpartition(".")[0] for name, _, _ in orders}
    adapt(module, touched | {name.removesuffix(".out_proj") for name in touched})
    # Old and new tensor by (old tensor, dimension, order): the old one is held so that its id is not used again.
    done: dict[tuple[int, int, tuple[int, ...]], tuple[Tensor, Tensor]] = {}
    met: set[tuple[int, str, int, bool]] = set()
    for (name, dim, grouped), order in sorted(orders.items(), key=lambda item: item[0][1]):
        parent, _, leaf = name.rpartition(".")
        layer = module.get_submodule(parent)
        if (id(layer), leaf, dim, grouped) in met:
            continue  # the same layer under another name, which has the same labels
        met.add((id(layer), leaf, dim, grouped))
        old = tensor_named(module, name)
        if grouped and isinstance(layer, _ConvNd):
            new = _selected_by_group(old, layer.groups, layer.in_channels, order)
        else:
            new = _selected(old, dim, order, done)
        setattr(layer, leaf, new)
    for name in touched:
        resize(module.get_submodule(name))


def turn(module: nn.Module, knob: Knob, left: int, channels: int) -> None:
    """Change a number with a group of which ``left`` of ``channels`` stay. Raises Unsupported if it cannot be."""
    owner = module.get_submodule(knob.module)
    if knob.written:
        place = knob.place or 0
        found = {(method, which): number for method, which, number in numbers(type(owner))}
        put(owner, knob.attribute, place, _turned(knob, found.get((knob.attribute, place)), left, channels))
        return
    name, _, key = knob.attribute.partition(".")
    value: Any = getattr(owner, name)
    if key:
        setattr(owner, name, with_number(value, key, _turned(knob, numbers_held(value).get(key), left, channels)))
        return
    if knob.place is None:
        setattr(owner, knob.attribute, _turned(knob, value, left, channels))
        return
    listed = list(value)
    listed[knob.place] = _turned(knob, listed[knob.place], left, channels)
    setattr(owner, knob.attribute, type(value)(listed))


def _turned(knob: Knob, old: Any, left: int, channels: int) -> int:
    """The new value of the number ``old``. Raises Unsupported where that is not whole."""
    if old is None or (not knob.each and old * left % channels):
        raise Unsupported(f"{knob.attribute} of {knob.module!r} does not stay a whole number")
    return int(old - (channels - left) * knob.each if knob.each else old * left // channels)


def _selected(
    old: Tensor, dim: int, order: Sequence[int], done: dict[tuple[int, int, tuple[int, ...]], tuple[Tensor, Tensor]]
) -> Tensor:
    """The positions ``order`` of ``old`` along ``dim``, made once for all layers that share it."""
    key = (id(old), dim, tuple(order))
    if key not in done:
        done[key] = (old, _like(old, _picked(old.detach(), dim, order)))
    return done[key][1]


def _picked(old: Tensor, dim: int, order: Sequence[int]) -> Tensor:
    """The positions ``order`` of ``old`` along ``dim``, a tensor of its own; runs of neighbours are copied as one."""
    starts = [k for k in range(len(order)) if k == 0 or order[k] != order[k - 1] + 1]
    if len(starts) * _RUN > len(order):
        return old.index_select(dim, torch.tensor(order, dtype=torch.long, device=old.device))
    lengths = [b - a for a, b in pairwise([*starts, len(order)])]
    return torch.cat([old.narrow(dim, order[k], n) for k, n in zip(starts, lengths, strict=True)], dim)


def _selected_by_group(weight: Tensor, groups: int, channels: int, order: Sequence[int]) -> Tensor:
    """Input channels of a grouped convolution; weight: (out, in / groups, ...). Each group reads its own block."""
    if len(order) % groups:
        raise Unsupported(f"{len(order)} channels do not divide into {groups} groups")
    before, after = channels // groups, len(order) // groups
    parts = []
    for g, rows in enumerate(weight.detach().chunk(groups, dim=0)):
        columns = [i - g * before for i in order[g * after : (g + 1) * after]]
        if any(not 0 <= column < before for column in columns):
            raise Unsupported("a grouped convolution must lose the same number of channels in each group")
        parts.append(rows.index_select(1, torch.tensor(columns, dtype=torch.long, device=weight.device)))
    return _like(weight, torch.cat(parts, dim=0))


def _like(old: Tensor, new: Tensor) -> Tensor:
    """``new`` as a parameter where ``old`` is one."""
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def resize(layer: nn.Module) -> None:
    """Set the attributes of one of torch's layers that say how wide it is, from its tensors."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, _ConvNd):
        first, second = layer.weight.shape[:2]
        if is_depthwise(layer):
            layer.groups = first if isinstance(layer, _ConvTransposeNd) else first * layer.groups // layer.out_channels
            layer.in_channels = layer.groups
            layer.out_channels = second * layer.groups if isinstance(layer, _ConvTransposeNd) else first
        elif isinstance(layer, _ConvTransposeNd):
            layer.in_channels, layer.out_channels = first, second * layer.groups
        else:
            layer.in_channels, layer.out_channels = second * layer.groups, first
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Bilinear):
        layer.out_features, layer.in1_features, layer.in2_features = layer.weight.shape
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = layer.weight.shape[1]
    elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.RNNBase):
        layer.input_size = layer.get_parameter("weight_ih_l0").shape[1]
        inner = layer.get_parameter("weight_hr_l0" if layer.proj_size else "weight_hh_l0")
        layer.hidden_size = inner.shape[1]
        layer.proj_size = inner.shape[0] if layer.proj_size else 0
    elif isinstance(layer, nn.RNNCellBase):
        layer.input_size = layer.get_parameter("weight_ih").shape[1]
        layer.hidden_size = layer.get_parameter("weight_hh").shape[1]
    elif isinstance(weight, Tensor) or isinstance(layer, _NormBase):
        held = weight if isinstance(weight, Tensor) else getattr(layer, "running_mean", None)
        for attribute in ("num_features", "num_channels", "num_parameters"):
            if hasattr(layer, attribute) and isinstance(held, Tensor):
                setattr(layer, attribute, held.shape[0])

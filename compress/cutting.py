"""Dependency groups as plain data, and the surgery on them: take some channels of a network, in some order.

A group's channels sit in many tensors: the rows of the layers that produce them, the scales of the norms in
between, the columns of the layers that read them. A ``Slot`` says where, in the indices of the network as it came.
Cutting and permuting are then one operation, ``take``: for each axis, the old positions in their new order. All
groups are cut in one go, in original indices, so the result does not depend on an order of cutting, and a search
that prunes one network a hundred times traces it once.

What is changed: the tensors of the layers below and the attributes that say their width. Everything else (hooks,
modes, ``requires_grad``, weight sharing) stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Side = Literal["out", "in", "both"]
"""Which end of a layer: ``both`` where in and out are the same channels (norms, depthwise convs, embeddings)."""


class Unsupported(Exception):
    """A layer or group that is not known how to be cut; caught where groups are judged, never seen by users."""


@dataclass(frozen=True)
class Slot:
    """Where a group's channels sit in one layer: position ``index[i]`` belongs to the group's channel ``root[i]``."""

    layer: str
    """Qualified name of a module, or of a parameter that belongs to no layer with channels."""
    side: Side
    index: tuple[int, ...]
    root: tuple[int, ...]
    dim: int = 0
    """For a bare parameter: its dimension."""


@dataclass(frozen=True)
class Group:
    """One dependency group: channels that can only be cut together, in all its members at once."""

    name: str
    """Qualified name of its root layer, the first one in module order whose output channels these are."""
    channels: int
    multiple: int
    """Widths stay a multiple of this, each of ``multiple`` equal contiguous blocks losing the same number."""
    members: tuple[str, ...]
    """Names of the layers (and bare parameters) that change with it, the root first."""
    slots: tuple[Slot, ...] = field(default=(), repr=False)

    def owners(self) -> tuple[str, ...]:
        """The members whose own width this group is, not just their input's."""
        return tuple(dict.fromkeys(slot.layer for slot in self.slots if slot.side != "in"))

    def blocks(self) -> list[range]:
        """The channels, in the blocks that must lose the same number."""
        size = self.channels // self.multiple
        return [range(start, start + size) for start in range(0, self.channels, size)]


@dataclass(frozen=True)
class Groups:
    """What of a network may be cut, and what not, and why."""

    prunable: tuple[Group, ...]
    kept: tuple[tuple[str, str], ...]
    """(name of a layer, why its width stays), in module order."""


Place = tuple[str, Side, int]
"""Layer, side, dimension: a channel axis of the network."""


def axes(layer: nn.Module) -> list[tuple[str, Side, int]]:
    """(tensor's name, side, dimension) for each tensor of ``layer`` that has channels. Raises Unsupported."""
    table: list[tuple[str, Side, int]]
    if isinstance(layer, _ConvNd):
        table = _conv_axes(layer)
    elif isinstance(layer, nn.Linear):
        table = [("weight", "out", 0), ("bias", "out", 0), ("weight", "in", 1)]
    elif isinstance(layer, nn.Embedding):
        table = [("weight", "both", 1)]
    elif isinstance(layer, _NormBase | nn.GroupNorm):
        table = [(name, "both", 0) for name in ("weight", "bias", "running_mean", "running_var")]
    elif isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        table = [("weight", "both", 0), ("bias", "both", 0)]
    elif isinstance(layer, nn.PReLU):
        table = [("weight", "both", 0)] if layer.num_parameters > 1 else []
    else:
        raise Unsupported(f"{type(layer).__name__} is not supported")
    held = {**layer._parameters, **layer._buffers}
    for name, _, _ in table:
        if name not in held and getattr(layer, name, None) is not None:
            raise Unsupported(f"its {name} is computed, not stored (weight norm, spectral norm, a mask)")
    return [axis for axis in table if held.get(axis[0]) is not None]


def _conv_axes(layer: _ConvNd) -> list[tuple[str, Side, int]]:
    if is_depthwise(layer):
        return [("weight", "both", 0), ("bias", "both", 0)]
    transposed = isinstance(layer, _ConvTransposeNd)
    if layer.groups > 1 and transposed:
        raise Unsupported("a grouped transposed convolution is not supported")
    return [("weight", "out", int(transposed)), ("bias", "out", 0), ("weight", "in", 1 - int(transposed))]


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each channel of the convolution ``layer`` is filtered on its own, one filter each."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def width(layer: nn.Module | Tensor, side: Side, dim: int = 0) -> int:
    """How many channels ``layer`` has on ``side``. Raises Unsupported."""
    if isinstance(layer, Tensor):
        return layer.shape[dim]
    if isinstance(layer, _ConvNd):
        return layer.in_channels if side == "in" else layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features if side == "in" else layer.out_features
    if isinstance(layer, nn.LayerNorm):
        return int(layer.normalized_shape[-1])
    for attribute in ("num_features", "num_channels", "embedding_dim", "num_parameters"):
        if hasattr(layer, attribute):
            return int(getattr(layer, attribute))
    raise Unsupported(f"{type(layer).__name__} is not supported")


def member(module: nn.Module, name: str) -> nn.Module | nn.Parameter:
    """The layer or bare parameter of that qualified name."""
    parent, _, leaf = name.rpartition(".")
    found = getattr(module.get_submodule(parent), leaf) if name else module
    if not isinstance(found, nn.Module | nn.Parameter):
        raise Unsupported(f"{name!r} is neither a layer nor a parameter")
    return found


def cut(module: nn.Module, removed: Iterable[tuple[Group, Sequence[int]]]) -> None:
    """Remove channels (of each group, in the network's original indices) from ``module``, in place."""
    gone: dict[Place, set[int]] = defaultdict(set)
    for group, channels in removed:
        chosen = set(channels)
        for slot in group.slots:
            place: Place = (slot.layer, slot.side, slot.dim)
            gone[place].update(i for i, root in zip(slot.index, slot.root, strict=True) if root in chosen)
    take(module, {place: [i for i in range(_size(module, place)) if i not in out] for place, out in gone.items()})


def permute(module: nn.Module, orders: Iterable[tuple[Group, Sequence[int]]], *, root_only: bool = False) -> None:
    """Reorder each group's channels in ``module``, in place: channel k becomes the old channel ``order[k]``.

    ``root_only`` does it in the root layer alone, which breaks the network: a control for the gate.
    Raises Unsupported if some channels sit in more places than others.
    """
    moves: dict[Place, list[int]] = {}
    for group, order in orders:
        for slot in group.slots[: 1 if root_only else None]:
            place: Place = (slot.layer, slot.side, slot.dim)
            move = moves.setdefault(place, list(range(_size(module, place))))
            held: dict[int, list[int]] = defaultdict(list)
            for i, root in sorted(zip(slot.index, slot.root, strict=True)):
                held[root].append(i)
            for k, old in enumerate(order):
                if len(held[k]) != len(held[old]):
                    raise Unsupported(f"its channels have unequal parts in {slot.layer!r}")
                for target, source in zip(held[k], held[old], strict=True):
                    move[target] = source
    take(module, moves)


def take(module: nn.Module, orders: Mapping[Place, Sequence[int]]) -> None:
    """For each place, keep the given old positions, in that order; in place.

    A parameter shared by several layers stays shared. Raises Unsupported for layers not known.
    """
    # Old and new tensor by (old tensor, dimension, order): the old one is held so that its id is not used again.
    done: dict[tuple[int, int, tuple[int, ...]], tuple[Tensor, Tensor]] = {}
    for (name, side, dim), order in orders.items():
        found = member(module, name)
        if isinstance(found, nn.Parameter):
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, _selected(found, dim, order, done))
            continue
        for tensor_name, tensor_side, tensor_dim in axes(found):
            if tensor_side != side:
                continue
            tensor: Tensor = getattr(found, tensor_name)
            if side == "in" and isinstance(found, _ConvNd) and found.groups > 1:
                new = _selected_by_group(tensor, found.groups, found.in_channels, order)
            else:
                new = _selected(tensor, tensor_dim, order, done)
            setattr(found, tensor_name, new)
        _resize(found, side, len(order))


def _size(module: nn.Module, place: Place) -> int:
    return width(member(module, place[0]), place[1], place[2])


def _selected(
    old: Tensor, dim: int, order: Sequence[int], done: dict[tuple[int, int, tuple[int, ...]], tuple[Tensor, Tensor]]
) -> Tensor:
    key = (id(old), dim, tuple(order))
    if key not in done:
        picked = old.detach().index_select(dim, torch.tensor(order, dtype=torch.long, device=old.device))
        done[key] = (old, _like(old, picked))
    return done[key][1]


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
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _resize(layer: nn.Module, side: Side, size: int) -> None:
    """Set the attributes that say how wide ``layer`` is."""
    if isinstance(layer, _ConvNd):
        if side == "both":
            layer.groups = size
        if side != "out":
            layer.in_channels = size
        if side != "in":
            layer.out_channels = size
    elif isinstance(layer, nn.Linear):
        setattr(layer, "in_features" if side == "in" else "out_features", size)
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (size,)
    else:
        for attribute in ("num_features", "num_channels", "embedding_dim", "num_parameters"):
            if hasattr(layer, attribute):
                setattr(layer, attribute, size)

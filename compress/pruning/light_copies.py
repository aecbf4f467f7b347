"""Copies of a network to cut or permute some groups in, which share with it what stays the same."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from compress.pruning.cutting import tensor_named
from compress.pruning.groups import Group


def lightly_copied(module: nn.Module, groups: Iterable[Group], *, written: bool = False) -> nn.Module:
    """A copy in which ``groups`` can be cut or permuted; the rest of it is shared with ``module``.

    ``written``: whether the tensors of the groups are to be written to, and so must be copies as well.
    """
    changed: set[str] = set()
    tensors: set[int] = set()
    for group in groups:
        changed.update(knob.module for knob in group.knobs)
        for slot in group.slots:
            changed.add(slot.layer)
            tensors.add(id(tensor_named(module, slot.tensor)))
    shared: dict[int, Any] = {
        id(t): t for t in (*module.parameters(), *module.buffers()) if not written or id(t) not in tensors
    }
    around = {".".join(name.split(".")[:depth]) for name in changed for depth in range(name.count(".") + 2)}
    for name, one in module.named_modules(remove_duplicate=False):
        if name not in around and _stands_alone(one):
            shared[id(one)] = one
    for name in around | {""}:
        shared.pop(id(module.get_submodule(name)), None)
    return copy.deepcopy(module, memo=shared)


def _stands_alone(module: nn.Module) -> bool:
    """Whether ``module`` is a leaf that knows of no other: what it holds are tensors and plain values."""
    return (
        not module._modules
        and type(module).__module__.startswith("torch.nn.")
        and not (module._forward_hooks or module._forward_pre_hooks)
    )

"""Sparsity learning: before it is pruned, the baseline is trained with a penalty that drives whole channels to zero.

``bn``: L1 on the BatchNorm scales of each group (Liu et al., "Network Slimming", 2017); groups without any fall back on
``group``: group lasso, a channel being all that makes it: its slices of every layer of the group that produces it,
each in units of that layer's mean, and its scale in the norms in between, without which a norm would undo it (Wen et
al., "Structured Sparsity Learning", 2016). Both are applied as proximal steps after each step of the optimizer, so that
they are the same for any optimizer, the user's own included, and zeros are zeros. ``strength`` is what they add up to:
the share of an average channel's norm at the start that goes where nothing holds it up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.optimizer import register_optimizer_step_post_hook

from compress.pruning.cutting import distinct_slots, tensor_named
from compress.pruning.groups import Group, Groups, Slot, owner_of


@dataclass(frozen=True)
class PenalisedTensor:
    """Where a group's channels sit in one penalised tensor."""

    tensor: str
    dim: int
    index: Tensor
    root: Tensor
    scale: float
    """Mean norm of a channel here, before training."""


@dataclass(frozen=True)
class Penalty:
    """What is penalised of one group."""

    channels: int
    parts: tuple[PenalisedTensor, ...]
    joint: bool
    """Whether a channel's parts shrink together by their common norm, or each by itself."""
    mean: float
    """Mean over the channels of that norm, before training."""


def penalties(module: nn.Module, groups: Groups, kind: str) -> list[Penalty]:
    """What is penalised of each group; a group of which nothing can be is left out."""
    found = []
    for group in groups.prunable:
        distinct = distinct_slots(module, group)  # a tensor with two names is shrunk once
        scales = [slot for slot in distinct if _is_scale(module, slot)]
        batchnorm = [slot for slot in scales if isinstance(module.get_submodule(slot.layer), _NormBase)]
        joint = kind == "group" or not batchnorm
        slots = [*(slot for slot in distinct if _makes(module, slot)), *scales] if joint else batchnorm
        parts = tuple(part for slot in slots if (part := _part(module, group, slot)) is not None)
        if parts:
            mean = float(_norms(module, parts, group.channels).mean())
            found.append(Penalty(group.channels, parts, joint, mean))
    return found


def shrink(module: nn.Module, found: Sequence[Penalty], share: float) -> None:
    """One proximal step, in place: ``share`` of an average channel's norm is taken from every channel."""
    with torch.no_grad():
        for penalty in found:
            common = None
            if penalty.joint:
                norms = _norms(module, penalty.parts, penalty.channels)
                common = (1.0 - share * penalty.mean / norms.clamp_min(1e-30)).clamp_min(0.0)
            for part in penalty.parts:
                own = _norms(module, [part], penalty.channels)
                factors = (1.0 - share / own.clamp_min(1e-30)).clamp_min(0.0) if common is None else common
                tensor = tensor_named(module, part.tensor)
                along = torch.ones(tensor.shape[part.dim])
                along[part.index] = factors[part.root].float()
                shape = [-1 if dim == part.dim else 1 for dim in range(tensor.ndim)]
                tensor.mul_(along.to(tensor.device, tensor.dtype).reshape(shape))


@contextmanager
def penalised(module: nn.Module, groups: Groups, kind: str, strength: float, steps: int) -> Iterator[list[int]]:
    """Inside, every step of an optimizer of ``module`` is followed by one of the penalty; gives how many there were."""
    found = penalties(module, groups, kind)
    count = [0]

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) in held for p in module.parameters()):
            count[0] += 1
            shrink(module, found, strength / max(1, steps))

    handle = register_optimizer_step_post_hook(after)
    try:
        yield count
    finally:
        handle.remove()


def _part(module: nn.Module, group: Group, slot: Slot) -> PenalisedTensor | None:
    index, root = torch.tensor(slot.index), torch.tensor(slot.root)
    scale = float(_norms(module, [PenalisedTensor(slot.tensor, slot.dim, index, root, 1.0)], group.channels).mean())
    return PenalisedTensor(slot.tensor, slot.dim, index, root, scale) if scale > 0 else None


def _norms(module: nn.Module, parts: Sequence[PenalisedTensor], channels: int) -> Tensor:
    """(channels,): norm of each channel over ``parts``, each in units of its scale; float64 on the CPU."""
    total = torch.zeros(channels, dtype=torch.float64)
    for part in parts:
        tensor = tensor_named(module, part.tensor).detach()
        squares = tensor.movedim(part.dim, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]
        along = squares.double().square().sum(1).cpu() / part.scale**2
        total.index_add_(0, part.root, along[part.index])
    return total.sqrt()


def _makes(module: nn.Module, slot: Slot) -> bool:
    """Whether the slot holds the weights of a layer that produces the channels."""
    return slot.side == "out" and tensor_named(module, slot.tensor).ndim > 1 and owner_of(slot) != slot.tensor


def _is_scale(module: nn.Module, slot: Slot) -> bool:
    layer = module.get_submodule(slot.layer)
    return slot.tensor.endswith("weight") and isinstance(layer, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)

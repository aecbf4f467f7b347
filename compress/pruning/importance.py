"""Which channels of a group matter least.

``l2``, ``l1``: the norm of the weights that produce a channel: for each layer whose output it is (convolution, linear
layer, depthwise filter, embedding, gates of a recurrent unit, a head's projections), its slices of the weight tensor,
divided by the layer's mean so that no layer outvotes another, summed over the layers of the group. Biases, norms and
the layers that read the channel do not count. Li et al., "Pruning Filters for Efficient ConvNets", 2017; the sum over
coupled layers as in Fang et al., "DepGraph", 2023.
``fpgm``: how far a channel's weights are from those of all others, so that what can be replaced goes first. He et al.,
"Filter Pruning via Geometric Median", 2019.
``bn``: size of the channel's scale in its BatchNorm; groups without one fall back on ``l2``. Liu et al., "Network
Slimming", 2017.
``random``: the control, seeded by the group's name.
A mapping {group: score of each channel} is taken as it is; ``taylor`` makes one from gradients.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from compress.networks.running import evaluating
from compress.pruning.cutting import distinct_slots, tensor_named
from compress.pruning.groups import Group, Groups, Slot, owner_of
from targets.errors import SpaceError

Importance = Literal["l2", "l1", "bn", "fpgm", "random"] | Mapping[str, Sequence[float]]
Allocation = Literal["uniform", "global"]
"""Whether every group loses the same share, or the least important channels go wherever they are."""
ALLOCATIONS = ("uniform", "global")
_MOST = 0.9
"""No group loses more than this of its channels to ``global``."""
IMPORTANCES = ("l2", "l1", "bn", "fpgm", "random")


def scores(module: nn.Module, group: Group, importance: Importance) -> list[float]:
    """The importance of each channel of ``group``, in its order; raises SpaceError where a mapping does not fit it."""
    if isinstance(importance, Mapping):
        given = [float(x) for x in importance.get(group.name, ())]
        if len(given) != group.channels or any(x != x for x in given):
            raise SpaceError(
                f"importance of {group.name!r} has {len(given)} scores, or some that are no numbers: "
                f"give one for each of its {group.channels} channels"
            )
        return given
    if importance == "random":
        generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
        return torch.rand(group.channels, generator=generator).tolist()
    if importance == "bn" and (scales := _scales(module, group)) is not None:
        return scales
    total = torch.zeros(group.channels, dtype=torch.float64)
    for rows, root in _rows(module, group):
        if importance == "fpgm":
            sizes = torch.cdist(rows, rows).sum(1)
        else:
            sizes = rows.abs().pow(1 if importance == "l1" else 2).sum(1)
        norms = torch.zeros(group.channels, dtype=torch.float64).index_add_(0, root, sizes)
        if importance in ("l2", "bn"):
            norms = norms.sqrt()
        total += norms / norms.mean().clamp_min(1e-30)
    return [float(x) for x in total]


def global_ratios(module: nn.Module, groups: Groups, ratio: float, importance: Importance) -> dict[str, float]:
    """Group -> share to remove, so that ``ratio`` of all channels goes, least important first wherever they are.

    Scores of a group are compared with those of others as multiples of the group's mean; a mapping given as
    ``importance`` is compared as it is.
    """
    ranked: list[tuple[float, str]] = []
    for group in groups.prunable:
        values = sorted(scores(module, group, importance))
        mean = 1.0 if isinstance(importance, Mapping) else max(sum(values) / len(values), 1e-30)
        ranked += [(value / mean, group.name) for value in values[: int(_MOST * group.channels)]]
    total = sum(group.channels for group in groups.prunable)
    gone = [name for _, name in sorted(ranked)[: round(ratio * total)]]
    return {group.name: gone.count(group.name) / group.channels for group in groups.prunable}


def taylor(
    module: nn.Module,
    groups: Groups,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
) -> dict[str, list[float]]:
    """{group: score of each channel}: how much the loss would change, to first order, were the channel not there.

    The square of the sum of weight times gradient over all weights that produce the channel, averaged over batches
    (Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019). ``batches``: (input or tuple of
    inputs, labels); ``loss``: function(outputs, labels). ``module`` keeps its modes and gradients.
    """
    held = {name: p for name, p in module.named_parameters(remove_duplicate=False) if p.is_floating_point()}
    wanted = {p: p.requires_grad for p in held.values()}
    total = {group.name: torch.zeros(group.channels, dtype=torch.float64) for group in groups.prunable}
    try:
        for parameter in wanted:
            parameter.requires_grad_(True)
        # cuDNN's recurrent layers have no gradients in eval mode.
        with evaluating(module), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            for inputs, labels in batches:
                outputs = module(*(inputs if isinstance(inputs, tuple | list) else (inputs,)))
                found = torch.autograd.grad(loss(outputs, labels), list(wanted), allow_unused=True)
                gradients = {id(p): g for p, g in zip(wanted, found, strict=True) if g is not None}
                for group in groups.prunable:
                    total[group.name] += _change(held, gradients, group).square()
    finally:
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
    return {name: values.tolist() for name, values in total.items()}


def _change(held: Mapping[str, nn.Parameter], gradients: Mapping[int, Tensor], group: Group) -> Tensor:
    """(channels,): weight times gradient, summed over what produces each channel."""
    change = torch.zeros(group.channels, dtype=torch.float64)
    met: set[tuple[int, int]] = set()
    for slot in group.slots:
        parameter = held.get(slot.tensor)
        if slot.side == "in" or parameter is None or (gradient := gradients.get(id(parameter))) is None:
            continue
        if (id(parameter), slot.dim) in met:
            continue  # shared: its gradient is that of all its uses
        met.add((id(parameter), slot.dim))
        product = (
            (parameter.detach() * gradient).movedim(slot.dim, 0).flatten(1)
            if parameter.ndim > 1
            else ((parameter.detach() * gradient)[:, None])
        )
        change.index_add_(0, torch.tensor(slot.root), product.sum(1).double().cpu()[list(slot.index)])
    return change


def _rows(module: nn.Module, group: Group) -> list[tuple[Tensor, Tensor]]:
    """For each weight that makes channels of the group: (positions, rest) as float64, and the channel of each."""
    found = []
    for slot in distinct_slots(module, group):
        tensor = tensor_named(module, slot.tensor)
        if slot.side == "in" or tensor.ndim < 2 or owner_of(slot) == slot.tensor:
            continue
        rows = tensor.detach().movedim(slot.dim, 0).flatten(1).double().cpu()
        found.append((rows[list(slot.index)], torch.tensor(slot.root)))
    return found


def _scales(module: nn.Module, group: Group) -> list[float] | None:
    """Sum of the sizes of each channel's BatchNorm scales; None where the group has none."""
    total = torch.zeros(group.channels, dtype=torch.float64)
    found = [slot for slot in distinct_slots(module, group) if _is_scale(module, slot)]
    for slot in found:
        sizes = tensor_named(module, slot.tensor).detach().abs().double().cpu()
        total.index_add_(0, torch.tensor(slot.root), sizes[list(slot.index)])
    return total.tolist() if found else None


def _is_scale(module: nn.Module, slot: Slot) -> bool:
    return isinstance(module.get_submodule(slot.layer), _NormBase) and slot.tensor.endswith("weight")

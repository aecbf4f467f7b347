"""What a cut network is held against: the network it came from, with the removed channels held at zero or copied."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.pruning.cutting import tensor_named
from compress.pruning.groups import Group, Groups

HOOKED = nn.modules.conv._ConvNd | nn.Linear | nn.Embedding | nn.modules.batchnorm._NormBase | nn.PReLU


def masked(module: nn.Module, groups: Groups, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of ``module`` whose removed channels are held at zero where a layer puts them out.

    Where a layer's own channels never come out of it as such (recurrent units, torch's attention) and for bare
    parameters, the weights that make them are zero instead: the units then stay at zero, too.
    """
    network = copy.deepcopy(module)
    inside = [name for name, m in network.named_modules() if isinstance(m, nn.MultiheadAttention | nn.RNNBase)]
    for group in groups.prunable:
        gone = set(removed.get(group.name, ()))
        for slot in group.slots:
            at = torch.tensor([i for i, root in zip(slot.index, slot.root, strict=True) if root in gone])
            if slot.side == "in" or not len(at):
                continue
            layer = network.get_submodule(slot.layer)
            if not isinstance(layer, HOOKED) or any(slot.tensor.startswith(f"{name}.") for name in inside):
                tensor_named(network, slot.tensor).data.index_fill_(slot.dim, at, 0.0)
                continue
            dim = -1 if isinstance(layer, nn.Linear | nn.Embedding) else 1

            def hold(_: nn.Module, __: Any, out: Tensor, dim: int = dim, at: Tensor = at) -> Tensor:
                return out.index_fill(dim, at, 0.0)

            layer.register_forward_hook(hold)
    return network


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest, relative to the output's largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(first, second, strict=True))


def odd(group: Group) -> dict[int, int]:
    """{odd channel: the even one before it}, in every block."""
    return {block[k]: block[k - 1] for block in group.blocks() for k in range(1, len(block), 2)}


def even_sized(groups: Groups) -> list[Group]:
    return [group for group in groups.prunable if group.channels // group.multiple % 2 == 0]

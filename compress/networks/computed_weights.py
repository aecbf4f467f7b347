"""Layers of a user's own that compute their weight from another at each call: as ordinary layers, with that weight.

Networks without batch norms standardise weights on the fly: each filter less its mean, over its deviation, times a
gain. What such a layer is trained by is then no weight of it, and cutting the channels that it reads would change all
its filters. Like torch's ``weight_norm``, it gives way to an ordinary layer with the weight that it has now.

Only where each filter is the stored one scaled and shifted: a weight that is masked, or a sum with another, is meant to
stay so while it is trained on. Found by running the layer alone, on numbers made up for it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from compress.networks.running import evaluating

_KINDS: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_FUNCTIONS = (
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
)  # fmt: skip
_CLOSE = 1e-4


def ordinary_layer(layer: nn.Module) -> nn.Module | None:
    """``layer`` as one of torch's own with the weight that it computes now; None where it computes none, or another."""
    kind = next((kind for kind in _KINDS if isinstance(layer, kind)), None)
    if kind is None or type(layer).forward is kind.forward or layer._forward_pre_hooks or layer._forward_hooks:
        return None
    try:
        given = [_made_up(layer) for _ in range(2)]
        used = _Weights()
        with evaluating(layer), torch.no_grad(), used:
            expected = [layer(x) for x in given]
        made = _ordinary(layer, kind, used.seen)
        if made is None:
            return None
        with torch.no_grad():
            found = [made(x) for x in given]
    except Exception:  # it wants more than one tensor, say
        return None
    same = all(
        isinstance(a, Tensor) and a.shape == b.shape and _near(a, b) for a, b in zip(expected, found, strict=True)
    )
    return made if same else None


class _Weights(TorchFunctionMode):
    """Notes the weight and bias of every convolution and matrix product by one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, and note what it was given."""
        given = kwargs or {}
        if func in _FUNCTIONS:
            weight = args[1] if len(args) > 1 else given["weight"]
            self.seen.append((weight, args[2] if len(args) > 2 else given.get("bias")))
        return func(*args, **given)


def _made_up(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    if isinstance(layer, nn.Linear):
        return torch.randn(2, layer.in_features, dtype=weight.dtype, device=weight.device)
    pixels = [dilation * (kernel - 1) + 5 for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
    return torch.randn(2, layer.in_channels, *pixels, dtype=weight.dtype, device=weight.device)


def _ordinary(layer: Any, kind: type[nn.Module], seen: list[tuple[Tensor, Tensor | None]]) -> nn.Module | None:
    """The ordinary layer of that ``kind``; ``seen``: weight and bias in two calls. None for what is none."""
    if len(seen) != 2 or not torch.equal(seen[0][0], seen[1][0]):
        return None
    weight, bias = seen[0]
    if weight is layer.weight or weight.shape != layer.weight.shape or not _scaled(layer.weight.detach(), weight):
        return None
    made = copy.copy(layer)
    made.__class__ = kind
    trained = layer.weight.requires_grad
    made._parameters = {
        "weight": nn.Parameter(weight.detach().clone(), requires_grad=trained),
        "bias": None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=trained),
    }
    made._buffers, made._modules = {}, {}
    result: nn.Module = made
    return result


def _scaled(stored: Tensor, computed: Tensor) -> bool:
    """Whether each row of ``computed`` is that of ``stored``, scaled and shifted."""
    old, new = stored.flatten(1), computed.flatten(1)
    old, new = old - old.mean(1, keepdim=True), new - new.mean(1, keepdim=True)
    scale = (old * new).sum(1, keepdim=True) / old.square().sum(1, keepdim=True).clamp_min(1e-12)
    return _near(scale * old, new)


def _near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _CLOSE * b.abs().max().clamp_min(1e-6))

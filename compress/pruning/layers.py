"""The layers of a network that multiply by weights, as one run shows them: sizes, and which axis is which."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compress.networks.running import repeatable, unfused
from compress.pruning.cutting import is_depthwise
from compress.pruning.narrow_attention import NarrowAttention

_GATES = {"LSTM": 4, "GRU": 3, "LSTMCell": 4, "GRUCell": 3}


@dataclass(frozen=True)
class MatrixAxis:
    """Where the channels of one side of a layer sit in its weight."""

    dim: int
    grouped: bool = False
    """As of a slot: the inputs of a grouped convolution, block by block."""
    each: Fraction = Fraction(1)
    """Channels of the layer for each position along the axis."""
    rows: range | None = None
    """The positions that belong to the layer, where the weight holds several; None: all."""


@dataclass(frozen=True)
class Matrix:
    """A weight that inputs are multiplied by."""

    name: str
    """Of the module; of the weight, where a module has several."""
    kind: str
    """``conv``, ``depthwise``, ``linear`` or ``recurrent``."""
    weight: Tensor = field(repr=False)
    kernel: int
    inputs: int
    outputs: int
    input_axis: MatrixAxis
    output_axis: MatrixAxis
    positions: int = 0
    """Places at which it is computed for one example."""
    parts: int = 1
    """Of a grouped convolution that is not depthwise."""


def matrices(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Matrix]:
    """All weights that are multiplied by in one run of ``network`` on the first of ``inputs``, in the order of modules.

    Layers that are called several times count all their positions. A ``nn.MultiheadAttention`` must have been adapted
    (``narrow_attention.adapt``). Weights that a module hands to a function itself are not seen.
    """
    counts: dict[str, list[int]] = {}
    hooks = []
    for name, layer in network.named_modules():
        if _is_counted(layer):
            hooks.append(layer.register_forward_hook(_counter(counts, name), with_kwargs=True))
    one = tuple(t[:1] if t.ndim else t for t in inputs)
    try:
        with repeatable(network), unfused():
            network(*one)
    finally:
        for hook in hooks:
            hook.remove()
    found: list[Matrix] = []
    for name, layer in network.named_modules():
        if name in counts:
            found += _of(name, layer, counts[name])
    return found


def _is_counted(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd | nn.Linear | nn.RNNBase | nn.RNNCellBase | NarrowAttention)


def _counter(counts: dict[str, list[int]], name: str) -> Callable[..., None]:
    """A hook that adds up a layer's positions; of attention those of queries, keys and values."""

    def count(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if isinstance(layer, NarrowAttention):
            places = [x.numel() // x.shape[-1] for x in given[:3]]
        elif isinstance(layer, nn.RNNBase):
            x = args[0] if isinstance(args[0], Tensor) else args[0].data
            places = [x.numel() // x.shape[-1]]
        elif isinstance(layer, nn.RNNCellBase):
            places = [given[0].numel() // given[0].shape[-1]]
        elif isinstance(layer, _ConvTransposeNd):
            places = [given[0].numel() // layer.in_channels]
        elif isinstance(layer, _ConvNd):
            places = [output.numel() // layer.out_channels]
        else:
            places = [output.numel() // output.shape[-1]]
        before = counts.get(name, [0] * len(places))
        counts[name] = [a + b for a, b in zip(before, places, strict=True)]

    return count


def _of(name: str, layer: nn.Module, counts: list[int]) -> list[Matrix]:
    if isinstance(layer, _ConvNd):
        return [_convolution(name, layer, counts[0])]
    if isinstance(layer, nn.Linear):
        rows, columns = layer.weight.shape
        return [Matrix(name, "linear", layer.weight, 1, columns, rows, MatrixAxis(1), MatrixAxis(0), counts[0])]
    if isinstance(layer, NarrowAttention):
        return _attention(name, layer, counts)
    return _recurrent(name, layer, counts[0])


def _convolution(name: str, layer: _ConvNd, positions: int) -> Matrix:
    kernel, weight = math.prod(layer.kernel_size), layer.weight
    turned = isinstance(layer, _ConvTransposeNd)
    if is_depthwise(layer):
        rows = weight.shape[0]
        read, made = (MatrixAxis(0, each=Fraction(n, rows)) for n in (layer.in_channels, layer.out_channels))
        return Matrix(name, "depthwise", weight, kernel, layer.in_channels, layer.out_channels, read, made, positions)
    grouped = layer.groups > 1
    made = MatrixAxis(1, each=Fraction(layer.groups)) if turned else MatrixAxis(0)
    read = MatrixAxis(0) if turned else MatrixAxis(1, grouped)
    return Matrix(
        name, "conv", weight, kernel, layer.in_channels, layer.out_channels, read, made, positions, layer.groups
    )


def _recurrent(name: str, layer: nn.Module, positions: int) -> list[Matrix]:
    """One for each weight: gates are its kernel, so that its outputs are the hidden size."""
    gates = _GATES.get(type(layer).__name__, 1)
    found = []
    for leaf, weight in layer.named_parameters(recurse=False):
        if not leaf.startswith("weight"):
            continue
        each = 1 if leaf.startswith("weight_hr") else gates
        rows, columns = weight.shape
        made = MatrixAxis(0, each=Fraction(1, each))
        found.append(
            Matrix(f"{name}.{leaf}", "recurrent", weight, each, columns, rows // each, MatrixAxis(1), made, positions)
        )
    return found


def _attention(name: str, layer: NarrowAttention, counts: list[int]) -> list[Matrix]:
    """The three projections; of one weight each, or a third of one."""
    found = []
    for k, (part, positions) in enumerate(zip("qkv", counts, strict=True)):
        weight = layer.in_proj_weight
        if weight is None:
            weight = layer.get_parameter(f"{part}_proj_weight")
            rows = range(weight.shape[0])
        else:
            size = weight.shape[0] // 3
            rows = range(k * size, (k + 1) * size)
        made = MatrixAxis(0, rows=rows)
        found.append(
            Matrix(f"{name}.{part}", "linear", weight, 1, weight.shape[1], len(rows), MatrixAxis(1), made, positions)
        )
    return found

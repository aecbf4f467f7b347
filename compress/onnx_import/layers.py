"""ONNX operators with weights as torch layers: what pruning, training and counting know how to handle."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.onnx_import.importer import Importer, Operator
from compress.onnx_import.pooling import paddings

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_DECONV: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE_NORM: dict[int, Any] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _layer_name(op: Operator, position: int = 1) -> str:
    """After its weight, as exporters from torch name it, else after the node."""
    name = re.sub(r":\d+$", "", op.value(position).name)
    for ending in (".weight", "_weight", ".kernel", "/kernel", ".W"):
        if name.endswith(ending):
            return name[: -len(ending)]
    return op.name or name


def _weight(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def _fill(layer: nn.Module, **arrays: np.ndarray | None) -> nn.Module:
    """Put arrays into a layer's parameters and buffers."""
    with torch.no_grad():
        for name, array in arrays.items():
            if array is not None:
                getattr(layer, name).copy_(_weight(array))
    return layer


def _conv(to: Importer, op: Operator) -> fx.Node:
    x, weight = op.value(0), op.value(1)
    dims = x.rank - 2
    if dims not in _CONV or not weight.constant or (op.has(2) and not op.value(2).constant):
        raise op.fail("weights are computed, not constant" if dims in _CONV else f"input of {x.rank} axes")
    array = op.array(1)
    kernel, groups = array.shape[2:], op.get("group", 1)
    strides, dilations = op.get("strides", [1] * dims), op.get("dilations", [1] * dims)
    before, after = paddings(op, x.shape[2:], kernel, strides, dilations)
    node = to.tensor(x)
    if before != after:
        spec = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
        node = to.call(F.pad, node, spec)
        before = [0] * dims
    layer = _CONV[dims](
        array.shape[1] * groups, array.shape[0], tuple(kernel), tuple(strides), tuple(before), tuple(dilations), groups,
        bias=op.has(2),
    )  # fmt: skip
    return to.layer(_fill(layer, weight=array, bias=op.array(2) if op.has(2) else None), _layer_name(op), node)


def _deconv(to: Importer, op: Operator) -> fx.Node:
    x = op.value(0)
    dims = x.rank - 2
    array, groups = op.array(1), op.get("group", 1)
    strides, dilations = op.get("strides", [1] * dims), op.get("dilations", [1] * dims)
    extra = op.get("output_padding", [0] * dims)
    kernel = array.shape[2:]
    before, after = _deconv_paddings(op, x.shape[2:], kernel, strides, dilations, extra)
    even = before == after
    if dims not in _DECONV or (not even and any(extra)):
        raise op.fail("uneven pads with output_padding" if dims in _DECONV else f"input of {x.rank} axes")
    layer = _DECONV[dims](
        array.shape[0], array.shape[1] * groups, tuple(kernel), tuple(strides),
        tuple(before) if even else 0, tuple(extra), groups, bias=op.has(2), dilation=tuple(dilations),
    )  # fmt: skip
    _fill(layer, weight=array, bias=op.array(2) if op.has(2) else None)
    node = to.layer(layer, _layer_name(op), to.tensor(x))
    return node if even else to.call(cropped, node, tuple(before), tuple(after))


def cropped(x: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """``x`` without the first ``before`` and the last ``after`` positions of each of its last axes."""
    index = [slice(a, -b if b else None) for a, b in zip(before, after, strict=True)]
    return x[(..., *index)]


def _deconv_paddings(
    op: Operator, shape: Any, kernel: Any, strides: Any, dilations: Any, extra: Any
) -> tuple[list[int], list[int]]:
    wanted, auto = op.get("output_shape"), op.get("auto_pad", "NOTSET")
    dims = len(kernel)
    if wanted is None and auto in ("NOTSET", "VALID"):
        pads = op.get("pads", [0] * 2 * dims) if auto == "NOTSET" else [0] * 2 * dims
        return list(pads[:dims]), list(pads[dims:])
    before, after = [], []
    for i in range(dims):
        target = wanted[-dims:][i] if wanted is not None else shape[i] * strides[i]
        total = max(0, strides[i] * (shape[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - target)
        small = total // 2
        before.append(total - small if auto == "SAME_LOWER" else small)
        after.append(small if auto == "SAME_LOWER" else total - small)
    return before, after


def _batch_norm(to: Importer, op: Operator) -> fx.Node:
    x = op.value(0)
    if x.rank not in _BATCH_NORM or op.get("training_mode", 0):
        raise op.fail("in training mode" if x.rank in _BATCH_NORM else f"input of {x.rank} axes")
    scale, bias, mean, variance = (op.array(i) for i in range(1, 5))
    layer = _BATCH_NORM[x.rank](len(scale), eps=op.get("epsilon", 1e-5))
    _fill(layer, weight=scale, bias=bias, running_mean=mean, running_var=variance)
    return to.layer(layer, _layer_name(op), to.tensor(x))


def _instance_norm(to: Importer, op: Operator) -> fx.Node:
    x, scale, bias = op.value(0), op.array(1), op.array(2)
    if x.rank not in _INSTANCE_NORM:
        raise op.fail(f"input of {x.rank} axes")
    layer = _INSTANCE_NORM[x.rank](len(scale), eps=op.get("epsilon", 1e-5), affine=True)
    return to.layer(_fill(layer, weight=scale, bias=bias), _layer_name(op), to.tensor(x))


def _group_norm(to: Importer, op: Operator) -> fx.Node:
    groups, channels = op.get("num_groups"), op.value(0).shape[1]
    scale, bias = op.array(1), op.array(2)
    if len(scale) != channels:  # opset 18: one for each group
        scale, bias = (np.repeat(x, channels // groups) for x in (scale, bias))
    layer = nn.GroupNorm(groups, channels, eps=op.get("epsilon", 1e-5))
    return to.layer(_fill(layer, weight=scale, bias=bias), _layer_name(op), to.tensor(op.value(0)))


def _layer_norm(to: Importer, op: Operator) -> fx.Node:
    x, scale = op.value(0), op.array(1)
    axis = op.get("axis", -1) % x.rank
    shape = x.shape[axis:]
    if len(op.outputs) > 1 and any(op.outputs[1:]):
        raise op.fail("mean and deviation are used as outputs")
    layer = nn.LayerNorm(shape, eps=op.get("epsilon", 1e-5), bias=op.has(2))
    bias = np.broadcast_to(op.array(2), shape) if op.has(2) else None
    return to.layer(_fill(layer, weight=np.broadcast_to(scale, shape), bias=bias), _layer_name(op), to.tensor(x))


def _rms_norm(to: Importer, op: Operator) -> fx.Node:
    x = op.value(0)
    shape = x.shape[op.get("axis", -1) % x.rank :]
    layer = nn.RMSNorm(shape, eps=op.get("epsilon", 1e-5))
    return to.layer(_fill(layer, weight=np.broadcast_to(op.array(1), shape)), _layer_name(op), to.tensor(x))


def _linear(weight: np.ndarray, bias: np.ndarray | None) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return _fill(layer, weight=weight, bias=bias)


def _gemm(to: Importer, op: Operator) -> fx.Node:
    a, b = op.value(0), op.value(1)
    alpha, beta = op.get("alpha", 1.0), op.get("beta", 1.0)
    constant = a.node is not None and b.constant and (not op.has(2) or op.value(2).constant)
    bias = op.array(2) * np.float32(beta) if constant and op.has(2) else None
    if constant and not op.get("transA", 0) and (bias is None or bias.size in (1, bias.shape[-1])):
        weight = op.array(1) if op.get("transB", 0) else op.array(1).T
        rows = None if bias is None else np.broadcast_to(bias.reshape(-1), weight.shape[:1])
        return to.layer(_linear(weight * np.float32(alpha), rows), _layer_name(op), to.tensor(a))
    sides = [to.tensor(a), to.tensor(b)]
    sides = [to.call(torch.t, x) if op.get(n, 0) else x for x, n in zip(sides, ("transA", "transB"), strict=True)]
    found = to.call(torch.mul, to.call(torch.matmul, *sides), alpha)
    return to.call(torch.add, found, to.call(torch.mul, to.tensor(op.value(2)), beta)) if op.has(2) else found


def _matmul(to: Importer, op: Operator) -> fx.Node:
    a, b = op.value(0), op.value(1)
    if a.node is not None and b.constant and b.rank == 2 and np.issubdtype(op.array(1).dtype, np.floating):
        return to.layer(_linear(op.array(1).T, None), _layer_name(op), to.tensor(a))
    return to.call(torch.matmul, to.tensor(a), to.tensor(b))


def merged_bias(to: Importer, op: Operator) -> fx.Node | None:
    """Take the constant of an ``Add`` right behind a layer without bias as that layer's bias.

    Returns the layer's node, which then computes the sum; None where the ``Add`` is no such bias.
    """
    for i in (0, 1):
        value, other = op.value(i), op.value(1 - i)
        layer = to.module(value.node)
        if value.node is None or not other.constant or to.uses[value.name] != 1:
            continue
        array = np.asarray(other.probes[0])
        if isinstance(layer, nn.Linear):
            fits, width = array.ndim <= 1 or array.size == array.shape[-1], layer.out_features
        elif isinstance(layer, nn.modules.conv._ConvNd):
            fits, width = array.ndim >= value.rank - 1 and array.size == array.shape[1 - value.rank], layer.out_channels
        else:
            continue
        if layer.bias is None and fits and array.size == width:
            layer.bias = nn.Parameter(_weight(array.reshape(-1)))
            return to.ran(value.node)
    return None


def embedding(to: Importer, op: Operator) -> fx.Node | None:
    """The ``Gather`` of computed indices from a float table (numbers, width) as an embedding layer; None for others."""
    table, index = op.value(0), op.value(1)
    if not table.constant or table.rank != 2 or index.known or not np.issubdtype(op.array(0).dtype, np.floating):
        return None
    array = op.array(0)
    if any(int(p.min()) < 0 for p in index.probes if p.numel()):
        return None
    layer = _fill(nn.Embedding(*array.shape), weight=array)
    return to.layer(layer, _layer_name(op, 0), to.tensor(index))


def _prelu(to: Importer, op: Operator) -> fx.Node:
    x, slope = op.value(0), op.value(1)
    array = np.asarray(slope.probes[0]) if slope.constant else np.zeros((2, 2))
    per_channel = x.rank > 1 and array.size == x.shape[1] and array.shape[1 - x.rank :][:1] == (array.size,)
    if array.size == 1 or per_channel:
        return to.layer(_fill(nn.PReLU(array.size), weight=array.reshape(-1)), _layer_name(op), to.tensor(x))
    return to.call(leaky, to.tensor(x), to.tensor(slope))


def leaky(x: Tensor, slope: Tensor) -> Tensor:
    """PRelu with a slope of any shape that broadcasts: x where it is not below 0, else x times the slope."""
    return torch.where(x < 0, x * slope, x)


_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Torch's order of the gates, by their positions in ONNX (LSTM: iofc -> ifgo; GRU: zrh -> rzn)."""
_ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _recurrent(to: Importer, op: Operator) -> tuple[fx.Node, ...]:
    """One layer, X (steps, batch, features) -> Y (steps, directions, batch, hidden), and the last states."""
    _check_recurrent(op)
    weight, recurrent = op.array(1), op.array(2)
    directions, hidden = recurrent.shape[0], recurrent.shape[-1]
    bias = op.array(3) if op.has(3) else None
    both = op.get("direction", "forward") == "bidirectional"
    kind: Callable[..., nn.Module] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}[op.kind]
    layer = kind(weight.shape[-1], hidden, bias=bias is not None, bidirectional=both)
    for d in range(directions):
        ending = "_reverse" if d else ""
        arrays = {f"weight_ih_l0{ending}": _gates(op, weight[d]), f"weight_hh_l0{ending}": _gates(op, recurrent[d])}
        if bias is not None:
            half = bias.shape[-1] // 2
            arrays |= {
                f"bias_ih_l0{ending}": _gates(op, bias[d, :half]), f"bias_hh_l0{ending}": _gates(op, bias[d, half:]),
            }  # fmt: skip
        _fill(layer, **arrays)
    x = to.tensor(op.value(0))
    back = op.get("direction", "forward") == "reverse"
    x = to.call(torch.flip, x, (0,)) if back else x
    states = [_state(to, op, i) for i in ((5, 6) if op.kind == "LSTM" else (5,))]
    if any(s is not None for s in states):
        if None in states:
            raise op.fail("one of two initial states is given")
        found = to.layer(layer, _layer_name(op), x, tuple(states) if op.kind == "LSTM" else states[0])
    else:
        found = to.layer(layer, _layer_name(op), x)
    output = to.call(by_direction, to.call(_first, found), directions)
    output = to.call(torch.flip, output, (0,)) if back else output
    last = to.call(_second, found)
    if op.kind != "LSTM":
        return output, last
    return output, to.call(_first, last), to.call(_second, last)


def by_direction(x: Tensor, directions: int) -> Tensor:
    """(steps, batch, directions * hidden) -> (steps, directions, batch, hidden)."""
    if directions == 1:
        return x.unsqueeze(1)
    return torch.stack(x.chunk(directions, -1), 1)


def _first(pair: Any) -> Any:
    return pair[0]


def _second(pair: Any) -> Any:
    return pair[1]


def _gates(op: Operator, array: np.ndarray) -> np.ndarray:
    """Rows in torch's order."""
    parts = np.split(array, len(_GATES[op.kind]))
    return np.concatenate([parts[i] for i in _GATES[op.kind]])


def _state(to: Importer, op: Operator, position: int) -> fx.Node | None:
    """An initial state; None for zeros."""
    if not op.has(position):
        return None
    value = op.value(position)
    zeros = value.known and all(not np.asarray(p).any() for p in value.probes)
    return None if zeros else to.tensor(value)


def _check_recurrent(op: Operator) -> None:
    directions = 2 if op.get("direction", "forward") == "bidirectional" else 1
    asked = [a.lower() for a in op.get("activations", [])]
    if asked and asked != [a.lower() for a in _ACTIVATIONS[op.kind]] * directions:
        raise op.fail(f"activations {op.get('activations')}")
    if op.get("clip") or op.get("layout", 0) or op.get("input_forget", 0):
        raise op.fail("clip, layout or input_forget is set")
    if op.has(4):
        steps = op.value(0).shape[0]
        if not op.value(4).known or any((np.asarray(p) != steps).any() for p in op.value(4).probes):
            raise op.fail("sequences of different lengths (sequence_lens)")
    if op.has(7) and op.array(7).any():
        raise op.fail("peephole weights")
    if op.kind == "GRU" and not op.get("linear_before_reset", 0):
        raise op.fail("linear_before_reset=0: torch's GRU computes another formula")


TABLE: dict[str, Any] = {
    "Conv": _conv, "ConvTranspose": _deconv, "BatchNormalization": _batch_norm, "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm, "LayerNormalization": _layer_norm, "RMSNormalization": _rms_norm, "Gemm": _gemm,
    "MatMul": _matmul, "PRelu": _prelu, "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
}  # fmt: skip

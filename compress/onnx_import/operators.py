"""ONNX operators without weights as plain torch functions; the table of all that are covered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from compress.onnx_import import functions, layers, pooling
from compress.onnx_import.importer import Importer, NotImportable, Operator, Value
from compress.onnx_import.shapes import blocks_of, expand_by, reshape_by

_CONTROL = ("If", "Loop", "Scan", "SequenceMap")
_FOLDED = ("Constant", "ConstantOfShape", "Shape", "Size", "Range", "NonZero", "EyeLike")
"""Known where their inputs are: shapes and constants need no function."""
Build = Callable[[Importer, Operator], Any]

_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor,
    "HardSwish": F.hardswish, "IsNaN": torch.isnan, "Log": torch.log, "Mish": F.mish, "Neg": torch.neg,
    "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round,
    "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Softplus": F.softplus, "Softsign": F.softsign,
    "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh, "Acos": torch.acos, "Asin": torch.asin,
    "Atan": torch.atan, "Cosh": torch.cosh, "Sinh": torch.sinh,
}  # fmt: skip


_REDUCE: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
    "ReduceL1": functions.sum_of_sizes, "ReduceL2": functions.euclidean, "ReduceLogSumExp": torch.logsumexp,
    "ReduceLogSum": functions.log_sum, "ReduceSumSquare": functions.square_sum,
}  # fmt: skip
_BINARY: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": functions.divide, "Pow": torch.pow, "Equal": torch.eq,
    "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
}  # fmt: skip
_SYMBOLS = {"Add": "__add__", "Sub": "__sub__", "Mul": "__mul__"}


def _unary(function: Callable[..., Any], to: Importer, op: Operator) -> fx.Node:
    return to.call(function, to.tensor(op.value(0)))


def _binary(function: Callable[..., Any], to: Importer, op: Operator) -> fx.Node:
    merged = layers.merged_bias(to, op) if op.kind == "Add" else None
    if merged is not None:
        return merged
    a, b = op.value(0), op.value(1)
    # A number in front of a tensor only where Python's own operators take it.
    left = to.operand(a) if op.kind in _SYMBOLS or op.kind == "Div" else to.tensor(a)
    right = to.operand(b) if not isinstance(left, (int, float, bool)) else to.tensor(b)
    if isinstance(left, (int, float, bool)):
        function = {"Add": functions.add_to, "Sub": functions.subtract_from, "Mul": functions.multiply}.get(
            op.kind, function
        )
    return to.call(function, left, right)


def _variadic(function: Callable[..., Any], to: Importer, op: Operator) -> fx.Node:
    """Sum, Mean, Max and Min of any number of tensors."""
    nodes = [to.tensor(op.value(i)) for i in range(len(op.inputs))]
    found = nodes[0]
    for other in nodes[1:]:
        found = to.call(function, found, other)
    return to.call(functions.divide, found, float(len(nodes))) if op.kind == "Mean" else found


def _activation(to: Importer, op: Operator) -> fx.Node:
    """Activations that have parameters of their own."""
    x = to.tensor(op.value(0))
    alpha, beta = op.get("alpha"), op.get("beta")
    if op.kind == "HardSigmoid":
        alpha, beta = alpha or 0.2, 0.5 if beta is None else beta
        if math.isclose(alpha, 1 / 6, rel_tol=1e-5) and beta == 0.5:
            return to.call(F.hardsigmoid, x)
        return to.call(functions.hard_sigmoid, x, alpha, beta)
    if op.kind == "Gelu":
        return to.call(F.gelu, x, approximate=op.get("approximate", "none"))
    if op.kind == "ThresholdedRelu":
        return to.call(F.threshold, x, 1.0 if alpha is None else alpha, 0.0)
    if op.kind == "Swish":
        return to.call(F.silu, x) if alpha in (None, 1.0) else to.call(functions.swish, x, alpha)
    if op.kind == "Selu":
        if alpha is not None and not math.isclose(alpha, 1.6732632, rel_tol=1e-4):
            raise op.fail(f"alpha={alpha}")
        return to.call(F.selu, x)
    function, default = {"LeakyRelu": (F.leaky_relu, 0.01), "Elu": (F.elu, 1.0), "Celu": (F.celu, 1.0)}[op.kind]
    return to.call(function, x, default if alpha is None else alpha)


def _clip(to: Importer, op: Operator) -> fx.Node:
    limits = []
    for position, name in ((1, "min"), (2, "max")):
        given = op.get(name)
        limits.append(float(op.array(position).reshape(-1)[0]) if op.has(position) else given)
    x = to.tensor(op.value(0))
    if limits == [0.0, 6.0]:
        return to.call(F.relu6, x)
    return to.call(torch.clamp, x, *limits) if limits != [None, None] else x


def _softmax(to: Importer, op: Operator) -> fx.Node:
    function = F.softmax if op.kind == "Softmax" else F.log_softmax
    x, rank = to.tensor(op.value(0)), op.value(0).rank
    axis = op.get("axis", -1 if op.opset >= 13 else 1) % rank
    if op.opset >= 13 or axis == rank - 1:
        return to.call(function, x, axis)
    return to.call(functions.softmax_of_rest, x, axis, op.kind == "LogSoftmax")


def _reduce(function: Callable[..., Tensor], to: Importer, op: Operator) -> fx.Node:
    axes, x = op.ints("axes", 1), op.value(0)
    if not axes:
        if op.get("noop_with_empty_axes", 0):
            return to.tensor(x)
        axes = list(range(x.rank))
    return to.call(function, to.tensor(x), tuple(a % x.rank for a in axes), bool(op.get("keepdims", 1)))


def _arg(function: Callable[..., Tensor], to: Importer, op: Operator) -> fx.Node:
    if op.get("select_last_index", 0):
        raise op.fail("select_last_index")
    return to.call(function, to.tensor(op.value(0)), op.get("axis", 0), bool(op.get("keepdims", 1)))


def _reshape(to: Importer, op: Operator) -> fx.Node:
    """Reshape, Flatten, Squeeze and Unsqueeze: by blocks of axes, from what comes out at two batch sizes."""
    x = op.value(0)
    before = list(zip(*(tuple(p.shape) for p in x.probes), strict=True))
    shapes = [_new_shape(op, tuple(p.shape), i) for i, p in enumerate(x.probes)]
    if len(shapes[0]) != len(shapes[1]):
        raise op.fail("the number of axes depends on the batch size")
    after = list(zip(*shapes, strict=True))
    blocks = blocks_of(before, after)
    if blocks is None:
        raise op.fail(f"{x.shape} to {shapes[0]} neither joins nor divides axes")
    return to.call(reshape_by, to.tensor(x), tuple(blocks))


def _new_shape(op: Operator, shape: tuple[int, ...], probe: int) -> tuple[int, ...]:
    """The shape that comes out at a probe, for an input of ``shape``. Raises NotImportable where it is not known."""
    rank = len(shape)
    if op.kind == "Flatten":
        axis = op.get("axis", 1)
        axis = axis + rank if axis < 0 else axis
        return (math.prod(shape[:axis]), math.prod(shape[axis:]))
    if op.kind == "Squeeze":
        axes = op.ints("axes", 1)
        gone = {i for i, n in enumerate(shape) if n == 1} if axes is None else {a % rank for a in axes}
        return tuple(n for i, n in enumerate(shape) if i not in gone)
    if op.kind == "Unsqueeze":
        axes = op.ints("axes", 1) or []
        new = {a % (rank + len(axes)) for a in axes}
        rest = iter(shape)
        return tuple(1 if i in new else next(rest) for i in range(rank + len(axes)))
    value = op.value(1) if len(op.inputs) > 1 else None
    if value is not None and not value.known:
        raise op.fail("the shape is computed from the samples' values")
    asked = op.get("shape") if value is None else [int(n) for n in np.asarray(value.probes[probe]).reshape(-1)]
    keep = not op.get("allowzero", 0)
    sizes = [shape[i] if n == 0 and keep else n for i, n in enumerate(asked)]
    if -1 in sizes:
        known = math.prod(n for n in sizes if n != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // max(1, known)
    if math.prod(sizes) != math.prod(shape):
        raise op.fail(
            f"the shape {sizes} holds for one batch size only: the batch size is baked in; export with a dynamic batch"
        )
    return tuple(sizes)


def _transpose(to: Importer, op: Operator) -> fx.Node:
    rank = op.value(0).rank
    return to.call(torch.permute, to.tensor(op.value(0)), tuple(op.get("perm", range(rank)[::-1])))


def _expand(to: Importer, op: Operator) -> fx.Node:
    """Axes that stay are -1, whatever their size will be."""
    x = op.value(0)
    if not op.value(1).known:
        raise op.fail("the shape is computed from the samples' values")
    shapes = [np.broadcast_shapes(tuple(p.shape), tuple(np.asarray(s).reshape(-1))) for p, s in
              zip(x.probes, op.value(1).probes, strict=True)]  # fmt: skip
    extra = len(shapes[0]) - x.rank
    sizes: list[Any] = []
    for axis, pair in enumerate(zip(*shapes, strict=True)):
        own = tuple(p.shape[axis - extra] for p in x.probes) if axis >= extra else None
        sizes.append(-1 if own == pair else to.size(pair))
    return to.call(expand_by, to.tensor(x), tuple(sizes))


def _tile(to: Importer, op: Operator) -> fx.Node:
    return to.call(torch.tile, to.tensor(op.value(0)), tuple(to.sizes(op.value(1))))


def _concat(to: Importer, op: Operator) -> fx.Node:
    nodes = [to.tensor(op.value(i)) for i in range(len(op.inputs))]
    return to.call(torch.cat, nodes, op.get("axis", 1))


def _split(to: Importer, op: Operator) -> tuple[fx.Node, ...]:
    axis, x = op.get("axis", 0), op.value(0)
    sizes = op.ints("split", 1)
    total, count = x.shape[axis], len(op.outputs)
    if sizes is None:
        each = -(-total // op.get("num_outputs", count))
        sizes = [min(each, total - each * i) for i in range(count)]
    # Equal parts stay equal when channels are cut.
    even = len(set(sizes)) == 1
    parts = to.call(torch.chunk, to.tensor(x), count, axis) if even else to.call(torch.split, to.tensor(x), sizes, axis)
    return tuple(to.call(functions.item, parts, i) for i in range(count))


def _slice(to: Importer, op: Operator) -> fx.Node:
    x = op.value(0)
    if "starts" in op.attributes:
        pairs: list[list[tuple[int, ...]]] = [[(n, n) for n in op.get(name)] for name in ("starts", "ends")]
    else:
        pairs = [_pairs(_known(op, i)) for i in (1, 2)]
    axes = op.ints("axes", 3) or list(range(len(pairs[0])))
    steps = op.ints("steps", 4) or [1] * len(axes)
    bounds = []
    for axis, start, stop, step in zip(axes, *pairs, steps, strict=True):
        sizes = tuple(p.shape[axis] for p in x.probes)
        if step < 0 and not (start[0] in (-1, sizes[0] - 1) or start[0] >= sizes[0]):
            raise op.fail(f"steps backwards from {start[0]}")
        if step < 0 and stop[0] > -sizes[0] - 1:
            raise op.fail(f"steps backwards to {stop[0]}")
        if step < 0:
            bounds.append((None, None, step))
            continue
        whole = all(s >= n for s, n in zip(stop, sizes, strict=True))
        bounds.append((to.size(start) or None, None if whole else to.size(stop), step))
    return to.call(functions.sliced, to.tensor(x), tuple(a % x.rank for a in axes), tuple(bounds))


def _pairs(value: Value) -> list[tuple[int, ...]]:
    """Of each whole number in a vector, what it is at both probes."""
    return list(zip(*(np.asarray(p).reshape(-1).tolist() for p in value.probes), strict=True))


def _known(op: Operator, position: int) -> Value:
    value = op.value(position)
    if not value.known:
        raise op.fail(f"input {position} ({value.name}) is computed from the samples' values")
    return value


def _gather(to: Importer, op: Operator) -> fx.Node:
    data, index = op.value(0), op.value(1)
    axis = op.get("axis", 0) % data.rank
    table = layers.embedding(to, op) if axis == 0 else None
    if table is not None:
        return table
    if not index.constant:
        return to.call(functions.taken, to.tensor(data), to.tensor(index), axis)
    chosen = np.asarray(index.probes[0])
    if chosen.ndim == 0:
        return to.call(torch.select, to.tensor(data), axis, int(chosen))
    if chosen.ndim == 1 and len(chosen) and (chosen >= 0).all() and (np.diff(chosen) == 1).all():
        return to.call(functions.sliced, to.tensor(data), (axis,), ((int(chosen[0]), int(chosen[-1]) + 1, 1),))
    return to.call(functions.taken, to.tensor(data), to.tensor(index), axis)


def _gather_elements(to: Importer, op: Operator) -> fx.Node:
    return to.call(torch.gather, to.tensor(op.value(0)), op.get("axis", 0), to.tensor(op.value(1)))


def _cast(to: Importer, op: Operator) -> fx.Node:
    kind = op.get("to")
    try:
        wanted = torch.from_numpy(np.zeros(1, onnx.helper.tensor_dtype_to_np_dtype(kind))).dtype
    except TypeError:
        raise op.fail(f"to type {onnx.TensorProto.DataType.Name(kind)}") from None
    return to.call(functions.cast_to, to.tensor(op.value(0)), wanted)


def _where(to: Importer, op: Operator) -> fx.Node:
    return to.call(torch.where, *(to.tensor(op.value(i)) for i in range(3)))


def _identity(to: Importer, op: Operator) -> Any:
    found = to.tensor(op.value(0))
    return (found,) + (None,) * (len(op.outputs) - 1)


def _einsum(to: Importer, op: Operator) -> fx.Node:
    return to.call(torch.einsum, op.get("equation"), *(to.tensor(op.value(i)) for i in range(len(op.inputs))))


def _depth(to: Importer, op: Operator) -> fx.Node:
    if op.kind == "SpaceToDepth":
        return to.call(functions.blocks_to_depth, to.tensor(op.value(0)), op.get("blocksize"))
    function = F.pixel_shuffle if op.get("mode", "DCR") == "CRD" else functions.depth_to_blocks
    return to.call(function, to.tensor(op.value(0)), op.get("blocksize"))


def _cumsum(to: Importer, op: Operator) -> fx.Node:
    if op.get("exclusive", 0) or op.get("reverse", 0):
        raise op.fail("exclusive or reverse")
    return to.call(torch.cumsum, to.tensor(op.value(0)), int(op.array(1).reshape(-1)[0]))


def _trilu(to: Importer, op: Operator) -> fx.Node:
    diagonal = int(op.array(1).reshape(-1)[0]) if op.has(1) else 0
    return to.call(torch.triu if op.get("upper", 1) else torch.tril, to.tensor(op.value(0)), diagonal)


def _feature(to: Importer, op: Operator) -> fx.Node:
    return to.call(functions.feature, to.tensor(op.value(0)), to.tensor(op.value(1)))


def _scaler(to: Importer, op: Operator) -> fx.Node:
    found = to.tensor(op.value(0))
    for name, function, default in (("offset", torch.sub, 0.0), ("scale", torch.mul, 1.0)):
        array = np.atleast_1d(np.asarray(op.get(name, default), np.float32))
        found = to.call(function, found, to.tensor(Value(f"{op.name}_{name}", (array, array))))
    return found


_TABLE: dict[str, Build] = {
    **{kind: partial(_unary, function) for kind, function in _UNARY.items()},
    **{kind: partial(_binary, function) for kind, function in _BINARY.items()},
    **{kind: partial(_reduce, function) for kind, function in _REDUCE.items()},
    **dict.fromkeys(("HardSigmoid", "Gelu", "ThresholdedRelu", "Swish"), _activation),
    **dict.fromkeys(("Selu", "LeakyRelu", "Elu", "Celu"), _activation),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax), **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _depth),
    **dict.fromkeys(("Identity", "Dropout"), _identity),
    "Sum": partial(_variadic, torch.add), "Mean": partial(_variadic, torch.add),
    "Max": partial(_variadic, torch.maximum), "Min": partial(_variadic, torch.minimum),
    "ArgMax": partial(_arg, torch.argmax), "ArgMin": partial(_arg, torch.argmin),
    "Clip": _clip, "Transpose": _transpose, "Expand": _expand, "Tile": _tile, "Concat": _concat, "Split": _split,
    "Slice": _slice, "Gather": _gather, "GatherElements": _gather_elements, "Cast": _cast, "Where": _where,
    "Einsum": _einsum, "CumSum": _cumsum, "Trilu": _trilu,
    **pooling.TABLE, **layers.TABLE,
}  # fmt: skip
_ML: dict[str, Build] = {"ArrayFeatureExtractor": _feature, "Scaler": _scaler, "Identity": _identity}
Builders = Mapping[tuple[str, str], Build]
"""(domain, operator) -> what builds it, for operators that are not of ONNX."""


def find(domain: str, kind: str, own: Builders | None = None) -> Build | None:
    """What builds an operator, ``own`` ones included; None where it is not covered."""
    if domain in ("", "ai.onnx"):
        return _TABLE.get(kind)
    return _ML.get(kind) if domain == "ai.onnx.ml" else (own or {}).get((domain, kind))


def check_covered(model: onnx.ModelProto, own: Builders | None = None) -> None:
    """Raise NotImportable for control flow and operators that are not covered, all of them named."""
    kinds = Counter((node.domain, node.op_type) for node in model.graph.node)
    control = sorted(kind for _, kind in kinds if kind in _CONTROL)
    if control:
        raise NotImportable(f"it has control flow ({', '.join(control)})")
    unknown = [
        f"{domain}.{kind}" if domain not in ("", "ai.onnx") else kind
        for domain, kind in kinds
        if find(domain, kind, own) is None and kind not in _FOLDED
    ]
    if unknown:
        raise NotImportable(f"operator{'s' * (len(unknown) > 1)} {', '.join(sorted(unknown))} not covered")

"""How labels pass through operators: a rule for each kind, from the labels of its arguments to those of its results.

What an operator ties together is united on the way: a sum its terms, a product of matrices the contracted dimensions,
a convolution its input and its filters. The rules are few and may be generous: an operator that keeps the shape keeps
the labels. What is claimed here is put to the test by the permutation check (``pruning/permutation_check.py``). An
operator that is not known and changes the shape freezes what reaches it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from compress.tracing.calls import OperatorCall
from compress.tracing.labels import FIXED, FREE, Axis, Labels

_CONSTANTS = ("new_", "zeros", "ones", "full", "empty", "rand", "arange")
Rule = Callable[[OperatorCall], list[Labels]]
"""Gives the labels of each output of an operator, and unites or freezes those of its inputs."""


def output_labels(call: OperatorCall) -> list[Labels]:
    """The labels of each output of an operator: by the rule for its name, else by what kind of operator it is."""
    rule = RULES.get(call.name)
    if rule is not None:
        return rule(call)
    if call.name.startswith(_CONSTANTS) or not call.tensors():
        return [call.mode.labels(t) for t in call.outputs]
    if call.pointwise:
        return [_pointwise(call)[0] for _ in call.outputs]
    first = call.tensors()[0]
    if all(t.shape == first.shape for t in call.outputs):
        return [call.mode.labels(first) for _ in call.outputs]
    return call.unknown()


def _pointwise(call: OperatorCall) -> list[Labels]:
    tensors = [t for t in call.tensors() if t.ndim]
    shape = call.outputs[0].shape
    found = [np.full(n, FREE) for n in shape]
    for tensor in tensors:
        for back, label in enumerate(reversed(call.mode.labels(tensor)), start=1):
            if back <= len(shape) and len(label) == shape[-back] and len(label) > 1:
                found[-back] = call.atoms.unite(found[-back], label)
    return [found]


def _view(call: OperatorCall) -> list[Labels]:
    tensor = call.tensors()[0]
    return [call.atoms.view(call.mode.labels(tensor), tensor.shape, call.outputs[0].shape)]


def _transpose(call: OperatorCall) -> list[Labels]:
    labels = list(call.of("self"))
    if labels:
        a, b = call.args["dim0"], call.args["dim1"]
        labels[a], labels[b] = labels[b], labels[a]
    return [labels]


def _t(call: OperatorCall) -> list[Labels]:
    return [call.of("self")[::-1]]


def _permute(call: OperatorCall) -> list[Labels]:
    labels = call.of("self")
    return [[labels[d] for d in call.args["dims"]]]


def _expand(call: OperatorCall) -> list[Labels]:
    labels, shape = call.of("self"), call.outputs[0].shape
    new = len(shape) - len(labels)
    return [
        [labels[d - new] if d >= new and len(labels[d - new]) == n else np.full(n, FREE) for d, n in enumerate(shape)]
    ]


def _repeat(call: OperatorCall) -> list[Labels]:
    labels, times = call.of("self"), call.args["repeats"]
    new = len(times) - len(labels)
    padded = [np.full(1, FREE)] * new + labels
    return [[np.tile(label, n) for label, n in zip(padded, times, strict=True)]]


def _select(call: OperatorCall) -> list[Labels]:
    labels = list(call.of("self"))
    taken = labels.pop(call.args["dim"])
    call.atoms.freeze(taken, "its parts are picked by their place")
    return [labels for _ in call.outputs]


def _slice(call: OperatorCall) -> list[Labels]:
    labels = list(call.of("self"))
    start, end, step, dim = call.args.get("start"), call.args.get("end"), call.args["step"], call.args["dim"]
    whole = labels[dim]
    labels[dim] = whole[start:end:step]
    if step == 1 and len(labels[dim]) < len(whole):
        call.mode.found.parts.append(labels[dim])
    if step > 1 and len(whole) % step == 0 and (whole > FIXED).all():
        # Every second of them: they go in pairs, or the others would be taken.
        _, columns = call.atoms.divide(whole, len(whole) // step, step)
        call.atoms.freeze(columns, "its parts are picked by their place")
    return [labels]


def _split(call: OperatorCall) -> list[Labels]:
    labels, dim = call.of("self"), call.args["dim"]
    found, start = [], 0
    for output in call.outputs:
        end = start + output.shape[dim]
        part = list(labels)
        part[dim] = labels[dim][start:end]
        found.append(part)
        start = end
    if "split_sizes" in call.args or len({len(part[dim]) for part in found}) > 1:
        call.mode.found.parts += [part[dim] for part in found]
    return found


def _glu(call: OperatorCall) -> list[Labels]:
    labels, dim = list(call.of("self")), call.args["dim"]
    half = len(labels[dim]) // 2
    labels[dim] = call.atoms.unite(labels[dim][:half], labels[dim][half:])
    return [labels]


def _cat(call: OperatorCall) -> list[Labels]:
    tensors = [t for t in call.args["tensors"] if t.ndim == call.outputs[0].ndim]
    dim = call.args["dim"] % call.outputs[0].ndim
    labels = list(call.mode.labels(tensors[0]))
    for tensor in tensors[1:]:
        for d, label in enumerate(call.mode.labels(tensor)):
            labels[d] = np.concatenate([labels[d], label]) if d == dim else call.atoms.unite(labels[d], label)
    return [labels]


def _stack(call: OperatorCall) -> list[Labels]:
    tensors, dim = call.args["tensors"], call.args["dim"] % call.outputs[0].ndim
    labels = list(call.mode.labels(tensors[0]))
    for tensor in tensors[1:]:
        labels = [call.atoms.unite(a, b) for a, b in zip(labels, call.mode.labels(tensor), strict=True)]
    return [[*labels[:dim], np.full(len(tensors), FIXED), *labels[dim:]]]


def _pad(call: OperatorCall) -> list[Labels]:
    labels, pad = list(call.of("self")), list(call.args["pad"])
    for k in range(len(pad) // 2):
        dim = len(labels) - 1 - k
        low, high = pad[2 * k], pad[2 * k + 1]
        label = labels[dim][max(0, -low) : len(labels[dim]) - max(0, -high)]
        labels[dim] = np.concatenate([np.full(max(low, 0), FIXED), label, np.full(max(high, 0), FIXED)])
    return [labels]


def _index(call: OperatorCall) -> list[Labels]:
    """Indexing by one list of integers along one dimension; anything else is not followed."""
    given = call.args["indices"] if "indices" in call.args else [call.args["index"]]
    at = [d for d, index in enumerate(given) if index is not None]
    dim = at[0] if "indices" in call.args else call.args["dim"]
    index = given[at[0]]
    if len(at) != 1 or index.ndim != 1 or index.dtype == torch.bool:
        return call.unknown()
    labels = list(call.of("self"))
    labels[dim] = labels[dim][index.cpu().numpy()]
    return [labels]


def _reduce(call: OperatorCall, *, mixes: bool = True) -> list[Labels]:
    if "other" in call.args:  # max and min of two tensors
        return _pointwise(call)
    labels = call.of("self")
    dims = call.args.get("dim")
    dims = range(len(labels)) if dims is None or dims == [] else ([dims] if isinstance(dims, int) else dims)
    gone = {d % len(labels) for d in dims} if labels else set()
    if mixes:
        for d in gone:
            call.mix(labels[d])
    if call.args.get("keepdim"):
        left = [np.full(1, FREE) if d in gone else label for d, label in enumerate(labels)]
    else:
        left = [label for d, label in enumerate(labels) if d not in gone]
    return [left for _ in call.outputs]


def _sum(call: OperatorCall) -> list[Labels]:
    return _reduce(call, mixes=False)


def _softmax(call: OperatorCall) -> list[Labels]:
    labels = call.of("self")
    call.mix(labels[call.args["dim"]])
    return [labels]


def _matmul(call: OperatorCall) -> list[Labels]:
    """mm, bmm, addmm, baddbmm: the last dimension of the one against the last but one of the other."""
    first = next((n for n in ("mat1", "batch1") if n in call.args), "self")
    second = "batch2" if "batch2" in call.args else "mat2"
    a, b = call.of(first), call.of(second)
    call.atoms.unite(a[-1], b[-2])
    call.sum_over(first, a[-1])
    call.sum_over(second, b[-2])
    batch = [call.atoms.unite(x, y) for x, y in zip(a[:-2], b[:-2], strict=True)]
    call.mode.found.heads += batch
    labels = [*batch, a[-2], b[-1]]
    if first != "self":
        for back, label in enumerate(reversed(call.of("self")), start=1):
            if len(label) == len(labels[-back]) > 1:
                labels[-back] = call.atoms.unite(labels[-back], label)
    return [labels]


def _vector(call: OperatorCall) -> list[Labels]:
    """mv and dot: one dimension is contracted."""
    a, b = call.tensors()[-2:]
    first, second = call.mode.labels(a), call.mode.labels(b)
    call.atoms.unite(first[-1], second[0])
    return [first[:-1]]


def _trilinear(call: OperatorCall) -> list[Labels]:
    """A bilinear layer: (batch, a) and (batch, b) with a weight of (out, a, b)."""
    first, weight, second = call.of("i1"), call.of("i2"), call.of("i3")
    if (len(first), len(weight), len(second), call.outputs[0].ndim) != (2, 3, 2, 2):
        return call.unknown()
    call.atoms.unite(first[1], weight[1])
    call.atoms.unite(second[1], weight[2])
    return [[first[0], weight[0]]]


def _convolution(call: OperatorCall) -> list[Labels]:
    x, weight, groups = call.of("input"), call.of("weight"), call.args["groups"]
    transposed = call.args["transposed"]
    channels = len(x[1])
    for taps in weight[2:]:
        call.atoms.fix(taps)
    if groups == 1:
        call.atoms.unite(x[1], weight[0 if transposed else 1])
        call.sum_over("weight", weight[0 if transposed else 1])
        out = weight[1 if transposed else 0]
    elif groups == channels and not transposed:
        out = call.atoms.unite(weight[0], np.repeat(x[1], len(weight[0]) // channels))
    elif groups == channels and len(weight[1]) == 1:
        out = call.atoms.unite(weight[0], x[1])
    elif transposed:
        call.atoms.freeze(x[1], "a grouped transposed convolution is not supported")
        out = np.full(call.outputs[0].shape[1], FIXED)
    else:
        out = weight[0]
        call.atoms.fix(weight[1])
        call.mode.found.blocks += [(x[1], groups), (out, groups)]
        for name in call.mode.names.get(id(call.args["weight"]), []):
            axis = Axis(name, 1, x[1], grouped=True)
            known = [a for a in call.mode.found.axes if (a.tensor, a.grouped) == (name, True)]
            for other in known:
                call.atoms.unite(other.labels, x[1])
            if not known:
                call.mode.found.axes.append(axis)
    if isinstance(call.args.get("bias"), Tensor):
        out = call.atoms.unite(out, call.of("bias")[0])
    return [[x[0], out, *call.fixed()[2:]]]


def _batch_norm(call: OperatorCall) -> list[Labels]:
    labels = list(call.of("input"))
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(call.args.get(name), Tensor):
            labels[1] = call.atoms.unite(labels[1], call.of(name)[0])
    return [labels, *(call.fixed(i) for i in range(1, len(call.outputs)))]


def _layer_norm(call: OperatorCall) -> list[Labels]:
    labels = list(call.of("input"))
    size = len(call.args["normalized_shape"])
    for name in ("weight", "bias"):
        if isinstance(call.args.get(name), Tensor):
            for back, label in enumerate(reversed(call.of(name)), start=1):
                labels[-back] = call.atoms.unite(labels[-back], label)
    for label in labels[-size:]:
        call.mix(label)
    return [labels, *(call.fixed(i) for i in range(1, len(call.outputs)))]


def _group_norm(call: OperatorCall) -> list[Labels]:
    labels = list(call.of("input"))
    for name in ("weight", "bias"):
        if isinstance(call.args.get(name), Tensor):
            labels[1] = call.atoms.unite(labels[1], call.of(name)[0])
    call.mode.found.blocks.append((labels[1], call.args["group"]))
    call.mix(labels[1])
    return [labels, *(call.fixed(i) for i in range(1, len(call.outputs)))]


def _embedding(call: OperatorCall) -> list[Labels]:
    weight = call.of("weight")
    call.atoms.freeze(weight[0], "it is a vocabulary")
    return [[*call.of("indices"), weight[1]]]


def _spatial(call: OperatorCall) -> list[Labels]:
    """Pooling, resizing, padding of images: batch and channels stay what they are."""
    labels = call.mode.labels(call.tensors()[0])
    digits = [int(c) for c in call.name if c.isdigit()]
    image = digits[0] if digits else max(len(labels) - 2, 1)
    kept = len(labels) - image
    return [labels[:kept] + [np.full(n, FIXED) for n in t.shape[kept:]] for t in call.outputs]


def _pixel_shuffle(call: OperatorCall) -> list[Labels]:
    labels, r = call.of("self"), call.args["upscale_factor"]
    channels, inner = call.atoms.divide(labels[-3], len(labels[-3]) // r**2, r**2)
    call.atoms.freeze(inner, "they are the pixels of a pixel shuffle")
    return [[*labels[:-3], channels, *call.fixed()[-2:]]]


def _pixel_unshuffle(call: OperatorCall) -> list[Labels]:
    labels, r = call.of("self"), call.args["downscale_factor"]
    return [[*labels[:-3], np.repeat(labels[-3], r**2), *call.fixed()[-2:]]]


def _channel_shuffle(call: OperatorCall) -> list[Labels]:
    labels, groups = list(call.of("self")), call.args["groups"]
    rows, columns = call.atoms.divide(labels[1], groups, len(labels[1]) // groups)
    labels[1] = call.atoms.merge(columns, rows)
    return [labels]


def _same(names: list[str], rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


RULES: dict[str, Rule] = {
    **_same(
        ["view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten", "unflatten"], _view
    ),
    **_same(["transpose", "swapaxes"], _transpose),
    "t": _t,
    "permute": _permute,
    "expand": _expand,
    "repeat": _repeat,
    **_same(["select", "unbind"], _select),
    "slice": _slice,
    **_same(["split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk"], _split),
    "glu": _glu,
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _pad,
    **_same(["index", "index_select"], _index),
    **_same(
        ["mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "max", "min", "logsumexp", "prod", "argmax"],
        _reduce,
    ),
    **_same(["sum", "norm", "linalg_vector_norm", "any", "all"], _sum),
    **_same(["_softmax", "_log_softmax", "_safe_softmax"], _softmax),
    **_same(["mm", "bmm", "addmm", "baddbmm"], _matmul),
    **_same(["mv", "dot", "addmv"], _vector),
    "_trilinear": _trilinear,
    "_prelu_kernel": lambda call: [_pointwise(call)[0] for _ in call.outputs],
    **_same(["convolution", "_convolution"], _convolution),
    **_same(
        ["native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"],
        _batch_norm,
    ),
    **_same(["native_layer_norm", "_fused_rms_norm"], _layer_norm),
    "native_group_norm": _group_norm,
    "embedding": _embedding,
    **_same(
        [
            *(
                f"{kind}_pool{n}d"
                for kind in ("avg", "_adaptive_avg", "adaptive_avg", "adaptive_max")
                for n in (1, 2, 3)
            ),
            *(f"max_pool{n}d_with_indices" for n in (2, 3)),
            *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
            *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
            *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
            *("upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d"),
            "upsample_trilinear3d",
        ],
        _spatial,
    ),
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    **_same(["channel_shuffle", "native_channel_shuffle"], _channel_shuffle),
}

"""ONNX operators on neighbourhoods: padding, pooling, resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from compress.onnx_import.importer import Importer, Operator

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def paddings(
    op: Operator, shape: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding (before, after) of each spatial axis, ``auto_pad`` resolved for inputs of this spatial ``shape``."""
    dims, auto = len(kernel), op.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = op.get("pads", [0] * 2 * dims)
        return list(pads[:dims]), list(pads[dims:])
    if auto == "VALID":
        return [0] * dims, [0] * dims
    before, after = [], []
    for n, k, s, d in zip(shape, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
        small = total // 2
        before.append(total - small if auto == "SAME_LOWER" else small)
        after.append(small if auto == "SAME_LOWER" else total - small)
    return before, after


def _around(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """As ``F.pad`` takes them: the last axis first."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


def mean_of_inside(x: Tensor, pad: list[int], kernel: Any, strides: Any, ceil: bool) -> Tensor:
    """Average pooling of ``x`` with uneven padding, ``pad`` as ``F.pad`` takes it, that does not count in the mean."""
    pool = _MEAN[len(kernel)]
    ones = torch.ones_like(x[:1, :1])
    total = pool(F.pad(x, pad), kernel, strides, 0, ceil)
    return total / pool(F.pad(ones, pad), kernel, strides, 0, ceil)


def _pool(to: Importer, op: Operator) -> fx.Node:
    x = op.value(0)
    kernel = tuple(op.get("kernel_shape"))
    dims = len(kernel)
    if dims not in _MAX or len(op.outputs) > 1:
        raise op.fail(f"kernel {kernel}" if dims not in _MAX else "indices as a second output")
    strides, dilations = tuple(op.get("strides", [1] * dims)), tuple(op.get("dilations", [1] * dims))
    before, after = paddings(op, x.shape[2:], kernel, strides, dilations)
    ceil, even = bool(op.get("ceil_mode", 0)), before == after
    fits = even and all(2 * p <= k for p, k in zip(before, kernel, strict=True))
    node, pad = to.tensor(x), _around(before, after)
    if op.kind == "MaxPool":
        if not fits:
            node, before = to.call(F.pad, node, pad, "constant", -math.inf), [0] * dims
        return to.call(_MAX[dims], node, kernel, strides, tuple(before), dilations, ceil)
    if any(d != 1 for d in dilations):
        raise op.fail("dilations")
    counted = bool(op.get("count_include_pad", 0))
    if fits:
        return to.call(_MEAN[dims], node, kernel, strides, tuple(before), ceil, counted)
    if not counted:
        return to.call(mean_of_inside, node, pad, kernel, strides, ceil)
    return to.call(_MEAN[dims], to.call(F.pad, node, pad), kernel, strides, 0, ceil)


def _global_pool(to: Importer, op: Operator) -> fx.Node:
    x = op.value(0)
    axes = tuple(range(2, x.rank))
    return to.call(torch.amax if op.kind == "GlobalMaxPool" else torch.mean, to.tensor(x), axes, True)


def _pad(to: Importer, op: Operator) -> fx.Node:
    x, mode = op.value(0), op.get("mode", "constant")
    pads = op.ints("pads", 1) or op.get("paddings") or []
    before, after = [0] * x.rank, [0] * x.rank
    half = len(pads) // 2
    for i, axis in enumerate(op.ints("axes", 3) or range(half)):
        before[axis], after[axis] = pads[i], pads[half + i]
    value = float(op.array(2).reshape(-1)[0]) if op.has(2) else op.get("value", 0.0)
    if mode == "constant":
        return to.call(F.pad, to.tensor(x), _around(before, after), "constant", value)
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in names or any(before[:2]) or any(after[:2]):
        raise op.fail(f"mode {mode} on the first two axes" if mode in names else f"mode {mode}")
    return to.call(F.pad, to.tensor(x), _around(before[2:], after[2:]), names[mode])


def _resize(to: Importer, op: Operator) -> fx.Node:
    """Upsample, and Resize where torch's ``interpolate`` knows the same grid; the parity check has the last word."""
    x, mode = op.value(0), op.get("mode", "nearest")
    # Resize of opset 10 and Upsample take the scales second.
    position = 2 if op.kind == "Resize" and op.opset >= 11 else 1
    grid = op.get("coordinate_transformation_mode", "half_pixel" if position == 2 else "asymmetric")
    if op.ints("axes", 99) is not None or grid == "tf_crop_and_resize":
        raise op.fail(f"axes or {grid}")
    name, align = _interpolation(op, mode, grid, x.rank)
    smooth = bool(op.get("antialias", 0))
    if op.has(3):
        sizes = tuple(to.sizes(op.value(3))[2:])
        return to.call(F.interpolate, to.tensor(x), sizes, None, name, align, antialias=smooth)
    scales = op.get("scales") or [float(n) for n in op.array(position).reshape(-1)]
    if scales[:2] != [1.0, 1.0]:
        raise op.fail(f"scales {scales}")
    return to.call(F.interpolate, to.tensor(x), None, tuple(scales[2:]), name, align, antialias=smooth)


def _interpolation(op: Operator, mode: str, grid: str, rank: int) -> tuple[str, bool | None]:
    """Torch's name for the mode, and ``align_corners``."""
    if mode == "nearest":
        floor = grid == "asymmetric" and op.get("nearest_mode", "floor") == "floor"
        exact = grid == "half_pixel" and op.get("nearest_mode", "round_prefer_floor").startswith("round")
        if not (floor or exact or op.opset < 11):
            raise op.fail(f"nearest, {grid}, {op.get('nearest_mode')}")
        return ("nearest-exact" if exact and op.opset >= 11 else "nearest"), None
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}.get(rank, "")
    name = linear if mode == "linear" else "bicubic" if mode == "cubic" and rank == 4 else ""
    if not name or grid not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise op.fail(f"{mode}, {grid}, {rank} axes")
    if mode == "cubic" and abs(op.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
        raise op.fail("cubic_coeff_a")
    return name, grid == "align_corners"


def _lrn(to: Importer, op: Operator) -> fx.Node:
    numbers = op.get("size"), op.get("alpha", 1e-4), op.get("beta", 0.75), op.get("bias", 1.0)
    return to.call(F.local_response_norm, to.tensor(op.value(0)), *numbers)


TABLE: dict[str, Any] = {
    "MaxPool": _pool, "AveragePool": _pool, "GlobalAveragePool": _global_pool, "GlobalMaxPool": _global_pool,
    "Pad": _pad, "Resize": _resize, "Upsample": _resize, "LRN": _lrn,
}  # fmt: skip

"""What an imported network computes between its layers: ONNX operators for which torch has no one function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def divide(a: Any, b: Any) -> Any:
    """Whole numbers are divided as in C."""
    whole = not any(isinstance(x, float) or (isinstance(x, Tensor) and x.is_floating_point()) for x in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def cast_to(x: Tensor, kind: torch.dtype) -> Tensor:
    """To ``kind``; of two float types the network's own stays."""
    return x if kind.is_floating_point and x.is_floating_point() else x.to(kind)


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """max(0, min(1, alpha x + beta))."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def softmax_of_rest(x: Tensor, axis: int, log: bool) -> Tensor:
    """Softmax of older opsets: over all axes from ``axis`` on."""
    flat = x.flatten(axis)
    return (F.log_softmax(flat, -1) if log else F.softmax(flat, -1)).reshape(x.shape)


def sliced(x: Tensor, axes: tuple[int, ...], bounds: tuple[tuple[Any, Any, int], ...]) -> Tensor:
    """(start, stop, step) for each axis; a step of -1 reads the axis from its end."""
    for axis, (start, stop, step) in zip(axes, bounds, strict=True):
        if step < 0:
            x, step = x.flip(axis), -step
        index: list[Any] = [slice(None)] * x.dim()
        index[axis] = slice(start, stop, step)
        x = x[tuple(index)]
    return x


def taken(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Gather: the axis replaced by the shape of ``index``."""
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = torch.index_select(x, axis, index.reshape(-1))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def log_sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """Logarithm of the sum."""
    return x.sum(dims, keep).log()


def square_sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """Sum of squares."""
    return (x * x).sum(dims, keep)


def sum_of_sizes(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """L1 norm."""
    return x.abs().sum(dims, keep)


def euclidean(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """L2 norm."""
    return (x * x).sum(dims, keep).sqrt()


def blocks_to_depth(x: Tensor, size: int) -> Tensor:
    """(n, c, h, w) -> (n, c size^2, h / size, w / size), block positions first."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * size * size, h // size, w // size)


def depth_to_blocks(x: Tensor, size: int) -> Tensor:
    """(n, c, h, w) -> (n, c / size^2, h size, w size), block positions first (DCR)."""
    n, c, h, w = x.shape
    parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // size**2, h * size, w * size)


def feature(x: Tensor, index: Tensor) -> Tensor:
    """Columns of the last axis."""
    return x.index_select(-1, index.reshape(-1))


def swish(x: Tensor, alpha: float) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * torch.sigmoid(alpha * x)


def add_to(a: float, b: Tensor) -> Tensor:
    """A number plus a tensor."""
    return b + a


def subtract_from(a: float, b: Tensor) -> Tensor:
    """A number minus a tensor."""
    return a - b


def multiply(a: float, b: Tensor) -> Tensor:
    """A number times a tensor."""
    return b * a


def item(parts: Any, i: int) -> Tensor:
    """One of several tensors."""
    found: Tensor = parts[i]
    return found

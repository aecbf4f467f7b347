"""What an imported network computes between its layers: ONNX operators for which torch has no one function.

They are called by name in the code that ``torch.fx`` writes, so they are plain functions of tensors and numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def divide(a: Any, b: Any) -> Any:
    """Div: ``a / b``; where both are whole numbers, rounded towards zero, as in C."""
    whole = not any(isinstance(x, float) or (isinstance(x, Tensor) and x.is_floating_point()) for x in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def cast_to(x: Tensor, kind: torch.dtype) -> Tensor:
    """Cast: ``x`` as ``kind``; from one float type to another, ``x`` as it is: the network computes in its own."""
    return x if kind.is_floating_point and x.is_floating_point() else x.to(kind)


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """HardSigmoid: max(0, min(1, alpha x + beta))."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def softmax_of_rest(x: Tensor, axis: int, log: bool) -> Tensor:
    """Softmax of opsets before 13: over all axes from ``axis`` on, taken together; ``log``: its logarithm."""
    flat = x.flatten(axis)
    return (F.log_softmax(flat, -1) if log else F.softmax(flat, -1)).reshape(x.shape)


def sliced(x: Tensor, axes: tuple[int, ...], bounds: tuple[tuple[Any, Any, int], ...]) -> Tensor:
    """Slice: of each of ``axes`` the positions (start, stop, step); a step below 0 reads the axis from its end."""
    for axis, (start, stop, step) in zip(axes, bounds, strict=True):
        if step < 0:
            x, step = x.flip(axis), -step
        index: list[Any] = [slice(None)] * x.dim()
        index[axis] = slice(start, stop, step)
        x = x[tuple(index)]
    return x


def taken(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Gather: the parts of ``x`` at ``index`` along ``axis``, which the axes of ``index`` take the place of."""
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = torch.index_select(x, axis, index.reshape(-1))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def log_sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """ReduceLogSum: the logarithm of the sum over ``dims``; ``keep``: as axes of size 1."""
    return x.sum(dims, keep).log()


def square_sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """ReduceSumSquare: the sum of squares over ``dims``; ``keep``: as axes of size 1."""
    return (x * x).sum(dims, keep)


def sum_of_sizes(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """ReduceL1: the sum of absolute values over ``dims``; ``keep``: as axes of size 1."""
    return x.abs().sum(dims, keep)


def euclidean(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    """ReduceL2: the root of the sum of squares over ``dims``; ``keep``: as axes of size 1."""
    return (x * x).sum(dims, keep).sqrt()


def blocks_to_depth(x: Tensor, size: int) -> Tensor:
    """SpaceToDepth: (n, c, h, w) -> (n, c size^2, h / size, w / size), positions in the block before channels."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * size * size, h // size, w // size)


def depth_to_blocks(x: Tensor, size: int) -> Tensor:
    """DepthToSpace in mode DCR: (n, c, h, w) -> (n, c / size^2, h size, w size), the inverse of SpaceToDepth."""
    n, c, h, w = x.shape
    parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // size**2, h * size, w * size)


def feature(x: Tensor, index: Tensor) -> Tensor:
    """ArrayFeatureExtractor: the columns of the last axis at ``index``."""
    return x.index_select(-1, index.reshape(-1))


def swish(x: Tensor, alpha: float) -> Tensor:
    """Swish with a factor: x sigmoid(alpha x)."""
    return x * torch.sigmoid(alpha * x)


def add_to(a: float, b: Tensor) -> Tensor:
    """Add of a number and a tensor: a + b."""
    return b + a


def subtract_from(a: float, b: Tensor) -> Tensor:
    """Sub of a number and a tensor: a - b."""
    return a - b


def multiply(a: float, b: Tensor) -> Tensor:
    """Mul of a number and a tensor: a b."""
    return b * a


def item(parts: Any, i: int) -> Tensor:
    """The ``i``-th of several tensors, such as the parts of a Split."""
    found: Tensor = parts[i]
    return found

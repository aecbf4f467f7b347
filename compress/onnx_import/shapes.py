"""Shapes that stay right when channels are cut and the batch changes.

An ONNX file says ``Reshape`` to ``[-1, 64]`` where the network meant "join the last three axes". From the shapes
before and after, at two batch sizes, the meaning is found again: blocks of axes that are joined or divided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

AxisBlock = tuple[int, int, tuple[Any, ...]]
"""Axes [start, stop) of the input become these sizes; None is what is left."""
Dims = Sequence[tuple[int, ...]]
"""For each axis, its size at both probes."""


def of_batch(x: Tensor, slope: int, offset: int) -> Any:
    """A size that depends on the batch: ``slope * batch + offset``, the batch being the first axis of ``x``."""
    return x.shape[0] * slope + offset if offset else x.shape[0] * slope if slope != 1 else x.shape[0]


def reshape_by(x: Tensor, blocks: Sequence[AxisBlock]) -> Tensor:
    """``x`` reshaped block by block; in each, what is None takes what the others leave."""
    sizes: list[Any] = []
    for start, stop, parts in blocks:
        whole = math.prod(x.shape[start:stop])
        rest = math.prod(part for part in parts if part is not None)
        sizes += [(whole if rest == 1 else whole // rest) if part is None else part for part in parts]
    return x.reshape(sizes)


def expand_by(x: Tensor, sizes: Sequence[Any]) -> Tensor:
    """``x`` expanded to ``sizes``, where -1 keeps an axis; axes may be added in front."""
    return x.expand(*sizes)


def blocks_of(before: Dims, after: Dims) -> list[AxisBlock] | None:
    """How axes of sizes ``before`` become ``after``: the finest blocks of equal product; None where there are none.

    In a block, one part stays open: the one that grows with the batch, else the last; heads and groups, which come
    first, keep their number.
    """
    blocks: list[AxisBlock] = []
    i = j = 0
    while i < len(before) or j < len(after):
        start, first = i, j
        # At least one axis of each, as far as there are any.
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while (products := (_product(before[start:i]), _product(after[first:j])))[0] != products[1]:
            if sum(products[0]) < sum(products[1]) and i < len(before):
                i += 1
            elif j < len(after):
                j += 1
            elif i < len(before):
                i += 1
            else:
                return None
        blocks.append((start, i, _parts(after[first:j], len(before) > start)))
    return blocks


def _parts(sizes: Dims, some: bool) -> tuple[Any, ...]:
    """One open part, the others as they are."""
    if not sizes:
        return ()
    varying = [k for k, size in enumerate(sizes) if size[0] != size[1]]
    if len(varying) > 1 or not some:
        return tuple(size[0] for size in sizes)
    open_ = varying[0] if varying else _largest_last(sizes)
    return tuple(None if k == open_ else size[0] for k, size in enumerate(sizes))


def _largest_last(sizes: Dims) -> int:
    """The last part that is more than 1."""
    return max((k for k, size in enumerate(sizes) if size[0] != 1), default=len(sizes) - 1)


def _product(sizes: Dims) -> tuple[int, ...]:
    return tuple(math.prod(size[k] for size in sizes) for k in range(2))

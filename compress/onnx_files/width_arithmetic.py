"""Numbers of a graph that follow from a width, for another width: sizes to reshape to, places to slice or split at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np


class NotRetargetable(Exception):
    """The graph has to be traced anew for these widths; never seen by users."""


def reshaped(
    old: Sequence[int], new: Sequence[int], sizes: Sequence[int], asked: Sequence[int], first: bool
) -> list[int]:
    """What ``sizes``, into which a tensor of shape ``old`` is brought, are for one of shape ``new``.

    Dimensions are matched from the left in blocks of equal products. A block of one size takes what it gets; in one of
    several that size changes which is asked for as -1, else the last that can (or, with ``first``, the first).
    """
    found = list(sizes)
    for taken, given in _blocks(old, sizes):
        before, after = (math.prod(shape[k] for k in taken) for shape in (old, new))
        if before == after:
            continue
        order = sorted(given, key=lambda k: (asked[k] != -1 and not first, k if first else -k))
        for k in order:
            others = math.prod(sizes[i] for i in given if i != k)
            if sizes[k] > 1 and after % others == 0:
                found[k] = after // others
                break
        else:
            raise NotRetargetable(f"{list(old)} reshaped to {list(sizes)} is not told for {list(new)}")
    return found


def _blocks(old: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Stretches of dimensions of both shapes that hold equally many numbers."""
    i = j = 0
    while i < len(old) or j < len(sizes):
        start, begin, a, b = i, j, 1, 1
        if i < len(old):
            a, i = old[i], i + 1
        if j < len(sizes):
            b, j = sizes[j], j + 1
        while a != b:
            if a < b and i < len(old):
                a, i = a * old[i], i + 1
            elif b < a and j < len(sizes):
                b, j = b * sizes[j], j + 1
            else:
                raise NotRetargetable(f"{list(old)} is not reshaped to {list(sizes)}")
        yield range(start, i), range(begin, j)


def scaled(number: int, old: int, new: int) -> int:
    """``number`` of ``old`` channels where ``new`` are left. Raises NotRetargetable where that is not whole."""
    if old == new:
        return number
    if number * new % old:
        raise NotRetargetable(f"{number} of {old} channels is not told for {new}")
    return number * new // old


def pieces(sizes: np.ndarray, whole: int) -> list[int]:
    """The sizes of the parts: those given, or as many of one size as there are, the last maybe smaller."""
    if sizes.ndim:
        return [int(x) for x in sizes]
    each = int(sizes)
    return [min(each, whole - start) for start in range(0, whole, each)]

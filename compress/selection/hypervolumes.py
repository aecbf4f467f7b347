"""Hypervolume: how much of the space in front of a reference point a set of points dominates.

One number for how good a front is, and the only common one that never falls when a front gets better (Zitzler and
Thiele 1998). All coordinates are minimised. Exact: a sweep in two dimensions, above that WFG (While, Bradstreet
and Barone 2012, IEEE Transactions on Evolutionary Computation 16, 86), which adds up what each point dominates and
no later one does:

    hv(S) = sum over i of  box(s_i) - hv({s_j, j > i, each coordinate raised to at least that of s_i})

Exponential in the number of objectives in the worst case; fronts here have tens of points and up to five.
"""

from __future__ import annotations

import numpy as np


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """The volume that ``points`` dominate in front of ``reference``, each coordinate the better the lower.

    ``points`` has shape (n, d) and ``reference`` shape (d,), with d of at least 1. Points that are not better than the
    reference in every coordinate (NaN included) contribute nothing. Raises ValueError if the shapes do not fit or the
    reference is not finite.

    >>> hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([3.0, 3.0]))
    3.0
    """
    points, reference = np.asarray(points, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if reference.ndim != 1 or reference.size == 0 or not np.isfinite(reference).all():
        raise ValueError(f"reference {reference} must be a vector of finite numbers")
    if points.size == 0:
        return 0.0
    if points.ndim != 2 or points.shape[1] != reference.size:
        raise ValueError(f"points of shape {points.shape} do not fit a reference of {reference.size} coordinates")
    # Distances to the reference: larger is better from here on, and the boxes start at the origin.
    gains = reference - points
    gains = gains[(gains > 0).all(axis=1)]
    if gains.size == 0:
        return 0.0
    return _volume(_undominated(gains))


def _undominated(gains: np.ndarray) -> np.ndarray:
    """Rows no other row dominates, each once, sorted by the first coordinate, best first."""
    gains = np.unique(gains, axis=0)[::-1]
    kept = np.ones(len(gains), dtype=bool)
    for i in range(1, len(gains)):
        # Sorted this way, only an earlier row can dominate a later one.
        kept[i] = not (gains[:i][kept[:i]] >= gains[i]).all(axis=1).any()
    return gains[kept]


def _volume(gains: np.ndarray) -> float:
    """Volume of the union of the boxes from the origin to each row; rows as ``_undominated`` leaves them."""
    if len(gains) == 1:
        return float(np.prod(gains[0]))
    if gains.shape[1] == 1:
        return float(gains[0, 0])
    if gains.shape[1] == 2:
        # The first coordinate falls and the second rises: a staircase.
        return float(np.sum(gains[:, 0] * np.diff(gains[:, 1], prepend=0.0)))
    total = 0.0
    for i, gain in enumerate(gains):
        total += float(np.prod(gain))
        if i + 1 < len(gains):
            total -= _volume(_undominated(np.minimum(gains[i + 1 :], gain)))
    return total

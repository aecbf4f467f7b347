"""How much of what a network says is lost in a quantized one: noise as a share of the signal, over all outputs.

Outputs count alike, and so do the channels of an output that has positions as well: a detector's boxes in pixels do not
drown its scores, in two outputs or in one. A channel can be lost only once, however small it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def noise_share(reference: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Squared error / squared values, averaged over the outputs of floats; infinite where ``found`` is not finite.

    Arrays are samples first, the same outputs in the same order; what is not finite in ``reference`` is left out.

    >>> a = np.array([[3.0, 4.0]])
    >>> noise_share([a], [a + 0.5])
    0.02
    """
    shares = [_share(a, b) for a, b in zip(reference, found, strict=True) if np.issubdtype(a.dtype, np.floating)]
    return float(np.mean(shares)) if shares else 0.0


def _share(reference: np.ndarray, found: np.ndarray) -> float:
    """Of one output; where it has positions, the mean over its channels, each at most 1."""
    a, b = reference.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.isfinite(b[finite]).all():
        return float("inf")
    a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    difference = b - a
    if a.ndim < 3:
        return float(np.square(difference).sum()) / (float(np.square(a).sum()) or 1.0)
    # (n, channels, positions) or (n, positions, channels): of two axes, channels are the shorter one.
    axis = 1 if a.ndim > 3 or a.shape[1] <= a.shape[2] else 2
    others = tuple(i for i in range(a.ndim) if i != axis)
    noise, signal = np.square(difference).sum(axis=others), np.square(a).sum(axis=others)
    shares = np.divide(noise, signal, out=(noise > 0).astype(np.float64), where=signal > 0)
    return float(np.minimum(shares, 1.0).mean()) if shares.size else 0.0

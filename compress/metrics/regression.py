"""What is computed of numbers that a model gives: how far they are from the labels."""

from __future__ import annotations

import numpy as np

from compress.metrics.decisions import Arrays
from targets.errors import TaskError


def errors(outputs: Arrays, labels: Arrays) -> np.ndarray:
    """Outputs minus labels, (n, values) in double precision; several outputs stand side by side.

    Raises TaskError where their shapes do not fit.

    >>> errors(np.array([[1.0, 2.0]]), np.array([[0.5, 4.0]])).tolist()
    [[0.5, -2.0]]
    """
    found, wanted = _flat(outputs, labels)
    return np.asarray(found - wanted)


def absolute(outputs: Arrays, labels: Arrays) -> np.ndarray:
    """(n,) the mean absolute error of each example, over all its values; the mean of these is the metric ``mae``.

    >>> absolute(np.array([[1.0, 2.0]]), np.array([[0.5, 4.0]])).tolist()
    [1.25]
    """
    return np.asarray(np.abs(errors(outputs, labels)).mean(axis=1))


def squared(outputs: Arrays, labels: Arrays) -> np.ndarray:
    """(n,) the mean squared error of each example, over all its values; the mean of these is the metric ``mse``."""
    return np.asarray(np.square(errors(outputs, labels)).mean(axis=1))


def rmse(outputs: Arrays, labels: Arrays) -> float:
    """The root of the mean squared error over all examples and values, in the labels' own unit.

    >>> rmse(np.array([1.0, 5.0]), np.array([1.0, 2.0])) == (9 / 2) ** 0.5
    True
    """
    return float(np.sqrt(squared(outputs, labels).mean()))


def r2(outputs: Arrays, labels: Arrays) -> float:
    """R², the coefficient of determination: 1 - squared errors / squared deviations from the labels' mean.

    It is averaged over the values of an example. A value that never varies counts 1 if it is always met, else 0.
    NaN for fewer than two examples.

    >>> r2(np.array([2.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    0.0
    """
    found, wanted = _flat(outputs, labels)
    if len(wanted) < 2:
        return float("nan")
    left = np.square(found - wanted).sum(axis=0)
    spread = np.square(wanted - wanted.mean(axis=0)).sum(axis=0)
    constant = np.ptp(wanted, axis=0) == 0  # whose computed spread may be a rounding error above 0
    shares = np.where(constant, (left == 0).astype(float), 1.0 - left / np.where(constant, 1.0, spread))
    return float(shares.mean())


def _flat(outputs: Arrays, labels: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Both as (n, values) in double precision."""
    found, wanted = (side if isinstance(side, tuple) else (side,) for side in (outputs, labels))
    if len(found) != len(wanted):
        raise TaskError(f"the model has {len(found)} outputs, the labels are {len(wanted)}; bring a Metric of your own")
    for one, other in zip(found, wanted, strict=True):
        # Equal sizes, not broadcasting: (n, 1) against (n,) would silently compare everything with everything.
        if one.size != other.size or len(one) != len(other):
            raise TaskError(f"outputs of shape {one.shape} do not fit labels of shape {other.shape}")
    flat = [
        np.concatenate([x.reshape(len(x), -1).astype(np.float64) for x in side], axis=1) for side in (found, wanted)
    ]
    return flat[0], flat[1]

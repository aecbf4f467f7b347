"""How far each output of one ONNX file agrees with that of another, on the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_SQNR = 10.0
"""Decibels that an output must have so that it still counts as the same: below, the difference is more than a third of
the output itself (10 dB is a tenth of its power). Networks in int8 that work have 20 and more."""
LEAST_DECIDED = 0.5
"""Share of samples on which an output of scores must decide for the same class, whatever its decibels: scores that all
have the same large offset keep those and lose what they say."""
LEAST_EQUAL = 0.9
"""Share of values that must be equal in an output of whole numbers: class numbers, or decisions. Scores that decide
alike that often may differ by more, as those of a network that was trained again do, but by less than what they are."""


@dataclass(frozen=True)
class Agreement:
    """How one output compares with the same output of the baseline."""

    name: str
    max_abs: float
    """The largest difference of two values; NaN where only one of them is a number."""
    relative: float
    """That, as a share of the baseline's largest value."""
    sqnr: float | None
    """Power of the output over that of the difference, in decibels; None where they are equal, or whole numbers."""
    agreement: float | None
    """Share of samples with the same class, or of whole numbers that are equal; None for other outputs."""
    same: bool
    """Whether it is still the same output, by LEAST_SQNR, LEAST_DECIDED and LEAST_EQUAL."""


def compare(names: Sequence[str], reference: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> list[Agreement]:
    """One entry for each output; ``names``, ``reference`` and ``found`` are in the same order, shapes are the same."""
    return [_compared(*one) for one in zip(names, reference, found, strict=True)]


def _compared(name: str, reference: np.ndarray, found: np.ndarray) -> Agreement:
    if reference.dtype.kind not in "fiub" and reference.dtype.name != "bfloat16":
        equal = _share(reference == found)
        return Agreement(name, 0.0 if equal == 1.0 else math.nan, 0.0, None, equal, equal >= LEAST_EQUAL)
    a, b = reference.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        # Equal infinities do not differ; the rest of what is not finite is NaN or infinite, and stays.
        difference = np.where(a == b, 0.0, a - b)
    worst = float(np.abs(difference).max(initial=0.0))
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=0.0)) or 1.0
    if reference.dtype.kind in "iub":
        equal = _share(a == b)
        return Agreement(name, worst, worst / scale, None, equal, equal >= LEAST_EQUAL)
    decides = a.ndim == 2 and a.shape[1] > 1
    # A row with NaN decides for nothing.
    agreement = _share((a.argmax(1) == b.argmax(1)) & ~np.isnan(b).any(1)) if decides else None
    sqnr = _decibels(a, difference)
    return Agreement(name, worst, worst / scale, sqnr, agreement, _is_same(sqnr, agreement))


def _is_same(sqnr: float | None, agreement: float | None) -> bool:
    """Whether a float output is still the same one; for scores it also counts what they decide for."""
    if sqnr is None:
        return True
    if agreement is None:
        return sqnr >= LEAST_SQNR
    return (sqnr >= LEAST_SQNR and agreement >= LEAST_DECIDED) or (sqnr > 0 and agreement >= LEAST_EQUAL)


def _share(equal: np.ndarray) -> float:
    return float(np.mean(equal)) if np.size(equal) else 1.0


def _decibels(reference: np.ndarray, difference: np.ndarray) -> float | None:
    """Power of ``reference`` over that of ``difference``; None where nothing differs, NaN where it is not finite."""
    noise = float(np.square(difference).sum())
    if noise == 0.0:
        return None
    power = float(np.square(reference[np.isfinite(reference)]).sum())
    if not math.isfinite(noise):
        return math.nan
    return 10 * math.log10(power / noise) if power > 0 else -math.inf

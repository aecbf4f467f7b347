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
ABOVE_CHANCE = 1.5
"""Times the share of equal decisions that chance has, which decisions on random samples must reach."""


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
    """Whether it is still the same output (see ``compare``)."""


def compare(
    names: Sequence[str], reference: Sequence[np.ndarray], found: Sequence[np.ndarray], *, real: bool = True
) -> list[Agreement]:
    """One entry for each output; ``names``, ``reference`` and ``found`` are in the same order, shapes are the same.

    ``real``: the samples are of the kind that the network was made for. On random ones a network that was trained again
    may do what it likes; there an output is another one where it has nothing to do with the baseline's: the difference
    is larger than the output itself, and equal decisions are about as many as chance has.
    """
    return [_compared(*one, real=real) for one in zip(names, reference, found, strict=True)]


def _compared(name: str, reference: np.ndarray, found: np.ndarray, *, real: bool) -> Agreement:
    numbers = reference.dtype.kind in "fiub" or reference.dtype.name == "bfloat16"
    if not numbers or reference.dtype.kind in "iub":
        equal = _share(reference == found)
        least = LEAST_EQUAL if real else min(LEAST_EQUAL, ABOVE_CHANCE / max(1, len(np.unique(reference))))
        worst = scale = 1.0
        if numbers:
            worst = float(np.abs(reference.astype(np.float64) - found).max(initial=0.0))
            scale = float(np.abs(reference.astype(np.float64)).max(initial=0.0)) or 1.0
        elif equal == 1.0:
            worst = 0.0
        return Agreement(name, worst, worst / scale, None, equal, equal >= least)
    a, b = reference.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        # Equal infinities do not differ; the rest of what is not finite is NaN or infinite, and stays.
        difference = np.where(a == b, 0.0, a - b)
    worst = float(np.abs(difference).max(initial=0.0))
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=0.0)) or 1.0
    classes = a.shape[1] if a.ndim == 2 else 1
    # A row with NaN decides for nothing.
    agreement = _share((a.argmax(1) == b.argmax(1)) & ~np.isnan(b).any(1)) if classes > 1 else None
    sqnr = _decibels(a, difference)
    same = _is_same(sqnr, agreement) if real else _is_related(sqnr, agreement, classes)
    return Agreement(name, worst, worst / scale, sqnr, agreement, same)


def _is_same(sqnr: float | None, agreement: float | None) -> bool:
    """Whether a float output is still the same one; for scores it also counts what they decide for."""
    if sqnr is None:
        return True
    if agreement is None:
        return sqnr >= LEAST_SQNR
    return (sqnr >= LEAST_SQNR and agreement >= LEAST_DECIDED) or (sqnr > 0 and agreement >= LEAST_EQUAL)


def _is_related(sqnr: float | None, agreement: float | None, classes: int) -> bool:
    """Whether a float output on random samples has anything to do with the baseline's; not where it is not finite."""
    if sqnr is None or sqnr > 0:
        return True
    return math.isfinite(sqnr) and agreement is not None and agreement >= ABOVE_CHANCE / classes


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

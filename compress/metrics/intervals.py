"""Confidence intervals of what is measured on examples: proportions, paired drops of proportions, anything else.

Why not the textbook ``p ± z·s``, nor a bootstrap, for everything: quality is close to 1 and disagreements between
a network and its smaller version are rare. There both give intervals of no width at all (no disagreement among 300
examples: [0, 0]), which would confirm any limit. Score intervals ask instead which true values the data do not
rule out, so nothing seen among n still leaves room for z²/(n + z²).

- a proportion: Wilson's score interval (Wilson 1927, JASA 22, 209);
- a difference of two proportions on the same examples: Tango's (Tango 1998, Statistics in Medicine 17, 891);
- everything else: the percentile bootstrap (Efron 1979). Not BCa: its jackknife costs n evaluations of the metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

_STEPS = 100
"""Halvings of an interval no wider than 2: down to the last bit of a float."""
_MOST = 10**12
"""More examples than this is as good as no number of them."""


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) of the proportion ``successes / n`` (Wilson 1927).

    It holds every proportion p with |successes - n p| <= z sqrt(n p (1 - p)), z being the two-sided normal deviate of
    ``confidence``.

    Raises ValueError unless 0 <= successes <= n and n > 0.

    >>> low, high = wilson(95, 100)
    >>> print(f"{low:.3f} to {high:.3f}")
    0.888 to 0.978
    >>> print(f"{wilson(300, 300)[0]:.4f}")  # nothing wrong among 300 is no proof that nothing ever is
    0.9874
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes among {n} examples: n must be positive, successes within 0..n")
    return _wilson(successes, n, _deviate(confidence))


def _wilson(successes: float, n: float, z: float) -> tuple[float, float]:
    p, square = successes / n, z * z
    center = (p + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return low, high


def tango(lost: int, gained: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's score interval (low, high) of the paired difference ``(lost - gained) / n``.

    ``lost``: examples that the baseline gets right and the candidate wrong; ``gained``: the other way round;
    ``n``: all examples. The interval holds every true difference D with |T(D)| <= z, where

        T(D) = (lost - gained - n D) / sqrt(n (2 q + D (1 - D)))

    and q is the most likely probability of a gain if the difference were D. With no disagreement at all it is
    ± z² / (n + z²).

    Raises ValueError unless the counts are >= 0, their sum is at most n, and n > 0.

    >>> low, high = tango(lost=12, gained=5, n=1000)
    >>> print(f"{low:.4f} to {high:.4f}")
    -0.0012 to 0.0165
    """
    _check_pairs(lost, gained, n)
    z = _deviate(confidence)
    return -_tango_high(gained, lost, n, z), _tango_high(lost, gained, n, z)


def _check_pairs(lost: int, gained: int, n: int) -> None:
    if n <= 0 or lost < 0 or gained < 0 or lost + gained > n:
        raise ValueError(f"{lost} lost and {gained} gained among {n}: counts must be >= 0 and their sum at most n > 0")


def _tango_high(lost: float, gained: float, n: float, z: float) -> float:
    """Upper end of Tango's interval; the counts need not be whole. The lower end is its mirror image."""
    low, high = (lost - gained) / n, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        distance = n * middle - (lost - gained)
        # |T| <= z without the division: the variance is 0 at a difference of 1.
        if distance * distance <= z * z * _variance(lost, gained, n, middle):
            low = middle
        else:
            high = middle
    return low


def _variance(lost: float, gained: float, n: float, difference: float) -> float:
    """n (2 q + D (1 - D)), q being the root of 2n q² + b q + c = 0 that maximises the likelihood given D."""
    b = (2 * n - lost + gained) * difference - lost - gained
    c = -gained * difference * (1 - difference)
    root = math.sqrt(max(0.0, b * b - 8 * n * c))
    # Of the two ways to write the root, the one that does not subtract nearly equal numbers.
    q = (root - b) / (4 * n) if b <= 0 else -2 * c / (root + b)
    return max(0.0, n * (2 * q + difference * (1 - difference)))


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, *, seed: int, resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval (low, high) of ``statistic`` over ``n`` examples (Efron 1979).

    ``statistic`` takes indices (n,) of a resample, drawn with replacement, and gives one number. Resamples on
    which it gives NaN (a class is missing, say) are left out. The same ``seed`` gives the same interval.

    Raises ValueError if n < 1, resamples < 1, or fewer than half of the resamples gave a number.

    >>> values = np.arange(100.0)
    >>> low, high = bootstrap(lambda rows: float(values[rows].mean()), 100, seed=0)
    >>> bool(low < values.mean() < high)
    True
    """
    if n < 1 or resamples < 1:
        raise ValueError(f"bootstrap of {n} examples with {resamples} resamples: both must be at least 1")
    tail = (1 - NormalDist().cdf(_deviate(confidence))) * 100
    rng = np.random.default_rng(seed)
    found = np.array([statistic(rng.integers(0, n, n)) for _ in range(resamples)], dtype=np.float64)
    found = found[~np.isnan(found)]
    if 2 * found.size < resamples:
        raise ValueError(f"only {found.size} of {resamples} resamples gave a number; there are too few examples ({n})")
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)


def examples_needed(lost: int, gained: int, n: int, limit: float, confidence: float = 0.95) -> int | None:
    """About how many examples would settle whether the difference is within ``limit``.

    At the same rates of disagreement: the least number, not below n, at which Tango's upper end is at most
    ``limit``, or, for a difference already beyond it, the lower end is above it. None if no number would (the
    difference is the limit).

    Raises ValueError as ``tango`` does.

    >>> examples_needed(lost=12, gained=5, n=1000, limit=0.01)
    7893
    """
    _check_pairs(lost, gained, n)
    z, value = _deviate(confidence), (lost - gained) / n
    if math.isclose(value, limit, rel_tol=0, abs_tol=1e-9):
        return None

    def settled(m: int) -> bool:
        more, fewer = lost / n * m, gained / n * m
        if value < limit:
            return _tango_high(more, fewer, m, z) <= limit
        return -_tango_high(fewer, more, m, z) > limit

    return _least(settled, n)


def examples_needed_for_proportion(proportion: float, n: int, limit: float, confidence: float = 0.95) -> int | None:
    """About how many examples would bring Wilson's whole interval to the side of ``limit`` that ``proportion`` is on.

    Not below n; None if no number would (the proportion is the limit).

    Raises ValueError unless 0 <= proportion <= 1 and n > 0.
    """
    if n <= 0 or not 0 <= proportion <= 1:
        raise ValueError(f"proportion {proportion} among {n} examples: it must be within 0..1 and n positive")
    z = _deviate(confidence)
    if math.isclose(proportion, limit, rel_tol=0, abs_tol=1e-9):
        return None

    def settled(m: int) -> bool:
        low, high = _wilson(proportion * m, m, z)
        return high <= limit if proportion < limit else low >= limit

    return _least(settled, n)


def _least(settled: Callable[[int], bool], start: int) -> int | None:
    """The least number from ``start`` on that settles it, if more always settle it better."""
    low = high = start
    while not settled(high):
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle, high)
    return high


def _deviate(confidence: float) -> float:
    """The two-sided normal deviate z of ``confidence``."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1; 0.95 is usual")
    return NormalDist().inv_cdf(0.5 + confidence / 2)

"""Confidence intervals for paired latency ratios: distribution free inside a process, Student between processes.

Run times are skewed and have outliers, so a process is summarised by the median of its per-round ratios, with the
interval between two order statistics (David & Nagaraja, Order Statistics, 2003, section 7.1): the number of values
below the median is binomial(n, 1/2), whatever the distribution.

Two sessions of one model differ by a few percent (memory layout), and no number of rounds in one process shows
that. With several processes the interval is therefore Student's on the log medians, one per process; a spread that
is by chance smaller than what the rounds themselves allow is not believed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

_Z = 1.959964
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
      2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860)  # fmt: skip
"""97.5 % quantiles of Student's t for 1, 2, ... 20 degrees of freedom."""

TIE = 0.03
"""Two sessions of one model differ by so large a share: times that are closer are not told apart."""
COUNTED_TIE = 0.001
"""Counts closer than this share are the same: instructions move by some hundredths of a percent with the input."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """The larger distance to an end, as a share of the value."""
        return max(self.high - self.value, self.value - self.low) / self.value if self.value else math.inf


def student(degrees: int) -> float:
    """97.5 % quantile of Student's t; beyond the table by two terms of its Cornish-Fisher expansion in 1/degrees."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    return _Z + (_Z**3 + _Z) / (4 * degrees) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2)


def median_interval(values: Sequence[float]) -> Interval:
    """The median with its 95 % order-statistic interval; fewer than six values only allow their whole range."""
    ordered = sorted(values)
    depth = order_depth(len(ordered))
    return Interval(median(ordered), ordered[depth - 1], ordered[-depth])


def order_depth(n: int) -> int:
    """The largest k >= 1 for which [x(k), x(n+1-k)] covers the median with 95 % or more (else 1)."""
    term = total = 0.5**n if n < 1000 else 0.0
    if n >= 1000:  # the normal approximation is good to one rank here
        return max(1, math.floor((n - _Z * math.sqrt(n)) / 2))
    depth = 0
    while total <= 0.025:
        depth += 1
        term *= (n - depth + 1) / depth
        total += term
    return max(1, depth)


def pooled_interval(groups: Sequence[Sequence[float]]) -> Interval:
    """The ratio over several processes, each a group of per-round ratios (all positive)."""
    if len(groups) == 1:
        return median_interval(groups[0])
    inside = [median_interval(group) for group in groups]
    logs = [math.log(one.value) for one in inside]
    within = fmean((math.log(one.high / one.low) / (2 * _Z)) ** 2 for one in inside)
    spread = math.sqrt(max(stdev(logs) ** 2, within) / len(logs))
    half = student(len(logs) - 1) * spread
    value, centre = median(logs), fmean(logs)
    return Interval(math.exp(value), math.exp(min(value, centre - half)), math.exp(max(value, centre + half)))

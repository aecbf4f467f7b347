"""What is worth a training, given costs that are known and losses that are only predicted.

Pure functions of arrays, an entry for each network. Costs are shares of the baseline's, the lower the better. Losses
are normal on a scale z (see ``quality_model.Response``) with a mean and a standard deviation; ``limit`` is the z that
is just allowed. What does not change anything that is there has a gain of 0.

First the fastest within the limit is looked for (expected improvement of the cost, with a constraint: Gardner et al.
2014), then the rest of the front (expected hypervolume improvement: Emmerich et al. 2006), at the end what changes
the choice that is shipped (knowledge gradient: Frazier et al. 2008). Quality beyond the baseline's counts nothing in
any of them: as an objective of its own it was what most of the time went to, for networks that nobody ships.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FRONT_WEIGHT = 1.0
"""What a gain of the whole front counts against one of the fastest network within the limit, both as shares of 1."""
LUCK = 0.5
"""Share of a reading's variance with which being within the limit is judged: 0 for what a network really is."""
_NEAR = 0.04
_LEVELS = 33
_QUANTILES = 32


@dataclass(frozen=True)
class Beliefs:
    """What is known of n networks."""

    costs: np.ndarray
    mean: np.ndarray
    """Of z."""
    sd: np.ndarray

    def within(self, limit: float, noise: float = 0.0) -> np.ndarray:
        """Probability that z is at most ``limit``; ``noise``: variance that a reading adds to it."""
        from scipy.special import ndtr

        return np.asarray(ndtr((limit - self.mean) / np.sqrt(self.sd**2 + noise)))


def fastest(
    beliefs: Beliefs, limit: float, incumbent: float, noise: float = 0.0, under_way: Beliefs | None = None
) -> np.ndarray:
    """How much the cost of the fastest network within the limit is expected to fall by each network, (n,).

    ``incumbent``: the cost of the fastest within the limit so far, 1 if there is none but the baseline. ``noise``:
    variance of the reading that decides. Networks ``under_way`` may become incumbents before, each with its own
    probability.
    """
    possible, chances = possible_incumbents(incumbent, under_way, limit, noise)
    gains = np.maximum(possible[None, :] - beliefs.costs[:, None], 0.0) @ chances
    return np.asarray(gains * beliefs.within(limit, noise))


def possible_incumbents(
    incumbent: float, under_way: Beliefs | None, limit: float, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(costs, their probabilities) of the fastest network within the limit once what is under way has ended."""
    if under_way is None or not len(under_way.costs):
        return np.array([incumbent]), np.ones(1)
    order = np.argsort(under_way.costs, kind="stable")
    costs, within = np.minimum(under_way.costs[order], incumbent), under_way.within(limit, noise)[order]
    none_before = np.concatenate([[1.0], np.cumprod(1.0 - within)])
    return np.append(costs, incumbent), np.append(within * none_before[:-1], none_before[-1])


def per_second(gains: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Gains for each second that is still to be paid for them."""
    return np.asarray(gains / np.maximum(seconds, 1e-3))


@dataclass(frozen=True)
class Bracket:
    """Between which costs the fastest network within the limit is looked for by halving, geometrically."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The cost to be tried next."""
        return float(np.sqrt(self.low * self.high))

    def after(self, cost: float, is_within: bool) -> Bracket:
        """What is left once a network of this cost has been trained."""
        if is_within:
            return Bracket(self.low, min(self.high, max(cost, self.low)))
        return Bracket(max(self.low, min(cost, self.high)), self.high)


def halving(beliefs: Beliefs, bracket: Bracket, free: np.ndarray) -> int | None:
    """The network within 4 % of the bracket's middle that promises most quality; of none, the nearest one.

    ``free``: which of the networks may be chosen, (n,). None if none may, or the bracket is as narrow as that.
    """
    if bracket.high / bracket.low < (1 + _NEAR) ** 2 or not free.any():
        return None
    away = np.where(free, np.abs(np.log(beliefs.costs / bracket.middle)), np.inf)
    if away.min() > np.log(1 + _NEAR):
        return int(np.argmin(away))
    return int(np.argmin(np.where(away <= np.log(1 + _NEAR), beliefs.mean, np.inf)))


def front_gains(
    beliefs: Beliefs,
    front: np.ndarray,
    reference: tuple[float, float],
    z_of_drop: Callable[[np.ndarray], np.ndarray],
    noise: float = 0.0,
) -> np.ndarray:
    """Expected hypervolume improvement by each network, in (cost, drop), (n,); drops below 0 count as 0.

    ``front``: (cost, drop) of what is there, of shape (k, 2). ``reference``: what a point must be better than. Since
    costs are known, what a network of cost c and drop d adds is the integral over drops y from d to the reference of
    max(0, g(y) - c), g(y) being the least cost that is there at a drop of at most y; its expectation is the same
    integral with the probability that d is at most y as a factor.
    """
    from scipy.special import ndtr

    levels, left = _staircase(front, reference)
    z = z_of_drop(levels)
    reached = ndtr((z[None, :] - beliefs.mean[:, None]) / np.sqrt(beliefs.sd**2 + noise)[:, None])
    # Between two levels the staircase is flat, and the probability nearly straight.
    chances = (reached[:, 1:] + reached[:, :-1]) / 2
    return np.asarray((np.maximum(left[None, :] - beliefs.costs[:, None], 0.0) * chances) @ np.diff(levels))


def expected_front(front: np.ndarray, beliefs: Beliefs, drop_of_z: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The front with networks under way added as what is expected of them, of shape (k + n, 2)."""
    drops = np.maximum(drop_of_z(beliefs.mean), 0.0)
    return np.vstack([np.asarray(front).reshape(-1, 2), np.stack([beliefs.costs, drops], axis=1)])


def usefulness(costs: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """What a network is worth as the one that is shipped: (1 - cost) times the root of the probability to hold."""
    return np.asarray(np.maximum(1.0 - costs, 0.0) * np.sqrt(probabilities))


@dataclass(frozen=True)
class NextReadings:
    """The next readings of n networks, and what they say of z."""

    mean: np.ndarray
    sd: np.ndarray
    covariance: np.ndarray
    """Of the reading with z."""


def knowledge_gradient(beliefs: Beliefs, readings: NextReadings, limit: float, best: float) -> np.ndarray:
    """How much more useful than ``best`` the shipped network is expected to be after training each, (n,).

    ``best``: the usefulness of what would be shipped now. A network is only shipped if its reading is within the
    limit; how probable it then is that it holds follows from the reading. Over 32 quantiles of the reading.
    """
    from scipy.special import ndtr, ndtri

    quantiles = ndtri((np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    read = readings.mean[:, None] + readings.sd[:, None] * quantiles
    after = beliefs.mean[:, None] + (readings.covariance / readings.sd)[:, None] * quantiles
    left = np.sqrt(np.maximum(beliefs.sd**2 - (readings.covariance / readings.sd) ** 2, 1e-12))
    worth = usefulness(beliefs.costs[:, None], ndtr((limit - after) / left[:, None]))
    return np.asarray(np.where(read <= limit, np.maximum(worth - best, 0.0), 0.0).mean(axis=1))


def several(count: int, gains_given: Callable[[Sequence[int]], np.ndarray]) -> list[int]:
    """Up to ``count`` networks to be trained at once: each the best given those before; none without a gain.

    ``gains_given``: indices of those already chosen -> gains of all networks.
    """
    chosen: list[int] = []
    while len(chosen) < count:
        gains = gains_given(chosen).copy()
        gains[chosen] = 0.0
        best = int(np.argmax(gains))
        if gains[best] <= 0.0:
            break
        chosen.append(best)
    return chosen


def _staircase(front: np.ndarray, reference: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """(drops from 0 to the reference, ascending; the least cost that is there between each two of them)."""
    cost, drop = reference
    points = np.asarray(front, dtype=np.float64).reshape(-1, 2)
    points = points[(points[:, 1] < drop) & (points[:, 0] < cost)]
    drops = np.maximum(points[:, 1], 0.0)
    # Finer where drops are small: losses are logarithmic.
    levels = np.unique(np.concatenate([drop * np.linspace(0.0, 1.0, _LEVELS) ** 2, drops]))
    at_most = drops[None, :] <= levels[:-1, None]
    return levels, np.where(at_most, points[None, :, 0], cost).min(axis=1, initial=cost)

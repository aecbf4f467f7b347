"""What a cost-aware sampler chooses from: points of somebody's own search space, or networks.

Both are offered as parameters of an Optuna trial, and both say what they expect of the loss of each; the sampler asks
no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from compress.sampling import gaussian_process as gp
from compress.sampling.acquisition import Beliefs
from compress.sampling.encoding import encoded, nearby, randomly

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """A trial that has ended."""

    params: Params
    loss: float
    """The lower the better."""
    attributes: Mapping[str, Any]
    """The trial's ``user_attrs``."""


@dataclass(frozen=True)
class Outlook:
    """What is expected of the losses of some offered points, on whatever scale z."""

    mean: np.ndarray
    sd: np.ndarray
    noise: float
    """Variance of z from one evaluation to the next."""
    scaled: Callable[[np.ndarray], np.ndarray]
    """Losses -> z."""

    def at(self, costs: np.ndarray) -> Beliefs:
        """With the points' costs."""
        return Beliefs(costs, self.mean, self.sd)


class Choices(Protocol):
    """What can be chosen, and what is expected of it."""

    def offered(self, told: Sequence[Told], rng: np.random.Generator) -> list[Params]:
        """Points that may be tried next; those that were tried already may be among them."""
        ...

    def distributions(self, params: Params) -> dict[str, BaseDistribution]:
        """Of each of these parameters."""
        ...

    def outlook(self, told: Sequence[Told], points: Sequence[Params], costs: np.ndarray) -> Outlook:
        """What is expected of ``points``, whose costs are shares of the largest one, given what was told."""
        ...


@dataclass(frozen=True)
class ParameterChoices:
    """Points of a search space of independent parameters, with a Gaussian process over them and over their cost.

    The process is on the logarithm of the loss where all losses are positive, else on the loss itself.
    """

    space: Mapping[str, BaseDistribution]
    count: int = 500
    """Points that are offered at a time, besides neighbours of the best."""
    cost: Callable[[Params], float] = field(default=lambda _: 1.0)
    """For the points that were told; as a share of the same cost as those that are offered."""

    def offered(self, told: Sequence[Told], rng: np.random.Generator) -> list[Params]:
        """Random points, and neighbours of the six of least cost or loss."""
        points = [randomly(self.space, rng) for _ in range(self.count)]
        inside = [each for each in told if set(self.space) <= set(each.params)]
        for each in [*sorted(inside, key=lambda t: t.loss)[:3], *inside[-3:]]:
            points += [nearby(self.space, each.params, rng) for _ in range(20)]
        return list({tuple(point.items()): point for point in points}.values())

    def distributions(self, params: Params) -> dict[str, BaseDistribution]:
        """The space's own."""
        return {name: self.space[name] for name in params}

    def outlook(self, told: Sequence[Told], points: Sequence[Params], costs: np.ndarray) -> Outlook:
        """From trials that have all parameters of the space."""
        told = [each for each in told if set(self.space) <= set(each.params)]
        losses = np.array([each.loss for each in told])
        is_log = len(told) > 0 and bool((losses > 0).all())

        def plain(values: np.ndarray) -> np.ndarray:
            values = np.asarray(values, dtype=np.float64)
            return np.log(np.maximum(values, float(losses.min()) / 100)) if is_log else values

        centre = float(np.median(plain(losses))) if len(told) else 0.0
        width = max(float(plain(losses).std()), 1e-9) if len(told) > 1 else 1.0

        def scaled(values: np.ndarray) -> np.ndarray:
            return np.asarray((plain(values) - centre) / width)

        here = encoded(self.space, points)
        if not told:
            return Outlook(np.zeros(len(points)), np.full(len(points), 2.0), 0.0, scaled)
        there = encoded(self.space, [each.params for each in told])
        own_costs = np.array([self.cost(each.params) for each in told])
        process = _fitted(there, own_costs, scaled(losses))
        mean, sd = process.at(here, costs)
        return Outlook(mean, sd, process.noise**2, scaled)


_MOST_FITTED = 100
_CENTRES, _SPREADS = (0.6, 0.4, 0.6, 0.15), (0.7, 0.7, 0.7, 1.0)
_CONSTANT = 4.0


@dataclass(frozen=True)
class _Process:
    """A Gaussian process over coordinates of a unit cube and the logarithm of cost."""

    scales: np.ndarray
    """Of what similar points have in common; how far apart they are similar; linear; noise."""
    points: np.ndarray
    trend: np.ndarray
    posterior: gp.Posterior

    @property
    def noise(self) -> float:
        return float(self.scales[3])

    def at(self, points: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        trend = _trend(points, costs)
        cross = _kernel(gp.mean_squares(points, self.points), trend @ self.trend.T, self.scales)
        similar, _, linear, _ = self.scales
        return self.posterior.at(cross, _CONSTANT + similar**2 + linear**2 * (trend**2).sum(axis=1))


def _fitted(points: np.ndarray, costs: np.ndarray, z: np.ndarray) -> _Process:
    trend = _trend(points, costs)
    rows = np.unique(np.linspace(0, len(z) - 1, min(len(z), _MOST_FITTED)).round().astype(int))
    squares, inner = gp.mean_squares(points[rows], points[rows]), trend[rows] @ trend[rows].T

    def posterior(values: np.ndarray) -> gp.Posterior:
        return gp.posterior(_kernel(squares, inner, values) + values[3] ** 2 * np.eye(len(rows)), z[rows])

    scales = gp.most_probable(posterior, _CENTRES, _SPREADS)
    whole = _kernel(gp.mean_squares(points, points), trend @ trend.T, scales) + scales[3] ** 2 * np.eye(len(z))
    return _Process(scales, points, trend, gp.posterior(whole, z))


def _trend(points: np.ndarray, costs: np.ndarray) -> np.ndarray:
    return np.hstack([points - 0.5, np.log10(np.maximum(costs, 1e-9))[:, None]])


def _kernel(squares: np.ndarray, inner: np.ndarray, scales: np.ndarray) -> np.ndarray:
    similar, length, linear, _ = scales
    return np.asarray(_CONSTANT + linear**2 * inner + similar**2 * gp.matern(squares, length))

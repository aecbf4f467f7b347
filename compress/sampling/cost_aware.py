"""A sampler for studies whose cost is known before a trial: it looks for the cheapest point within a limit of loss.

Importing this file imports Optuna; ``docs/cost-aware.md`` says when to use it, and when not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler  # noqa: TID253  # a subclass of it cannot be made without
from optuna.search_space import IntersectionSearchSpace  # noqa: TID253  # this file is only imported to make a sampler
from optuna.study import StudyDirection  # noqa: TID253  # as above
from optuna.trial import FrozenTrial, TrialState  # noqa: TID253  # as above

from compress.sampling.acquisition import (
    FRONT_WEIGHT,
    LUCK,
    Beliefs,
    Bracket,
    fastest,
    front_gains,
    halving,
    per_second,
)
from compress.sampling.choices import Choices, Outlook, ParameterChoices, Params, Told

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

_HALVINGS = 3
_DROPS = 5.0


class CostAwareSampler(BaseSampler):
    """Proposes what is expected to lower the cost of the cheapest point within the limit most, per second of trial.

    Args:
        cost: The cost of a point, from its parameters; positive, known without a trial (parameters, operations, a
            latency from a model or a table). Called for hundreds of points a trial, once each.
        limit: What the loss may be at most; where the study maximises it (an accuracy), what it must be at least.
        space: The distributions of all parameters. Without it they are those that all trials so far have in common,
            the first trial being random.
        seconds: What a trial of a point takes, in any unit. Without it all trials are taken to cost the same.
        loss: Which of the study's objectives the loss is.
        baseline: A loss below which nothing is gained; by default the least that was seen.
        reference: In a study of two or more objectives the front of cost and loss is filled as well, up to this loss;
            by default five times as far from the baseline as the limit.
        choices: What is chosen from, instead of the points of ``space``; see ``choices.Choices``.
        seed: Of the random points that are looked at.

    It learns the loss by a Gaussian process over the parameters and the cost. Its first three trials halve the range
    of costs. Trials that run elsewhere are counted as what is expected of them. Failed and pruned trials are ignored.
    """

    def __init__(
        self,
        cost: Callable[[Params], float],
        limit: float,
        *,
        space: Mapping[str, BaseDistribution] | None = None,
        seconds: Callable[[Params], float] | None = None,
        loss: int = 0,
        baseline: float | None = None,
        reference: float | None = None,
        choices: Choices | None = None,
        seed: int | None = None,
    ) -> None:
        if space is not None and choices is not None:
            raise ValueError("space and choices were both given; choices has a space of its own")
        self._cost, self._seconds, self._limit, self._loss = cost, seconds, limit, loss
        self._baseline, self._reference = baseline, reference
        self._space, self._choices = space, choices
        self._rng = np.random.default_rng(seed)
        self._independent = RandomSampler(seed=seed)
        self._common = IntersectionSearchSpace()
        self._known_costs: dict[tuple[tuple[str, Any], ...], float] = {}
        self._proposed: dict[int, Params] = {}

    def reseed_rng(self) -> None:
        """Draws other random points from here on, as parallel studies ask for."""
        self._rng = np.random.default_rng()
        self._independent.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The distributions of the point that is proposed, which is chosen here: its parameters may depend on it."""
        choices = self._choices or self._own_choices(study)
        if choices is None:
            return {}
        params = self.propose(study, choices, trial.number)
        self._proposed[trial.number] = params
        return choices.distributions(params)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The point that was chosen."""
        del study, search_space
        return dict(self._proposed.pop(trial.number, {}))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Random: for parameters that are not known before the trial asks for them."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def propose(self, study: Study, choices: Choices, number: int) -> Params:
        """The point to be tried next."""
        sign = -1.0 if study.directions[self._loss] == StudyDirection.MAXIMIZE else 1.0
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        told = [
            Told(each.params, sign * each.values[self._loss], each.user_attrs)
            for each in ended
            if each.params and math.isfinite(each.values[self._loss])
        ]
        running = [
            each.params
            for each in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if each.number != number and each.params
        ]
        points = choices.offered(told, self._rng)
        here = [*points, *running, *(each.params for each in told)]
        costs = np.array([self._cost_of(point) for point in here])
        largest = float(costs.max())
        costs = costs / largest
        if isinstance(choices, ParameterChoices):
            choices = ParameterChoices(choices.space, choices.count, lambda params: self._cost_of(params) / largest)
        outlook = choices.outlook(told, here, costs)
        tried = {_key(point) for point in here[len(points) :]}
        free = np.array([_key(point) not in tried for point in points])
        picture = _Picture(told, sign * self._limit, outlook, costs, len(points), len(running), free)
        return points[self._best(study, picture, points)]

    def _best(self, study: Study, picture: _Picture, points: Sequence[Params]) -> int:
        free = picture.free
        if not free.any():
            return int(self._rng.integers(len(points)))
        if len(picture.told) + picture.running < _HALVINGS:
            found = halving(picture.offered, picture.bracket(), free)
            if found is not None:
                return found
        gains = picture.fastest()
        if len(study.directions) > 1 and picture.told:
            sign = -1.0 if study.directions[self._loss] == StudyDirection.MAXIMIZE else 1.0
            baseline = None if self._baseline is None else sign * self._baseline
            reference = None if self._reference is None else sign * self._reference
            gains = gains + FRONT_WEIGHT * picture.front(baseline, reference)
        gains = np.where(free, gains, 0.0)
        if self._seconds is not None:
            gains = per_second(gains, np.array([self._seconds(point) for point in points]))
        if gains.max() <= 0.0:
            # Nothing can be cheaper and within the limit: what is known least.
            return int(np.argmax(np.where(free, picture.offered.sd, -1.0)))
        return int(np.argmax(gains))

    def _own_choices(self, study: Study) -> Choices | None:
        space = self._space
        if space is None:
            space = {name: domain for name, domain in self._common.calculate(study).items() if not domain.single()}
        return ParameterChoices(space) if space else None

    def _cost_of(self, params: Params) -> float:
        key = _key(params)
        if key not in self._known_costs:
            cost = float(self._cost(params))
            if not (math.isfinite(cost) and cost > 0):
                raise ValueError(f"cost({dict(params)}) is {cost}; costs must be positive and finite")
            self._known_costs[key] = cost
        return self._known_costs[key]


class _Picture:
    """One moment of a study: what was told, what is running, what is offered, in this order reversed in ``costs``."""

    def __init__(
        self,
        told: Sequence[Told],
        limit: float,
        outlook: Outlook,
        costs: np.ndarray,
        offered: int,
        running: int,
        free: np.ndarray,
    ) -> None:
        self.told, self.running, self.free = told, running, free
        self._limit, self._outlook = limit, outlook
        self._z = float(outlook.scaled(np.array([limit]))[0])
        self._noise = LUCK * outlook.noise
        rest = slice(offered, offered + running)
        self.offered = Beliefs(costs[:offered], outlook.mean[:offered], outlook.sd[:offered])
        self._under_way = Beliefs(costs[rest], outlook.mean[rest], outlook.sd[rest])
        self._told_costs = costs[offered + running :]
        self._losses = np.array([each.loss for each in told])

    def bracket(self) -> Bracket:
        """The range of costs, halved by every trial so far."""
        found = Bracket(float(self.offered.costs.min()), float(self.offered.costs.max()))
        for cost, loss in zip(self._told_costs, self._losses, strict=True):
            found = found.after(float(cost), bool(loss <= self._limit))
        return found

    def fastest(self) -> np.ndarray:
        """Gains of each offered point, as shares of the largest cost."""
        within = self._told_costs[self._losses <= self._limit] if len(self.told) else np.zeros(0)
        return fastest(self.offered, self._z, float(within.min(initial=1.0)), self._noise, self._under_way)

    def front(self, baseline: float | None, reference: float | None) -> np.ndarray:
        """Gains of the front of cost and loss, as shares of the range of losses."""
        zero = float(self._losses.min()) if baseline is None else baseline
        zero = min(zero, self._limit)
        far = zero + _DROPS * (self._limit - zero) if reference is None else reference
        if far <= zero:
            return np.zeros(len(self.offered.costs))
        points = np.stack([self._told_costs, self._losses - zero], axis=1)
        scaled = self._outlook.scaled
        volume = front_gains(self.offered, points, (1.1, far - zero), lambda drops: scaled(zero + drops), self._noise)
        return volume / (far - zero)


def _key(params: Params) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))

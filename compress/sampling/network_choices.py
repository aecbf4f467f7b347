"""Networks as parameters of an Optuna trial, for ``CostAwareSampler``: ``pattern`` and ``width.GROUP``.

A trial's evaluations stand in its ``user_attrs["readings"]``, a list with an entry for each: ``epochs``, ``loss``,
``noise`` and, unless it was on val in fp32, ``split`` and ``precision`` (as in ``quality_model.Reading``). A trial
without any is taken to have one reading, its loss, after as many epochs as it would have been given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.sampling import quality_model
from compress.sampling.choices import Outlook, Params, Told
from compress.sampling.network_features import Eyes
from compress.sampling.pool import neighbours, random_networks
from compress.values.networks import PATTERN, WIDTH, Network, network_of, params_of, pattern_name

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_AROUND = 6


def _network(params: Params) -> Network:
    """The network that a trial of the study is of."""
    network = network_of(params)
    if network is None:
        raise ValueError(f"a trial without {PATTERN!r} is no trial of networks: {dict(params)}")
    return network


@dataclass(frozen=True)
class NetworkChoices:
    """Random networks and neighbours of those that were trained last, with the quality model over them."""

    eyes: Eyes
    response: quality_model.Response
    epochs: Callable[[Sequence[Network]], np.ndarray]
    """Networks -> the epochs that each would be trained for in all."""
    noise: float
    """Standard deviation of a loss at the limit, over other examples."""
    baseline_noise: float
    count: int = 2500
    seed: int = 0

    def offered(self, told: Sequence[Told], rng: np.random.Generator) -> list[Params]:
        """The pool, which is the same every time, and twenty neighbours of each of the last six."""
        patterns = self.eyes.patterns
        networks = dict.fromkeys(random_networks(patterns, self.count, self.seed))
        last = [_network(each.params) for each in told[-_AROUND:]]
        networks |= dict.fromkeys(neighbours(patterns, last, 20, int(rng.integers(2**31))))
        return [params_of(network) for network in networks]

    def distributions(self, params: Params) -> dict[str, BaseDistribution]:
        """Of the pattern a category; of widths integers, since a group may have other widths in another pattern."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        names = [pattern_name(dropped) for dropped in sorted(self.eyes.patterns)]
        found: dict[str, BaseDistribution] = {PATTERN: CategoricalDistribution(names)}
        pattern = self.eyes.patterns[_network(params).dropped]
        for group in pattern.groups:
            found[WIDTH + group.name] = IntDistribution(group.widths[0], group.channels)
        return found

    def outlook(self, told: Sequence[Told], points: Sequence[Params], costs: np.ndarray) -> Outlook:
        """What the quality model expects once the networks have had all their epochs."""
        del costs
        readings = [reading for each in told for reading in self._readings(each)]
        model = quality_model.fit(self.eyes, self.response, readings, self.baseline_noise)
        networks = [_network(point) for point in points]
        prediction = model.predict(networks, self.epochs(networks))
        return Outlook(prediction.mean, prediction.sd, self.noise**2 + model.scales.training**2, self.response.scaled)

    def _readings(self, told: Told) -> list[quality_model.Reading]:
        network = _network(told.params)
        given: Sequence[Mapping[str, Any]] = told.attributes.get("readings", ())
        if given:
            return [quality_model.Reading(network, **reading) for reading in given]
        epochs = float(self.epochs([network])[0])
        return [quality_model.Reading(network, epochs, told.loss, self.noise * (told.loss + self.response.floor))]

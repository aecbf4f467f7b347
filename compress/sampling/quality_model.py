"""What quality a network will have once it is trained, learnt from every training so far, short or long.

A Gaussian process on the logarithm of the loss (the error of a proportion; the drop of any other metric). Its mean
knows how much of the baseline is left and how long a network was trained; its noise knows how many examples a reading
was taken on, and that readings of one network on the same examples are nearly one reading. Readings from elsewhere
(the drop on train examples, other precisions) are evidence of the same quality with an offset of their own, which is
learnt (a two-level model as Kennedy and O'Hagan 2000, Biometrika 87, 1).

On numpy and scipy alone; ``gaussian_process`` says why not BoTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.sampling import gaussian_process as gp
from compress.sampling.acquisition import Beliefs, NextReadings
from compress.sampling.network_arrays import whole
from compress.sampling.network_features import Eyes, Seen
from compress.values.networks import Network

ONE_READING = 0.6
"""Correlation of the noise of two readings of one network: the same examples, the same weights trained on."""
_EPOCHS_MIDDLE = 2.5
"""Logarithm of the epochs around which slopes are counted."""
_CONSTANT = 4.0
_SLOPE_RESIDUAL = 0.08
_BASELINE_EXTRA = 0.3
"""The baseline was trained otherwise, and for how long is not known."""
_MOST_FITTED = 120
"""Hyperparameters are fitted on so many readings at most, evenly over all; predictions use every reading."""


@dataclass(frozen=True)
class Response:
    """The scale on which losses are modelled: z = ln(loss + floor)."""

    baseline: float
    """The baseline's loss: its error where quality is a proportion, else 0, losses being drops."""
    floor: float
    """Differences below it mean little: half an example, or half of the drop that is allowed."""

    @staticmethod
    def of_proportion(error: float, examples: int) -> Response:
        """For a share of examples; ``error``: the baseline's."""
        return Response(error, 0.5 / examples)

    @staticmethod
    def of_drops(floor: float) -> Response:
        """For any other metric."""
        return Response(0.0, floor)

    def scaled(self, losses: np.ndarray) -> np.ndarray:
        """z of losses. What is better than nothing lost counts as nothing lost."""
        return np.asarray(np.log(np.maximum(losses, 0.0) + self.floor))

    def of_drop(self, drops: np.ndarray) -> np.ndarray:
        """z of drops against the baseline."""
        return self.scaled(self.baseline + np.maximum(drops, 0.0))

    def drop(self, z: np.ndarray) -> np.ndarray:
        """The drop against the baseline at ``z``; negative if it is better than that."""
        return np.asarray(np.exp(z) - self.floor - self.baseline)


@dataclass(frozen=True)
class Reading:
    """The loss of a network that was read once."""

    network: Network
    epochs: float
    """Of its own training, and half of its parent's if it began with that one's weights."""
    loss: float
    """On val: the error of a proportion, or the drop of another metric. On train: the drop there, of either."""
    noise: float
    """Standard deviation of ``loss`` over other examples; ``proportion_noise`` for a share of examples."""
    split: str = "val"
    precision: str = "fp32"

    @property
    def source(self) -> tuple[str, str]:
        """Split and precision: what has an offset of its own, unless it is that of val in fp32."""
        return self.split, self.precision


def proportion_noise(error: float, examples: int) -> float:
    """Standard deviation of an error read on ``examples``; of half an example at least is not claimed to be 0."""
    return float(np.sqrt(max(error * (1 - error), 0.5 / examples * (1 - 0.5 / examples)) / examples))


@dataclass(frozen=True)
class Prediction:
    """z of networks, as they really are: without the noise of any reading."""

    mean: np.ndarray
    sd: np.ndarray

    def at(self, costs: np.ndarray) -> Beliefs:
        """With the networks' costs: what an acquisition looks at."""
        return Beliefs(costs, self.mean, self.sd)


@dataclass(frozen=True)
class Scales:
    """The model's hyperparameters, all positive: standard deviations of the logarithm of the loss, unless said."""

    similar: float = 0.5
    """Of what networks of similar widths have in common."""
    length: float = 1.5
    """How far apart, in powers of two of all widths, networks are similar."""
    linear: float = 0.5
    """For each unit of MACs, damage and dropped blocks, as they are counted in ``Seen``."""
    wiggle: float = 0.12
    """Of how a network's quality goes up and down with its epochs, apart from the slope."""
    training: float = 0.12
    """Of two trainings that differ by their seed alone."""
    slope: float = 0.25
    """What the logarithm of the loss falls by while epochs grow by a factor of e."""
    discrepancy: float = 0.3
    """Of what another source says of a network beyond its offset."""


_CENTRES = tuple(vars(Scales()).values())
_SPREADS = (0.7, 0.7, 0.7, 0.5, 0.5, 0.6, 0.5)
_OFFSETS = {"split": 0.7, "precision": 0.4}


@dataclass(frozen=True)
class _Points:
    """Networks at epochs, read at sources."""

    seen: Seen
    times: np.ndarray
    sources: tuple[tuple[str, str], ...]
    networks: tuple[Network, ...]

    def take(self, rows: np.ndarray) -> _Points:
        seen = Seen(self.seen.layers[rows], self.seen.whole[rows], self.seen.expected[rows])
        at = [int(row) for row in rows]
        return _Points(seen, self.times[rows], tuple(self.sources[i] for i in at), tuple(self.networks[i] for i in at))


@dataclass(frozen=True)
class QualityModel:
    """A fitted model; ``fit`` makes one."""

    eyes: Eyes
    response: Response
    scales: Scales
    _points: _Points
    _noise: np.ndarray
    """Standard deviations of the readings' noise, without that of the training, in z."""
    _posterior: gp.Posterior

    def predict(self, networks: Sequence[Network], epochs: np.ndarray, precision: str = "fp32") -> Prediction:
        """z on val once the networks have been trained for ``epochs``, (n,), in a precision."""
        points = _points(self.eyes, networks, epochs, [("val", precision)] * len(networks))
        added, sd = self._posterior.at(_covariance(points, self._points, self.scales), _variances(points, self.scales))
        return Prediction(self._mean(points) + added, sd)

    def look_ahead(self, networks: Sequence[Network], epochs: np.ndarray, noise: np.ndarray) -> NextReadings:
        """The next reading on val in fp32; ``noise``: its standard deviation in z by the examples, (n,).

        Its noise is correlated with that of earlier readings of the same network, which is why reading a network
        again says little.
        """
        points = _points(self.eyes, networks, epochs, [("val", "fp32")] * len(networks))
        cross, variances = _covariance(points, self._points, self.scales), _variances(points, self.scales)
        own = np.sqrt(noise**2 + self.scales.training**2)
        theirs = np.sqrt(self._noise**2 + self.scales.training**2)
        shared = ONE_READING * _same_reading(points, self._points) * own[:, None] * theirs[None, :]
        true, read = self._posterior.scaled(cross), self._posterior.scaled(cross + shared)
        added, sd = self._posterior.at(cross + shared, variances + own**2)
        return NextReadings(self._mean(points) + added, sd, variances - np.einsum("ij,ij->j", true, read))

    def calibration(self) -> np.ndarray:
        """Standardised errors of the readings, each predicted without any of its network.

        Those of a calibrated model have a root mean square of 1. Readings on val in fp32 alone, since the others'
        offsets are nobody's claim, and without the baseline's own, of which the model has no other kind.
        """
        groups = list(self._points.networks)
        errors = gp.left_out(self._posterior, groups)
        whole_network = whole(self.eyes.patterns[()])
        kept = [
            i for i, name in enumerate(groups) if name != whole_network and self._points.sources[i] == ("val", "fp32")
        ]
        return np.asarray(errors[kept])

    def _mean(self, points: _Points) -> np.ndarray:
        return _prior_mean(points, self.response, self.scales)


def fit(eyes: Eyes, response: Response, readings: Sequence[Reading], baseline_noise: float) -> QualityModel:
    """The model of all readings, and of the baseline as one more, noisy one. The order of readings does not matter.

    ``baseline_noise``: standard deviation of the baseline's loss over other examples.
    """
    ordered = sorted(readings, key=lambda r: (r.network.dropped, r.network.widths, r.source, r.epochs, r.loss))
    losses = np.array([r.loss if r.split == "val" else response.baseline + max(r.loss, 0.0) for r in ordered])
    noise = np.array([r.noise for r in ordered]) / (np.maximum(losses, 0.0) + response.floor)
    longest = max([r.epochs for r in ordered], default=float(np.exp(_EPOCHS_MIDDLE)))
    own = baseline_noise / (response.baseline + response.floor)
    z = np.append(response.scaled(losses), response.scaled(np.array(response.baseline)))
    noise = np.append(noise, np.sqrt(own**2 + _BASELINE_EXTRA**2))
    points = _points(
        eyes,
        [*(r.network for r in ordered), whole(eyes.patterns[()])],
        np.array([*(r.epochs for r in ordered), longest]),
        [*(r.source for r in ordered), ("val", "fp32")],
    )
    some = np.unique(np.linspace(0, len(z) - 1, min(len(z), _MOST_FITTED)).round().astype(int))
    fewer, fewer_noise, fewer_z = points.take(some), noise[some], z[some]

    def likelihood(values: np.ndarray) -> gp.Posterior:
        return _posterior(fewer, fewer_noise, fewer_z, response, Scales(*values.tolist()))

    scales = Scales(*gp.most_probable(likelihood, _CENTRES, _SPREADS).tolist())
    return QualityModel(eyes, response, scales, points, noise, _posterior(points, noise, z, response, scales))


def _posterior(points: _Points, noise: np.ndarray, z: np.ndarray, response: Response, scales: Scales) -> gp.Posterior:
    deviations = np.sqrt(noise**2 + scales.training**2)
    shared = ONE_READING * _same_reading(points, points)
    np.fill_diagonal(shared, 1.0)
    covariance = _covariance(points, points, scales) + shared * deviations[:, None] * deviations[None, :]
    return gp.posterior(covariance, z - _prior_mean(points, response, scales))


def _points(eyes: Eyes, networks: Sequence[Network], epochs: np.ndarray, sources: Sequence[tuple[str, str]]) -> _Points:
    times = np.log(np.maximum(np.asarray(epochs, dtype=np.float64), 1e-3)) - _EPOCHS_MIDDLE
    return _Points(eyes.see(networks), times, tuple(sources), tuple(networks))


def _prior_mean(points: _Points, response: Response, scales: Scales) -> np.ndarray:
    level = float(response.scaled(np.array(response.baseline)))
    return np.asarray(level + points.seen.expected - scales.slope * points.times)


def _covariance(left: _Points, right: _Points, scales: Scales) -> np.ndarray:
    """Of z as it really is, at both points' own sources."""
    apart = left.times[:, None] - right.times[None, :]
    over_time = (
        scales.similar**2
        + _SLOPE_RESIDUAL**2 * left.times[:, None] * right.times[None, :]
        + scales.wiggle**2 * np.exp(-(apart**2) / 2)
    )
    found = _CONSTANT + scales.linear**2 * left.seen.whole @ right.seen.whole.T
    found = found + over_time * gp.matern(left.seen.layers, right.seen.layers, scales.length)
    for place, usual in ((0, "val"), (1, "fp32")):
        mine = np.array([source[place] for source in left.sources])
        theirs = np.array([source[place] for source in right.sources])
        if (mine != usual).any() and (theirs != usual).any():
            together = (mine[:, None] == theirs[None, :]) & (mine != usual)[:, None]
            offset = _OFFSETS["split" if place == 0 else "precision"] ** 2
            found = found + together * (offset + scales.discrepancy**2 * _same_network(left, right))
    return np.asarray(found)


def _variances(points: _Points, scales: Scales) -> np.ndarray:
    """The diagonal of ``_covariance(points, points)``, without the rest of it."""
    found = _CONSTANT + scales.linear**2 * (points.seen.whole**2).sum(axis=1)
    found = found + scales.similar**2 + _SLOPE_RESIDUAL**2 * points.times**2 + scales.wiggle**2
    for place, usual, name in ((0, "val", "split"), (1, "fp32", "precision")):
        other = np.array([source[place] != usual for source in points.sources])
        found = found + other * (_OFFSETS[name] ** 2 + scales.discrepancy**2)
    return np.asarray(found)


def _same_network(left: _Points, right: _Points) -> np.ndarray:
    numbers = {network: i for i, network in enumerate(dict.fromkeys([*left.networks, *right.networks]))}
    mine = np.array([numbers[network] for network in left.networks])
    return np.asarray(mine[:, None] == np.array([numbers[network] for network in right.networks])[None, :])


def _same_reading(left: _Points, right: _Points) -> np.ndarray:
    """1 where both are of one network on one split: the same examples."""
    mine, theirs = (np.array([source[0] for source in points.sources]) for points in (left, right))
    same = _same_network(left, right) & (mine[:, None] == theirs[None, :])
    return np.asarray(same.astype(np.float64))

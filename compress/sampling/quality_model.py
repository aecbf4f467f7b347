"""What quality a network will have once it is trained, learnt from every training so far, short or long.

A Gaussian process on the logarithm of the loss (the error of a proportion; the drop of any other metric). Its mean
knows how much of the baseline is left and how long a network was trained; its noise knows how many examples a reading
was taken on, and that readings of one network on the same examples are nearly one reading. Readings from elsewhere
(the drop on train examples, other precisions) are evidence of the same quality with an offset of their own, which is
learnt (a two-level model as Kennedy and O'Hagan 2000, Biometrika 87, 1).

On numpy and scipy alone; ``gaussian_process`` says why not BoTorch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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
_MOST_FITTED = 100
"""Hyperparameters are fitted on so many readings at most, evenly over all that are used."""
_MOST_USED = 400
"""Readings that are used at most: the better half of these, and as many evenly over all others."""


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
_SPLIT_OFFSET = 0.7
_PRECISION_OFFSET = 0.4


@dataclass(frozen=True)
class _Points:
    """Networks at epochs, read on splits and in precisions."""

    seen: Seen
    times: np.ndarray
    splits: tuple[str, ...]
    precisions: tuple[str, ...]
    networks: tuple[Network, ...]


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
        points = self._ahead(networks, epochs, precision)
        cross = _Pairs.of(points, self._points).covariance(self.scales)
        added, sd = self._posterior.at(cross, _variances(points, self.scales))
        return Prediction(_prior_mean(points, self.response).at(self.scales) + added, sd)

    def look_ahead(self, networks: Sequence[Network], epochs: np.ndarray, noise: np.ndarray) -> NextReadings:
        """The next reading on val in fp32; ``noise``: its standard deviation in z by the examples, (n,).

        Its noise is correlated with that of earlier readings of the same network, which is why reading a network
        again says little.
        """
        points = self._ahead(networks, epochs, "fp32")
        pairs = _Pairs.of(points, self._points)
        cross, variances = pairs.covariance(self.scales), _variances(points, self.scales)
        own = np.sqrt(noise**2 + self.scales.training**2)
        theirs = np.sqrt(self._noise**2 + self.scales.training**2)
        shared = cross + ONE_READING * pairs.same_reading * own[:, None] * theirs[None, :]
        true, read = self._posterior.scaled(cross), self._posterior.scaled(shared)
        added, sd = self._posterior.at(shared, variances + own**2)
        mean = _prior_mean(points, self.response).at(self.scales) + added
        return NextReadings(mean, sd, variances - np.einsum("ij,ij->j", true, read))

    def calibration(self) -> np.ndarray:
        """Standardised errors of the readings, each predicted without any of its network.

        Those of a calibrated model have a root mean square of 1. Readings on val in fp32 alone, since the others'
        offsets are nobody's claim, and without the baseline's own, of which the model has no other kind.
        """
        points = self._points
        errors = gp.leave_one_out(self._posterior, points.networks)
        baseline = whole(self.eyes.patterns[()])
        sources = zip(points.networks, points.splits, points.precisions, strict=True)
        kept = [i for i, (name, *source) in enumerate(sources) if name != baseline and source == ["val", "fp32"]]
        return np.asarray(errors[kept])

    def _ahead(self, networks: Sequence[Network], epochs: np.ndarray, precision: str) -> _Points:
        return _points(self.eyes, networks, epochs, ["val"] * len(networks), [precision] * len(networks))


def fit(
    eyes: Eyes, response: Response, readings: Sequence[Reading], baseline_noise: float, scales: Scales | None = None
) -> QualityModel:
    """The model of all readings, and of the baseline as one more, noisy one. The order of readings does not matter.

    ``baseline_noise``: standard deviation of the baseline's loss over other examples. ``scales``: those of an earlier
    fit, if they are not to be found anew. Of more than 400 readings so many are used, the best ones among them, so
    that a proposal takes no longer in the end than it does half-way.
    """
    ordered = sorted(
        _used(readings), key=lambda r: (r.network.dropped, r.network.widths, r.split, r.precision, r.epochs)
    )
    losses = np.array([r.loss if r.split == "val" else response.baseline + max(r.loss, 0.0) for r in ordered])
    noise = np.array([r.noise for r in ordered]) / (np.maximum(losses, 0.0) + response.floor)
    own = baseline_noise / (response.baseline + response.floor)
    z = np.append(response.scaled(losses), response.scaled(np.array(response.baseline)))
    noise = np.append(noise, np.sqrt(own**2 + _BASELINE_EXTRA**2))
    longest = max([r.epochs for r in ordered], default=float(np.exp(_EPOCHS_MIDDLE)))

    def points(rows: Sequence[int]) -> _Points:
        taken = [ordered[row] for row in rows]
        networks = [*(r.network for r in taken), whole(eyes.patterns[()])]
        epochs = np.array([*(r.epochs for r in taken), longest])
        return _points(
            eyes, networks, epochs, [*(r.split for r in taken), "val"], [*(r.precision for r in taken), "fp32"]
        )

    everything = points(range(len(ordered)))
    if scales is None:
        some = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_FITTED)).round().astype(int)).tolist()
        fewer, mean = _Pairs.of(points(some), points(some)), _prior_mean(points(some), response)
        rows = [*some, len(ordered)]

        def likelihood(values: np.ndarray) -> gp.Posterior:
            return _posterior(fewer, noise[rows], z[rows], mean, Scales(*values.tolist()))

        scales = Scales(*gp.most_probable(likelihood, _CENTRES, _SPREADS).tolist())
    found = _posterior(_Pairs.of(everything, everything), noise, z, _prior_mean(everything, response), scales)
    return QualityModel(eyes, response, scales, everything, noise, found)


def _used(readings: Sequence[Reading]) -> list[Reading]:
    if len(readings) <= _MOST_USED:
        return list(readings)
    ordered = sorted(readings, key=lambda r: (r.loss, r.network.dropped, r.network.widths, r.split, r.precision))
    best, others = ordered[: _MOST_USED // 2], ordered[_MOST_USED // 2 :]
    evenly = np.linspace(0, len(others) - 1, _MOST_USED - len(best)).round().astype(int)
    return [*best, *(others[i] for i in evenly.tolist())]


def _posterior(pairs: _Pairs, noise: np.ndarray, z: np.ndarray, mean: _PriorMean, scales: Scales) -> gp.Posterior:
    deviations = np.sqrt(noise**2 + scales.training**2)
    shared = ONE_READING * pairs.same_reading
    np.fill_diagonal(shared, 1.0)
    covariance = pairs.covariance(scales) + shared * deviations[:, None] * deviations[None, :]
    return gp.posterior(covariance, z - mean.at(scales))


@dataclass(frozen=True)
class _PriorMean:
    """Of points; ``slope`` is what it grows by for each unit of the model's own slope."""

    fixed: np.ndarray
    slope: np.ndarray

    def at(self, scales: Scales) -> np.ndarray:
        return np.asarray(self.fixed + scales.slope * self.slope)


@dataclass(frozen=True)
class _Pairs:
    """What two lists of points have to do with each other, apart from the hyperparameters."""

    squares: np.ndarray
    """Mean squared distances of their layers' widths."""
    inner: np.ndarray
    """Inner products of ``Seen.whole``."""
    times: np.ndarray
    apart: np.ndarray
    same_split: np.ndarray
    """1 where both are of one split that is not val."""
    same_precision: np.ndarray
    """1 where both are in one precision that is not fp32."""
    same_network: np.ndarray
    same_reading: np.ndarray
    """1 where both are of one network on one split: the same examples."""

    @staticmethod
    def of(left: _Points, right: _Points) -> _Pairs:
        network, split, precision = (
            _equal(getattr(left, name), getattr(right, name)) for name in ("networks", "splits", "precisions")
        )
        return _Pairs(
            gp.mean_squares(left.seen.layers, right.seen.layers),
            left.seen.whole @ right.seen.whole.T,
            left.times[:, None] * right.times[None, :],
            np.exp(-((left.times[:, None] - right.times[None, :]) ** 2) / 2),
            split * np.array([name != "val" for name in left.splits])[:, None],
            precision * np.array([name != "fp32" for name in left.precisions])[:, None],
            network,
            network * split,
        )

    def covariance(self, scales: Scales) -> np.ndarray:
        """Of z as it really is, at both points' own splits and precisions."""
        over_time = scales.similar**2 + _SLOPE_RESIDUAL**2 * self.times + scales.wiggle**2 * self.apart
        own = scales.discrepancy**2 * self.same_network
        return np.asarray(
            _CONSTANT
            + scales.linear**2 * self.inner
            + over_time * gp.matern(self.squares, scales.length)
            + self.same_split * (_SPLIT_OFFSET**2 + own)
            + self.same_precision * (_PRECISION_OFFSET**2 + own)
        )


def _equal(left: Sequence[Hashable], right: Sequence[Hashable]) -> np.ndarray:
    """1.0 where the things are equal, else 0.0."""
    numbers = {thing: i for i, thing in enumerate(dict.fromkeys([*left, *right]))}
    mine, theirs = (np.array([numbers[thing] for thing in things], dtype=int) for things in (left, right))
    return np.asarray((mine[:, None] == theirs[None, :]).astype(np.float64))


def _points(
    eyes: Eyes, networks: Sequence[Network], epochs: np.ndarray, splits: Sequence[str], precisions: Sequence[str]
) -> _Points:
    times = np.log(np.maximum(np.asarray(epochs, dtype=np.float64), 1e-3)) - _EPOCHS_MIDDLE
    return _Points(eyes.see(networks), times, tuple(splits), tuple(precisions), tuple(networks))


def _prior_mean(points: _Points, response: Response) -> _PriorMean:
    level = float(response.scaled(np.array(response.baseline)))
    return _PriorMean(level + points.seen.expected, -points.times)


def _variances(points: _Points, scales: Scales) -> np.ndarray:
    """The diagonal of the covariance of points with themselves, without the rest of it."""
    found = _CONSTANT + scales.linear**2 * (points.seen.whole**2).sum(axis=1)
    found = found + scales.similar**2 + _SLOPE_RESIDUAL**2 * points.times**2 + scales.wiggle**2
    own = scales.discrepancy**2
    found = found + np.array([name != "val" for name in points.splits]) * (_SPLIT_OFFSET**2 + own)
    return np.asarray(found + np.array([name != "fp32" for name in points.precisions]) * (_PRECISION_OFFSET**2 + own))

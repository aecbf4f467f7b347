"""Tables that nobody trained: a made-up truth of cost and quality, to test and tune a search by.

The truth is another one than the models of the search assume: damage adds up over layers with powers of their own and
an interaction, errors saturate, time takes its toll by a power law, and what a reading on val says depends on
examples that all networks share.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from benchmarks.tabular.tables import Entry, Table
from compress.sampling.network_arrays import channels
from compress.values.networks import GroupLadder, LayerShape, Network, Pattern

FULL = 64
STEP = 16
_WIDTHS = (16, 32, 48, 64)
_QUIRK = 0.02


@dataclass(frozen=True)
class Kind:
    """What sort of task it is."""

    baseline_error: float
    harm: float
    """How much the logarithm of the error grows by all the damage that there can be."""
    val_examples: int
    limit: float
    budget: float
    full_epoch: float
    """Seconds of an epoch of the baseline."""
    lengths: tuple[float, ...]
    late: float
    """How much of an error is left to be trained away after one epoch, as a multiple of what stays."""
    scatter: float
    """Standard deviation of the logarithm of the error over seeds of a training; over networks half as much again."""


KINDS = {
    "keywords": Kind(0.01, 3.6, 300, 0.01, 480.0, 1.4, (8.0, 24.0, 60.0), 6.0, 0.08),
    "images": Kind(0.3, 0.8, 2000, 0.02, 720.0, 26.0, (1.0, 3.0, 8.0), 0.5, 0.025),
}


def make(kind: str, seed: int, blocks: int = 3, widths: tuple[int, ...] = _WIDTHS) -> Table:
    """A complete table: ``len(widths) * (len(widths) + 1) ** blocks`` networks, 500 unless told otherwise."""
    settings = KINDS[kind]
    rng = np.random.default_rng(seed)
    patterns = all_patterns(blocks, widths)
    truth = _Truth(rng, settings, [f"block{i}" for i in range(blocks)])
    seconds = _latencies(patterns[0], all_of(patterns[0])[-1:], 1.0, 0.35)[0]
    entries = []
    for pattern in patterns:
        networks = all_of(pattern)
        fp32 = _latencies(pattern, networks, 1.0, 0.35) / seconds
        int8 = _latencies(pattern, networks, 0.55, 0.8) / seconds
        for network, cost, in_int8 in zip(networks, fp32, int8, strict=True):
            entries.append(truth.entry(network, float(cost), float(in_int8)))
    return Table(
        f"synthetic-{kind}-{seed}", STEP, settings.lengths, settings.limit, settings.budget, truth.baseline_on_val,
        settings.baseline_error, settings.val_examples, 4 * settings.val_examples, tuple(patterns), tuple(entries),
    )  # fmt: skip


class _Truth:
    """How good networks really are, and what is read of it."""

    def __init__(self, rng: np.random.Generator, settings: Kind, blocks: list[str]) -> None:
        self.rng, self.settings, self.blocks = rng, settings, blocks
        weights = rng.uniform(0.5, 2.0, len(blocks) + 1)
        self.weights = weights / weights.sum()
        self.powers = rng.uniform(1.3, 3.0, len(blocks) + 1)
        self.examples = rng.normal(size=settings.val_examples)
        self.baseline_on_val = self._read(settings.baseline_error, rng.normal(size=settings.val_examples))

    def entry(self, network: Network, cost: float, cost_int8: float) -> Entry:
        settings, rng = self.settings, self.rng
        damage = self._damage(network)
        own = rng.normal(size=settings.val_examples)
        lasting = settings.baseline_error * np.exp(settings.harm * damage + 1.5 * settings.scatter * rng.normal())
        true, val, train = [], [], []
        for epochs in settings.lengths:
            late = 1 + settings.late * (0.3 + damage) * epochs**-0.8
            # The baseline itself was trained for long.
            error = min(0.9, float(lasting * late * np.exp(settings.scatter * rng.normal())))
            true.append(error)
            val.append(self._read(error, own))
            train.append(float(max(0.0, 1.3 * (error - settings.baseline_error) + 0.002 * rng.normal())))
        worse = float(np.exp(abs(2 * settings.scatter * rng.normal())))
        in_int8 = [self._read(min(0.9, error * worse), own) for error in true]
        cost, cost_int8 = (c * float(np.exp(_QUIRK * rng.normal())) for c in (cost, cost_int8))
        return Entry(
            network,
            {"fp32": cost, "int8": cost_int8},
            settings.full_epoch * (0.08 + 0.92 * cost**0.9),
            {"fp32": tuple(val), "int8": tuple(in_int8)},
            {"fp32": tuple(true), "int8": tuple(min(0.9, error * worse) for error in true)},
            tuple(train),
        )

    def _damage(self, network: Network) -> float:
        """From 0 for the baseline to 1 or somewhat more."""
        lost = [(1 - network.width_of["trunk"] / FULL) ** self.powers[0]]
        for i, name in enumerate(self.blocks):
            gone = name in network.dropped
            lost.append(1.1 if gone else (1 - network.width_of[name] / FULL) ** self.powers[i + 1])
        together = float(np.dot(self.weights, lost))
        return together + 0.3 * together**2

    def _read(self, error: float, own: np.ndarray) -> float:
        """The share of examples that are wrong: hard ones for all networks, some for this one, some this time."""
        noise = self.rng.normal(size=len(own))
        hardness = np.sqrt(0.5) * self.examples + np.sqrt(0.3) * own + np.sqrt(0.2) * noise
        return float((hardness < ndtri(error)).mean())


def all_patterns(blocks: int, widths: tuple[int, ...] = _WIDTHS) -> list[Pattern]:
    """A trunk and its residual blocks, any of them dropped; the baseline first."""
    names = [f"block{i}" for i in range(blocks)]
    choices = (dropped for count in range(blocks + 1) for dropped in itertools.combinations(names, count))
    return [_pattern(dropped, names, widths) for dropped in choices]


def _pattern(dropped: tuple[str, ...], blocks: list[str], widths: tuple[int, ...]) -> Pattern:
    left = [name for name in blocks if name not in dropped]
    layers = [LayerShape("stem", "conv", 9, 400, 3, FULL, (), (("trunk", 1),))]
    for name in left:
        layers.append(LayerShape(f"{name}.a", "conv", 9, 100, FULL, FULL, (("trunk", 1),), ((name, 1),)))
        layers.append(LayerShape(f"{name}.b", "conv", 9, 100, FULL, FULL, ((name, 1),), (("trunk", 1),)))
    layers.append(LayerShape("head", "linear", 1, 1, FULL, 10, (("trunk", 1),), ()))
    groups = tuple(GroupLadder(name, FULL, widths) for name in ["trunk", *left])
    return Pattern(dropped, groups, tuple(layers))


def all_of(pattern: Pattern) -> list[Network]:
    """Every network of a pattern, the widest last."""
    names = [group.name for group in pattern.groups]
    return [
        Network(pattern.dropped, tuple(sorted(zip(names, widths, strict=True))))
        for widths in itertools.product(*(group.widths for group in pattern.groups))
    ]


def _latencies(pattern: Pattern, networks: list[Network], of_products: float, of_call: float) -> np.ndarray:
    """Microseconds: a staircase of blocks of channels, and something for every call of a layer."""
    inputs, outputs = channels(pattern, networks)
    kernels, places = (np.array([getattr(layer, key) for layer in pattern.layers]) for key in ("kernel", "positions"))
    blocks = np.ceil(inputs / STEP) * np.ceil(outputs / STEP)
    products = of_products * blocks * kernels * places / 900.0
    moved = (np.ceil(inputs / STEP) + np.ceil(outputs / STEP)) * places / 800.0
    # Larger layers use the caches better: not linear, as the cost model would have it.
    return np.asarray((of_call + moved + products**0.96).sum(axis=1))

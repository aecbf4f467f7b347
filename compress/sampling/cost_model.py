"""What a network costs on a target, known before it is trained, from some twenty untrained networks that were measured.

Runtimes compute in blocks of channels, so cost is a staircase of widths; as a sum of blocks over layers, with a
weight for every kind of layer, it is linear. The weights are found by non-negative least squares (Lawson and Hanson
1974), relative errors counting alike for small and large networks, and the error is stated by leaving out each
measured network in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from compress.sampling.network_arrays import Patterns, by_pattern, channels, narrowest, whole
from compress.values.networks import LayerShape, Network, Pattern

Row = Mapping[str, float]
"""Column -> value, for one network; a column that is not there is 0."""
_MOST_LEFT_OUT = 64
"""Networks that are left out to state the error; of more, as many evenly over their costs."""
_LEAST_ERROR = 0.005
"""Measurements scatter by this much at least, whatever the regression says of itself."""
_OFF = 3.0


def features(pattern: Pattern, network: Network, step: int, *, places: bool = True) -> dict[str, float]:
    """The columns of one network; see ``feature_rows``."""
    return feature_rows({pattern.dropped: pattern}, [network], step, places=places)[0]


def feature_rows(
    patterns: Patterns, networks: Sequence[Network], step: int, *, places: bool = True, counted: bool = False
) -> list[dict[str, float]]:
    """What the cost is a weighted sum of, for each network.

    ``step``: channels of a block on the target. ``1``: always 1. For every kind of layer and size of kernel: their
    number; output blocks times positions; output blocks times input blocks times positions times kernel (not of
    depthwise layers, where it says nothing new). ``moved``: input and output blocks times positions, of all layers.
    Without ``places`` every layer counts as if it computed at one position, as for the size of a file, and there is
    ``any`` kind of layer, or operator: 1 where it occurs, since code that runs it is then there, too. Where
    instructions are ``counted``, there is also what noise would drown in times (see ``_layer_columns``).
    """
    rows: list[dict[str, float]] = [{} for _ in networks]
    for dropped, indices in by_pattern(networks).items():
        pattern = patterns[dropped]
        inputs, outputs = channels(pattern, [networks[i] for i in indices])
        columns: dict[str, np.ndarray] = {"1": np.ones(len(indices))}
        for j, layer in enumerate(pattern.layers):
            # Of one channel a depthwise layer is an ordinary one; what is timed has no networks as small as that.
            ordinary = (inputs[:, j] == 1) if layer.kind == "depthwise" and (counted or not places) else None
            parts = [(layer, 1.0)]
            if ordinary is not None and ordinary.any():
                parts = [(layer, 1.0 - ordinary), (replace(layer, kind="conv"), 1.0 * ordinary)]
            for part, share in parts:
                for name, values in _layer_columns(part, inputs[:, j], outputs[:, j], step, places, counted).items():
                    columns[name] = columns.get(name, 0.0) + share * values
                if not places:
                    columns[f"any {part.kind}"] = np.maximum(columns.get(f"any {part.kind}", 0.0), share)
        if not places and pattern.run is not None:
            columns |= {f"any {one.name}": np.ones(len(indices)) for one in pattern.run.steps}
        for place, i in enumerate(indices):
            rows[i] = {name: float(np.broadcast_to(values, len(indices))[place]) for name, values in columns.items()}
    return rows


def _layer_columns(
    layer: LayerShape, inputs: np.ndarray, outputs: np.ndarray, step: int, places: bool, counted: bool
) -> dict[str, np.ndarray]:
    """The columns of one layer, each of shape (networks,); ``inputs``, ``outputs``: its channels.

    Where instructions are ``counted``: positions; what is read at all of them; and what is left over where integers
    are multiplied four at a time, for two outputs at a time.
    """
    name, positions = f"{layer.kind} {layer.kernel}", float(layer.positions if places else 1)
    read, made = np.ceil(inputs / step), np.ceil(outputs / step)
    found = {name: np.ones(len(inputs)), f"{name} out": made * positions, "moved": (read + made) * positions}
    if layer.kind != "depthwise":
        found[f"{name} in x out"] = read * made * positions * layer.kernel
    if counted:
        found[f"{name} places"] = np.full(len(inputs), positions)
    if counted and layer.kind != "depthwise":
        each = inputs * layer.kernel
        found[f"{name} in"] = each * positions
        found[f"{name} in % 4, out"] = (each % 4) * outputs * positions
        found[f"{name} in, out % 2"] = each * (outputs % 2) * positions
    return found


Predictor = Callable[[Sequence[Network]], np.ndarray]
"""Networks -> their costs, of shape (networks,)."""


class Table(Protocol):
    """What the costs of networks go by."""

    def learn(self, networks: Sequence[Network], ratios: np.ndarray) -> Predictor:
        """What predicts any network's cost, from the costs ``ratios`` of ``networks``."""


@dataclass(frozen=True)
class FeatureTable:
    """The columns of networks, each computed once, since a search asks for the same thousands again and again."""

    patterns: Patterns
    step: int
    places: bool = True
    counted: bool = False
    _known: dict[Network, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the columns that some network has."""
        ends = [end(pattern) for pattern in self.patterns.values() for end in (whole, narrowest)]
        rows = feature_rows(self.patterns, ends, self.step, places=self.places, counted=self.counted)
        return tuple(sorted({name for row in rows for name in row}))

    def matrix(self, networks: Sequence[Network]) -> np.ndarray:
        """The columns of ``networks`` in the order of ``names``, (networks, columns)."""
        missing = [network for network in dict.fromkeys(networks) if network not in self._known]
        rows = feature_rows(self.patterns, missing, self.step, places=self.places, counted=self.counted)
        for network, row in zip(missing, rows, strict=True):
            self._known[network] = np.array([row.get(name, 0.0) for name in self.names])
        return np.array([self._known[network] for network in networks]).reshape(len(networks), len(self.names))

    def learn(self, networks: Sequence[Network], ratios: np.ndarray) -> Predictor:
        """The cost as a weighted sum of the columns, from the costs ``ratios`` of ``networks``."""
        weights = solve(self.matrix(networks), ratios)
        return lambda others: np.asarray(self.matrix(others) @ weights)


@dataclass(frozen=True)
class CostModel:
    """The cost of any network of a space, as a share of the baseline's."""

    table: Table
    measured: Mapping[Network, tuple[float, ...]]
    """Network -> its measurements, in the order in which they came."""
    exact: bool = False
    """Whether a measurement is the cost itself, as of what is counted, and no reading with noise."""

    @cached_property
    def _ratios(self) -> np.ndarray:
        return np.array([float(np.median(values)) for values in self.measured.values()])

    @cached_property
    def _predictor(self) -> Predictor:
        return self.table.learn(list(self.measured), self._ratios)

    @cached_property
    def errors(self) -> np.ndarray:
        """Relative errors of the measured networks, each predicted from all others; of at most 64 of them."""
        return left_out_errors(self.table, list(self.measured), self._ratios)

    @property
    def median_error(self) -> float:
        """The median of ``errors``: what a prediction is usually off by."""
        return float(np.median(self.errors))

    @property
    def worst_error(self) -> float:
        """The largest of ``errors``: what a prediction is off by at most."""
        return float(self.errors.max())

    def predict(self, networks: Sequence[Network]) -> np.ndarray:
        """The model's costs, of shape (networks,), measured or not."""
        return self._predictor(networks)

    def costs(self, networks: Sequence[Network]) -> np.ndarray:
        """The costs to go by: the model's; of a network that was measured, the mean of both, or what is exact.

        The fastest of many noisy measurements was also lucky; the model was not chosen by that luck.
        """
        predicted = self.predict(networks)
        for i, network in enumerate(networks):
            if network in self.measured:
                read = float(np.median(self.measured[network]))
                predicted[i] = read if self.exact else (predicted[i] + read) / 2
        return predicted

    def with_measured(self, network: Network, ratio: float) -> CostModel:
        """The model with one more measurement, fitted again. Of several of one network the median counts."""
        _check(ratio)
        measured = dict(self.measured)
        measured[network] = (*measured.get(network, ()), ratio)
        return replace(self, measured=measured)

    def is_off(self, network: Network, ratio: float) -> bool:
        """Whether a measurement is more than three usual errors off its prediction, and should be repeated.

        One that is exact would be the same again.
        """
        if self.exact:
            return False
        predicted = float(self.predict([network])[0])
        return abs(ratio - predicted) > _OFF * max(self.median_error, _LEAST_ERROR) * predicted


def fit(
    patterns: Patterns, networks: Sequence[Network], ratios: Sequence[float], step: int, *, places: bool = True,
    table: Table | None = None, exact: bool = False,
) -> CostModel:  # fmt: skip
    """The cost model of measured networks. ``ratios``: their costs, as shares of the baseline's.

    ``table``: what the model goes by, of the same patterns, instead of columns for ``step`` and ``places``; one that
    another model has filled already saves time. For latency, instructions and cycles ``step`` is the target's; for the
    size of a file it is 1 and there are no ``places``, which is exact; memory goes by a table of its own
    (``scanning/arenas.py``). ``exact``: the costs are counted, not timed.

    Raises ValueError for fewer than three networks, or a cost that is not positive and finite.
    """
    if len(networks) != len(ratios) or len(set(networks)) < 3:
        raise ValueError(f"{len(set(networks))} networks and {len(ratios)} costs; three or more of both, as many")
    measured: dict[Network, tuple[float, ...]] = {}
    for network, ratio in zip(networks, ratios, strict=True):
        _check(ratio)
        measured[network] = (*measured.get(network, ()), float(ratio))
    return CostModel(table or FeatureTable(patterns, step, places), measured, exact)


def regress(rows: Sequence[Row], ratios: np.ndarray) -> dict[str, float]:
    """Column -> weight, none negative, that make the sum of squared relative errors least."""
    names = sorted({name for row in rows for name in row})
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    return dict(zip(names, solve(matrix, ratios).tolist(), strict=True))


def solve(matrix: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """The weights of columns, (columns,), by the same rule; ``matrix``: (networks, columns)."""
    from scipy.optimize import nnls

    scale = np.maximum(matrix.max(axis=0), 1e-300)
    weights, _ = nnls(matrix / scale / ratios[:, None], np.ones(len(ratios)))
    return np.asarray(weights / scale)


def left_out_errors(table: Table, networks: Sequence[Network], ratios: np.ndarray) -> np.ndarray:
    """Relative errors, each network predicted from all others; of at most 64, evenly over their costs.

    The network of largest cost is not left out: beyond it nothing is ever predicted.
    """
    order = np.argsort(ratios, kind="stable")[:-1]
    if len(order) > _MOST_LEFT_OUT:
        order = order[np.linspace(0, len(order) - 1, _MOST_LEFT_OUT).astype(int)]
    errors = []
    for out in order:
        kept = [i for i in range(len(networks)) if i != out]
        predict = table.learn([networks[i] for i in kept], ratios[kept])
        errors.append(abs(float(predict([networks[out]])[0]) / ratios[out] - 1))
    return np.array(errors)


def _check(ratio: float) -> None:
    if not (np.isfinite(ratio) and ratio > 0):
        raise ValueError(f"a cost of {ratio} is no positive, finite number")

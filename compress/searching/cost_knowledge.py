"""What a search knows of the costs of its networks, in every precision that is worth making on its first target."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from compress.baseline.contexts import Context, Training
from compress.sampling import cost_model
from compress.sampling.cost_model import CostModel, FeatureTable, Table
from compress.sampling.network_arrays import Patterns
from compress.sampling.pool import relieved, spread
from compress.sampling.problems import Problem
from compress.scanning.arenas import ALIGNMENT, ArenaTable
from compress.scanning.cost_scan import TOGETHER, Measured, measure_networks
from compress.selection.costs import costs_of
from compress.selection.feasibility import quantity as quantity_of
from compress.values.candidates import Candidate
from compress.values.configs import OPERATORS, QAT, STORED
from compress.values.constraints import Constraint
from compress.values.networks import Network, network_of
from targets.target import COUNTS

NETWORKS = 20
"""That are measured before the first one is trained, where the time allows it."""
FEWEST = 3
"""Of them, whatever the time."""
_GAIN = 0.97
"""A precision that costs more than this share of another one's gains nothing."""
_EXACT = ("fp32", "fp16", "int8-weights", "int4-weights", "int8-dynamic", "mixed", "int8", QAT)
"""Precisions, the most exact first."""
_STATIC = ("int8", "mixed", QAT)


@dataclass
class CostKnowledge:
    """Costs of networks on the first target, as shares of the baseline's; ``learn_costs`` makes it."""

    context: Context
    training: Training
    importance: str
    operators: str
    """What static int8 quantizes, one of ``OPERATORS``."""
    quantity: str
    """The cost that is searched: ``latency``, ``instructions``, ``cycles``, ``size`` or ``memory``."""
    models: dict[str, CostModel]
    """Precision that was measured -> model of that quantity."""
    others: dict[str, dict[str, CostModel]]
    """Other quantities that a constraint limits -> precision that was measured -> model."""
    factors: Mapping[str, tuple[str, float]]
    """Precision that is made -> (the measured one it goes by, its cost as a share of that one's)."""
    precisions: tuple[str, ...]
    """Names of the variants that are made of a trained network for the first target."""
    limits: tuple[Constraint, ...]
    table: FeatureTable
    """The columns of networks that latencies go by."""
    elsewhere: tuple[str, ...] = ()
    """Names of the variants that are made for the other targets, which gain by them."""
    by_size: bool = False
    """Whether sizes are an objective, or limited."""
    arenas: ArenaTable | None = None
    """What memory goes by, where it is searched or limited, and the runs of the networks can be followed."""
    _ratios: dict[str, list[float]] = field(default_factory=dict)
    """Precision that goes by another one -> what trained networks have cost in it, as shares of that one's costs."""
    _seen: set[int] = field(default_factory=set)
    """Trials whose costs were taken in."""

    def of(self, networks: Sequence[Network]) -> dict[str, np.ndarray]:
        """Precision -> cost of each network."""
        known = {name: model.costs(networks) for name, model in self.models.items()}
        return {name: known[base] * factor for name, (base, factor) in self.factors.items()}

    def take_in_trained(self) -> None:
        """Correct precisions that go by another one's costs by what trained networks have cost in them.

        Until then they go by the untouched baseline, and kernels that pay for its widths may not for smaller ones.
        """
        state = self.context.run.state
        for trial in state.trials.values():
            network = network_of(trial.params)
            if trial.state != "finished" or network is None or trial.number in self._seen:
                continue
            self._seen.add(trial.number)
            shares = self._shares(state.candidates[name] for name in trial.candidates if name in state.candidates)
            for scheme, share in shares.items():
                base, _ = self.factors.get(scheme, (scheme, 1.0))
                if base != scheme:
                    known = shares.get(base, float(self.models[base].costs([network])[0]))
                    self._ratios.setdefault(scheme, []).append(share / known)
        found = {scheme: (self.factors[scheme][0], median(ratios)) for scheme, ratios in self._ratios.items()}
        self.factors = {**self.factors, **found}

    def _shares(self, candidates: Iterable[Candidate]) -> dict[str, float]:
        """Precision -> what a candidate in it has cost on the first target, where that was measured."""
        target, zero = self.context.targets.first.name, self.context.baseline.candidate
        found = {
            one.config["precision"]["scheme"]: costs_of(one, zero, target, (self.quantity,))[0]
            for one in candidates
            if target in one.measured
        }
        return {scheme: share for scheme, share in found.items() if math.isfinite(share) and share > 0}

    def worth_making(self, network: Network) -> tuple[str, ...]:
        """Names of the variants in which a trained network is worth a file.

        One that is not cheaper than a more exact one gains nothing, unless sizes count. What the other targets gain by
        is made as well.
        """
        costs = {name: float(values[0]) for name, values in self.of([network]).items()}
        least, kept = np.inf, set[str]()
        for scheme in sorted(costs, key=lambda name: (_EXACT.index(name) if name in _EXACT else 0, name)):
            if self.by_size or costs[scheme] <= _GAIN * least or scheme == QAT:
                kept.add(scheme)
            least = min(least, costs[scheme])
        variants = self.context.targets.variants
        return tuple(
            one.name
            for one in variants
            if (one.name in self.precisions and one.scheme in kept) or one.name in self.elsewhere
        )

    def meets(self, networks: Sequence[Network]) -> np.ndarray:
        """Whether each network may meet the limits on costs, as far as they are known, in some precision."""
        fits = [self._meets_in(name, costs, networks) for name, costs in self.of(networks).items()]
        found: np.ndarray = np.any(fits, axis=0)
        return found

    def _meets_in(self, precision: str, costs: np.ndarray, networks: Sequence[Network]) -> np.ndarray:
        """The same in one precision, of which ``costs`` are known: in int8 a network takes a quarter of the memory."""
        fits = np.ones(len(networks), dtype=bool)
        zero = self.context.baseline.candidate
        for limit in self.limits:
            other = self.others.get(limit.quantity, {}).get(self.factors[precision][0])
            if limit.quantity == self.quantity:
                shares = costs
            elif other is not None:
                shares = other.costs(networks)
            else:
                continue
            most = _share_of(limit, zero, self.context.targets.first.name)
            if most is not None:
                fits &= shares <= most
        return fits

    def relieved(self, networks: Sequence[Network]) -> list[Network]:
        """Networks that need less memory than these, cut where its peak is; none where memory is no cost."""
        return [] if self.arenas is None else relieved(self.arenas.patterns, networks, self.arenas.at_peak)

    def measure(self, network: Network) -> bool:
        """Measure a network that is about to be trained; False where it was measured before.

        A reading of time that is more than three usual errors off its prediction is repeated, carefully.
        """
        first = next(iter(self.models.values()))
        if network in first.measured:
            return False
        found = self._measured(network, carefully=False)
        if any(self.models[name].is_off(network, costs[self.quantity]) for name, costs in found.items()):
            again = self._measured(network, carefully=True)
        else:
            again = {}
        for name, costs in [*found.items(), *again.items()]:
            self.models[name] = self.models[name].with_measured(network, costs[self.quantity])
            for quantity, models in self.others.items():
                if name in models and quantity in costs:
                    models[name] = models[name].with_measured(network, costs[quantity])
        return bool(found)

    def _measured(self, network: Network, *, carefully: bool) -> Measured:
        """Precision -> costs of one network, among them the one that is searched."""
        precisions = list(self.models)
        found = measure_networks(
            self.context, self.training, [network], self.importance, precisions, carefully=carefully,
            operators=self.operators,
        )  # fmt: skip
        return {name: shares for name, shares in found.get(network, {}).items() if self.quantity in shares}

    @property
    def measured(self) -> int:
        """How many networks were measured, before any training and since."""
        return len(next(iter(self.models.values())).measured)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Precisions that are made of no trained network, since they gain nothing."""
        made = {*self.precisions, *self.elsewhere}
        return tuple(one.name for one in self.context.targets.variants if one.name not in made)

    @property
    def error(self) -> tuple[float, float]:
        """(median, largest) relative error of the first model, each network predicted from the others."""
        first = next(iter(self.models.values()))
        return first.median_error, first.worst_error


def learn_costs(
    context: Context, training: Training, problem: Problem, patterns: Patterns, importance: str, seed: int,
    seconds: float | None, most: int = NETWORKS, *, operators: str = OPERATORS[0],
) -> CostKnowledge:  # fmt: skip
    """Measure up to ``most`` networks, from the smallest to the whole one, for ``seconds`` at most (None: no limit).

    Raises StageError where fewer than three can be measured.
    """
    begun = clock.monotonic()
    quantity = _quantity(problem, context)
    networks = _in_turn(spread(patterns, most, seed))
    found: dict[Network, Measured] = {}
    precisions = _bases(context)
    for start in range(0, len(networks), TOGETHER):
        late = seconds is not None and clock.monotonic() - begun > seconds
        if late and len(found) >= FEWEST:
            break
        found |= measure_networks(
            context, training, networks[start : start + TOGETHER], importance, precisions, operators=operators
        )
        if start == 0:
            precisions = _worth(found, precisions, quantity, problem)
    found = {network: costs for network, costs in found.items() if all(name in costs for name in precisions)}
    tables = _Tables(context, patterns)
    models = {
        name: tables.fitted({n: costs[name][quantity] for n, costs in found.items()}, quantity, name)
        for name in precisions
    }
    others = {
        name: {p: tables.fitted({n: costs[p][name] for n, costs in found.items()}, name, p) for p in precisions}
        for name in quantities_of(problem) - {quantity, "quality", "quality_drop"}
        if all(name in costs[p] for costs in found.values() for p in precisions)
    }
    factors, made = _factors(context, precisions, quantity, problem, operators)
    return CostKnowledge(
        context, training, importance, operators, quantity, models, others, factors, made,
        tuple(limit for limit in problem.constraints if limit.operator == "<="), tables.blocks,
        elsewhere=_worth_elsewhere(context, problem), by_size="size" in quantities_of(problem),
        arenas=tables.arenas if "memory" in {quantity, *others} else None,
    )  # fmt: skip


def _in_turn(networks: Sequence[Network]) -> list[Network]:
    """The smallest and the whole one first, then those between, so that the first few cover the range."""
    left = list(networks)
    ordered = [left.pop(0)] + ([left.pop()] if left else [])
    count = len(left)
    strides = [i for stride in (4, 2, 1) for i in range(stride // 2, count, stride)]
    return [*ordered, *(left[i] for i in dict.fromkeys(strides)), *(left[i] for i in range(count) if i not in strides)]


def _quantity(problem: Problem, context: Context) -> str:
    costs = [name for name in problem.objectives if name != "quality"]
    if set(costs) & {"latency", *COUNTS}:
        return context.targets.first.cost_quantity
    return costs[0]


def _bases(context: Context) -> list[str]:
    """Precisions that untrained networks are written in."""
    schemes = [variant.scheme for variant in context.targets.variants]
    found = [name for name in schemes if name in ("fp32", *STORED)]
    if any(name in ("fp32", "int8-dynamic") for name in schemes) and "fp32" not in found:
        found.insert(0, "fp32")
    int8 = [variant.name for variant in context.targets.variants if variant.scheme == "int8"]
    return [*found, *int8[:1]] or ["fp32"]


def _worth(found: Mapping[Network, Measured], precisions: Sequence[str], quantity: str, problem: Problem) -> list[str]:
    """The precisions in which some network is at least 3 % cheaper than in the first one."""
    if "size" in quantities_of(problem):
        return list(precisions)
    first, *rest = precisions
    kept = [first]
    for name in rest:
        ratios = [
            costs[name][quantity] / costs[first][quantity]
            for costs in found.values()
            if name in costs and first in costs and costs[first].get(quantity)
        ]
        if ratios and min(ratios) <= _GAIN:
            kept.append(name)
    return kept


def quantities_of(problem: Problem) -> set[str]:
    """All quantities that have a say: those that are searched, and those that are limited."""
    return {*problem.objectives, *(limit.quantity for limit in problem.constraints)}


class _Tables:
    """The columns of networks, once for all costs that go by the same ones."""

    def __init__(self, context: Context, patterns: Patterns) -> None:
        self.blocks = FeatureTable(patterns, context.targets.step)
        self._weights = FeatureTable(patterns, 1, places=False)
        self._places = FeatureTable(patterns, 1)
        self._arenas = {bits: ArenaTable(patterns, ALIGNMENT // bits) for bits in (8, 32)}
        self._followed = all(pattern.run is not None for pattern in patterns.values())
        self._integers = {one.name for one in context.targets.variants if one.scheme in _STATIC}
        self._is_counted = context.targets.first.counted
        self._counts = FeatureTable(patterns, context.targets.step, counted=True)

    @property
    def arenas(self) -> ArenaTable | None:
        """What is live when in the networks, where that can be followed."""
        return self._arenas[8] if self._followed else None

    def fitted(self, shares: Mapping[Network, float], quantity: str, precision: str) -> CostModel:
        """The model of a quantity in a precision, fitted to the shares of the networks that were measured."""
        table: Table = {"size": self._weights, "memory": self._places}.get(
            quantity, self._counts if quantity == "instructions" else self.blocks
        )
        if quantity == "memory" and self._followed:
            table = self._arenas[8 if precision in self._integers else 32]
        # What is counted is the same whenever it is measured, and so is a file's size.
        exact = self._is_counted or quantity == "size"
        return cost_model.fit(
            self.blocks.patterns, list(shares), list(shares.values()), self.blocks.step, table=table, exact=exact
        )


def _factors(
    context: Context, measured: Sequence[str], quantity: str, problem: Problem, operators: str
) -> tuple[dict[str, tuple[str, float]], tuple[str, ...]]:
    """How precisions go by those that were measured, from the untouched baseline in all of them.

    Files in which int8 has quantized these ``operators`` come before others.
    """
    target = context.targets.first.name
    known: dict[str, float] = {"fp32": 1.0}
    found = context.run.state.candidates.values()
    for candidate in sorted(found, key=lambda one: one.config["precision"].get("int8_operators") != operators):
        if candidate.trial is not None and not candidate.config.get("widths") and target in candidate.measured:
            [share] = costs_of(candidate, context.baseline.candidate, target, (quantity,))
            if math.isfinite(share) and "dropped" not in candidate.config:
                known.setdefault(candidate.config["precision"]["scheme"], share)
    factors: dict[str, tuple[str, float]] = {}
    names: list[str] = []
    for variant in context.targets.variants:
        scheme = variant.scheme
        base = scheme if scheme in measured else "int8" if scheme in _STATIC and "int8" in measured else measured[0]
        factor = known[scheme] / known[base] if scheme in known and base in known else 1.0
        gains = scheme in measured or known.get(scheme, 1.0) <= _GAIN or base == "int8"
        if gains or "size" in quantities_of(problem) or scheme in (*STORED, QAT):
            factors[scheme] = (base, factor)
            names.append(variant.name)
    if not factors:
        factors[measured[0]] = (measured[0], 1.0)
        names = [variant.name for variant in context.targets.variants]
    return factors, tuple(names)


def _worth_elsewhere(context: Context, problem: Problem) -> tuple[str, ...]:
    """Names of the variants that the targets after the first one gain by, as the untouched network's files cost there.

    They go by that network alone: their costs are not what is searched.
    """
    found: set[str] = set()
    for target in context.targets.all[1:]:
        timed = {"latency", *COUNTS} & set(problem.objectives)
        quantity = target.cost_quantity if timed else next(name for name in problem.objectives if name != "quality")
        shares = _untouched_on(context, target.name, quantity)
        least = math.inf
        for variant in sorted(context.targets.variants, key=lambda one: _EXACT.index(one.scheme)):
            share = shares.get(variant.name, 1.0 if variant.scheme == "fp32" else None)
            if target.name in variant.targets and share is not None:
                if share <= _GAIN * least or "size" in quantities_of(problem):
                    found.add(variant.name)
                least = min(least, share)
    return tuple(variant.name for variant in context.targets.variants if variant.name in found)


def _untouched_on(context: Context, target: str, quantity: str) -> dict[str, float]:
    """Variant's name -> what the untouched network costs in it on ``target``, as a share of the baseline's cost."""
    zero, found = context.baseline.candidate, dict[str, float]()
    for one in context.run.state.candidates.values():
        untouched = one.trial is not None and not one.config.get("widths") and "dropped" not in one.config
        if untouched and target in one.measured:
            [share] = costs_of(one, zero, target, (quantity,))
            if math.isfinite(share):
                found.setdefault(one.id.partition("-")[2], share)
    return found


def _share_of(limit: Constraint, zero: Candidate, target: str) -> float | None:
    """A limit as a share of the baseline's cost."""
    if limit.relative:
        return limit.limit
    value = quantity_of(zero, zero.measured[target], limit.quantity)
    return limit.limit / value if value else None

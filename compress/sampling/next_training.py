"""What is trained next: a new network, one that is known for longer, or what is shipped, once more and for longest.

A pure function of what is known: the plan of the time, a pool of networks with their costs, what was trained, and the
quality model of it. Nothing here trains or measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compress.sampling.acquisition import (
    FRONT_WEIGHT,
    LUCK,
    Beliefs,
    Bracket,
    fastest,
    front_gains,
    halving,
    knowledge_gradient,
    per_second,
    usefulness,
)
from compress.sampling.quality_model import QualityModel
from compress.sampling.rungs import Plan
from compress.values.networks import Network

Reason = Literal["halving", "fastest", "front", "ending", "varied", "unknown"]
"""``varied`` and ``unknown`` are what a caller may choose where there is no gain."""

REFERENCE = (1.1, 0.1)
"""(cost, drop) in front of which hypervolume is counted."""
_NEW = 1.5
"""Seconds that a new network takes before it can be trained."""
_LEAST_GAIN = 1e-4
"""Less than this is no gain: a share of the baseline's cost, or of the front's volume."""


@dataclass(frozen=True)
class Options:
    """Networks that may be trained, new ones and those that were trained already."""

    networks: tuple[Network, ...]
    costs: Mapping[str, np.ndarray]
    """Precision -> cost of each network in it, as a share of the baseline's; every training yields all of them."""
    seconds_per_epoch: np.ndarray


@dataclass(frozen=True)
class Trained:
    """A network that was trained, and is not being trained any more."""

    network: Network
    rungs: int
    """That it climbed; all of them, if it may not be trained further."""
    epochs: float
    drops: Mapping[str, float]
    """Precision -> its drop on val, of the weights that are kept."""
    ended: bool = False
    """Whether it was trained for the end already: once more says little that is new."""


@dataclass(frozen=True)
class UnderWay:
    """A network that is being trained elsewhere at this moment, and for how many epochs in all."""

    network: Network
    epochs: float


@dataclass(frozen=True)
class Training:
    """One training that should be done next."""

    network: Network
    epochs: float
    reason: Reason
    gain: float
    """What it is expected to change, in shares of the baseline's cost, or of usefulness at the end."""
    probability: float
    """To be within the limit once all its rungs are climbed."""
    starts_anew: bool
    """From the baseline, whatever weights the network has."""


@dataclass(frozen=True)
class Aim:
    """What is looked for, and up to where the front counts."""

    limit: float
    """The drop that is allowed."""
    noise: float
    """Standard deviation of z of a reading on val at the limit, by its examples."""
    reference: tuple[float, float] = REFERENCE
    front_weight: float = FRONT_WEIGHT
    luck: float = LUCK


@dataclass(frozen=True)
class Known:
    """Everything that the choice depends on, at one moment of a search."""

    plan: Plan
    spent: float
    aim: Aim
    options: Options
    trained: Sequence[Trained]
    """In the order of their first trainings."""
    model: QualityModel
    under_way: Sequence[UnderWay] = ()
    endings: int = 0
    """Trainings of the end that were begun."""


def next_training(known: Known) -> Training | None:
    """The training that is worth most for what it takes, or None if the time is over or nothing is worth any.

    First three trainings that halve the range of costs; then the greatest gain for each second that is left to the
    last rung, of which only the next one is done; in the time kept for the end up to two trainings that change what
    is shipped, and while none would, the search goes on.
    """
    phase = known.plan.phase(known.spent, len(known.trained) + len(known.under_way))
    if phase == "over":
        return None
    if phase == "halving":
        return _halved(known) or _explored(known)
    return (_ended(known) if phase == "ending" else None) or _explored(known)


def incumbent(trained: Sequence[Trained], options: Options, limit: float) -> float:
    """The cost of the fastest trained network within the limit on val, or 1, the baseline's."""
    points = trained_points(trained, options)
    return float(points[points[:, 1] <= limit, 0].min(initial=1.0))


def trained_points(trained: Sequence[Trained], options: Options) -> np.ndarray:
    """(cost, drop on val) of everything that was trained, in each precision, and of the baseline; (k, 2)."""
    place = {network: i for i, network in enumerate(options.networks)}
    points = [(1.0, 0.0)]
    for each in trained:
        for precision, drop in each.drops.items():
            points.append((float(options.costs[precision][place[each.network]]), drop))
    return np.array(points)


def _explored(known: Known) -> Training | None:
    plan, options, aim = known.plan, known.options, known.aim
    rungs, epochs_done = _progress(known)
    ahead, more = np.zeros(len(rungs)), np.zeros(len(rungs))
    for done in sorted(set(rungs.tolist())):
        rows = rungs == done
        more[rows] = plan.total_epochs(done, options.seconds_per_epoch[rows])
    ahead = epochs_done + more
    busy = {each.network for each in known.under_way}
    free = (more > 0) & np.array([network not in busy for network in options.networks])
    fast, front = _gains(known, ahead)
    gains = np.where(free, fast + aim.front_weight * front, 0.0)
    new = np.where(rungs == 0, _NEW, 0.0)
    # What the rungs still take; but no training is begun whose next rung does not fit.
    rates = per_second(gains, more * options.seconds_per_epoch + new)
    left = plan.budget - known.spent
    next_rung = np.array(
        [plan.epochs(int(done), float(s)) * s if done < len(plan.rungs) else np.inf
         for done, s in zip(rungs, options.seconds_per_epoch, strict=True)]
    )  # fmt: skip
    rates = np.where(next_rung + new <= left, rates, 0.0)
    best = int(np.argmax(rates))
    if rates[best] <= 0.0 or gains[best] < _LEAST_GAIN:
        return None
    reason: Reason = "fastest" if fast[best] >= aim.front_weight * front[best] else "front"
    epochs = plan.epochs(int(rungs[best]), float(options.seconds_per_epoch[best]))
    return _training(known, best, epochs, float(ahead[best]), reason, float(gains[best]))


def _halved(known: Known) -> Training | None:
    options = known.options
    costs = _least_costs(options)
    epochs = known.plan.total_epochs(0, options.seconds_per_epoch)
    prediction = known.model.predict(options.networks, epochs)
    limit = float(known.model.response.of_drop(np.array(known.aim.limit)))
    place = {network: i for i, network in enumerate(options.networks)}
    bracket = Bracket(float(costs.min()), 1.0)
    for each in known.trained:
        at = place[each.network]
        is_within = min(each.drops.values()) <= known.aim.limit or bool(prediction.mean[at] <= limit)
        bracket = bracket.after(float(costs[at]), is_within)
    for network in (each.network for each in known.under_way):
        # As if it were known already; else all workers would try the same cost at once.
        at = place[network]
        bracket = bracket.after(float(costs[at]), bool(prediction.mean[at] <= limit))
    free = np.ones(len(costs), dtype=bool)
    for network in [*(each.network for each in known.trained), *(each.network for each in known.under_way)]:
        free[place[network]] = False
    best = halving(prediction.at(costs), bracket, free)
    if best is None:
        return None
    own = known.plan.epochs(0, float(options.seconds_per_epoch[best]))
    return _training(known, best, own, float(epochs[best]), "halving", 0.0)


def _ended(known: Known) -> Training | None:
    """The training that changes most what is shipped, with the share of the time that the plan gives it."""
    plan, options, model = known.plan, known.options, known.model
    seconds = plan.end_seconds(known.spent, known.endings)
    if seconds <= 0.0:
        return None
    # Where trainings have given lengths each starts anew, and the longest need not be done twice.
    anew = not plan.is_dear or bool(plan.lengths)
    epochs = np.full(len(options.networks), plan.lengths[-1]) if plan.lengths else seconds / options.seconds_per_epoch
    rungs, done = _progress(known)
    ahead = epochs if anew else epochs + done
    possible = epochs * options.seconds_per_epoch <= plan.budget - known.spent
    if plan.lengths:
        possible &= rungs < len(plan.lengths)
    costs = _least_costs(options)
    limit = float(model.response.of_drop(np.array(known.aim.limit)))
    readings = model.look_ahead(options.networks, ahead, np.full(len(costs), known.aim.noise))
    beliefs = model.predict(options.networks, ahead).at(costs)
    now = shipped(known)
    gains = knowledge_gradient(beliefs, readings, limit, now[1] if now else 0.0)
    busy = {each.network for each in known.under_way} | {each.network for each in known.trained if each.ended}
    gains = np.where(possible & np.array([network not in busy for network in options.networks]), gains, 0.0)
    best = int(np.argmax(gains))
    if gains[best] < _LEAST_GAIN:
        return None
    return _training(known, best, float(epochs[best]), float(ahead[best]), "ending", float(gains[best]), anew=anew)


def shipped(known: Known) -> tuple[Network, float] | None:
    """The trained network within the limit on val that is most useful, and how useful; None if only the baseline is.

    Usefulness weighs speed against the certainty to be within the limit really, and not only on val.
    """
    within = [each for each in known.trained if min(each.drops.values()) <= known.aim.limit]
    if not within:
        return None
    place = {network: i for i, network in enumerate(known.options.networks)}
    limit = float(known.model.response.of_drop(np.array(known.aim.limit)))
    networks, epochs = [each.network for each in within], np.array([each.epochs for each in within])
    found = np.zeros(len(within))
    for precision, costs in known.options.costs.items():
        read_within = np.array([each.drops.get(precision, np.inf) <= known.aim.limit for each in within])
        beliefs = known.model.predict(networks, epochs, precision).at(costs[[place[each] for each in networks]])
        found = np.maximum(found, np.where(read_within, usefulness(beliefs.costs, beliefs.within(limit)), 0.0))
    best = int(np.argmax(found))
    return networks[best], float(found[best])


def _gains(known: Known, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gains of the fastest network within the limit, and of the front, in its best precision each; (n,)."""
    options, aim, model = known.options, known.aim, known.model
    limit = float(model.response.of_drop(np.array(aim.limit)))
    noise = aim.luck * (aim.noise**2 + model.scales.training**2)
    points = trained_points(known.trained, options)
    best_cost = incumbent(known.trained, options, aim.limit)
    under_way = _under_way(known)
    if under_way is not None:
        expected = np.maximum(model.response.drop(under_way.mean), 0.0)
        points = np.vstack([points, np.stack([under_way.costs, expected], axis=1)])
    fast, front = np.zeros(len(options.networks)), np.zeros(len(options.networks))
    for precision, costs in options.costs.items():
        beliefs = model.predict(options.networks, ahead, precision).at(costs)
        fast = np.maximum(fast, fastest(beliefs, limit, best_cost, noise, under_way))
        volume = front_gains(beliefs, points, aim.reference, model.response.of_drop, noise)
        front = np.maximum(front, volume / aim.reference[1])
    return fast, front


def _under_way(known: Known) -> Beliefs | None:
    if not known.under_way:
        return None
    networks = [each.network for each in known.under_way]
    place = {network: i for i, network in enumerate(known.options.networks)}
    prediction = known.model.predict(networks, np.array([each.epochs for each in known.under_way]))
    return prediction.at(_least_costs(known.options)[[place[network] for network in networks]])


def _progress(known: Known) -> tuple[np.ndarray, np.ndarray]:
    """(rungs climbed, epochs trained) of every option."""
    place = {network: i for i, network in enumerate(known.options.networks)}
    rungs, epochs = np.zeros(len(place), dtype=int), np.zeros(len(place))
    for each in known.trained:
        rungs[place[each.network]], epochs[place[each.network]] = each.rungs, each.epochs
    return rungs, epochs


def _least_costs(options: Options) -> np.ndarray:
    """Of each network, in its fastest precision."""
    return np.asarray(np.min(list(options.costs.values()), axis=0))


def _training(
    known: Known, index: int, epochs: float, ahead: float, reason: Reason, gain: float, *, anew: bool = False
) -> Training:
    network = known.options.networks[index]
    beliefs = known.model.predict([network], np.array([ahead])).at(np.zeros(1))
    limit = float(known.model.response.of_drop(np.array(known.aim.limit)))
    return Training(network, epochs, reason, gain, float(beliefs.within(limit)[0]), anew)

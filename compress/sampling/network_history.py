"""What a run's record says of the networks that were trained, as the choice of the next one takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compress.metrics.metrics import Metric
from compress.run_folder.records import State, Trial
from compress.sampling.next_training import Trained, UnderWay
from compress.sampling.quality_model import Reading, Response, proportion_noise
from compress.values.candidates import Candidate
from compress.values.networks import Network, network_of

ENDING = "ending"
"""As a trial's reason: trained for longest, to be shipped."""
_PER_DEVIATION = 3.92
"""Width of a 95 % interval in standard deviations."""


@dataclass(frozen=True)
class Scale:
    """How losses are counted: as errors, or as drops of the metric."""

    response: Response
    is_proportion: bool
    examples: int
    """Of val."""
    typical: float
    """Standard deviation of a drop on val, where the metric is no proportion."""
    target: str
    """The one that decides."""

    def noise(self, loss: float) -> float:
        """Standard deviation of a loss read on val, over other examples."""
        return proportion_noise(min(max(loss, 0.0), 1.0), self.examples) if self.is_proportion else self.typical


def scale_of(metric: Metric, baseline: Candidate, target: str, limit: float) -> Scale:
    """The scale of a search; ``limit``: the drop on val that is allowed."""
    quality = baseline.measured[target].quality.val
    is_proportion = metric.per_example is not None and metric.bounded
    if is_proportion:
        error = 1.0 - quality.value if metric.higher_is_better else quality.value
        return Scale(Response.of_proportion(error, quality.n), True, quality.n, 0.0, target)
    spread = max(quality.high - quality.low, 1e-12) / _PER_DEVIATION
    floor = max(limit / 2, spread / 10)
    # Drops are between predictions for the same examples, which go up and down together.
    return Scale(Response.of_drops(floor), False, quality.n, spread / 3, target)


@dataclass(frozen=True)
class History:
    """The trials of networks so far."""

    trained: tuple[Trained, ...]
    """In the order of their first trainings."""
    readings: tuple[Reading, ...]
    chains: Mapping[Network, tuple[int, ...]]
    """The trials of each network's newest training: the first, and those that went on from it."""
    seconds: Mapping[Network, tuple[float, ...]]
    """Seconds of an epoch, from each trial that trained it."""
    barred: frozenset[Network]
    """Those that cannot meet a limit, or failed."""
    counts: tuple[int, ...]
    """Readings after each training."""


def history(state: State, scale: Scale, rungs: int, train_examples: int) -> History:
    """All finished trials of exact networks. ``rungs``: how many there are; what ended has climbed all of them."""
    chains: dict[Network, tuple[int, ...]] = {}
    done: dict[Network, Trained] = {}
    readings: list[Reading] = []
    counts: list[int] = []
    barred: set[Network] = set()
    seconds: dict[Network, tuple[float, ...]] = {}
    for trial in sorted(state.trials.values(), key=lambda one: one.number):
        network = network_of(trial.params)
        if network is None:
            continue
        if trial.state in ("gated", "failed"):
            barred.add(network)
        if trial.state != "finished":
            continue
        further = trial.after is not None and trial.after in chains.get(network, ())
        chains[network] = (*chains[network], trial.number) if further else (trial.number,)
        epochs = sum(own_epochs(state.trials[number]) for number in chains[network])
        read = _readings(trial, network, epochs, state, scale, train_examples)
        readings += read
        counts.append(len(readings))
        drops = dict(done[network].drops) if network in done else {}
        for precision, drop in _drops(trial, state, scale.target).items():
            drops[precision] = min(drop, drops.get(precision, drop))
        climbed = rungs if trial.why.get("reason") == ENDING else min(rungs, len(chains[network]))
        earlier = done.get(network)
        ended = trial.why.get("reason") == ENDING or (earlier is not None and earlier.ended)
        done[network] = Trained(network, max(climbed, earlier.rungs if earlier else 0), epochs, drops, ended)
        if own_epochs(trial) > 0 and trial.train_seconds > 0:
            per_epoch = trial.train_seconds / own_epochs(trial)
            seconds[network] = (*seconds.get(network, ()), per_epoch)
    return History(tuple(done.values()), tuple(readings), chains, seconds, frozenset(barred), tuple(counts))


def under_way(state: State) -> tuple[UnderWay, ...]:
    """The networks that are being trained at this moment, by trials that were asked for and have not ended."""
    found = []
    for trial in state.trials.values():
        network = network_of(trial.params)
        if trial.state == "asked" and network is not None and own_epochs(trial) > 0:
            found.append(UnderWay(network, sum(rungs_before(trial, state.trials)) + own_epochs(trial)))
    return tuple(found)


def own_epochs(trial: Trial) -> float:
    """The epochs that one trial trained, parts of them included."""
    return float(trial.params.get("epochs", 0)) * float(trial.params.get("part", 1.0))


def rungs_before(trial: Trial, trials: Mapping[int, Trial]) -> tuple[float, ...]:
    """Epochs of each training that a trial goes on from, the first one first."""
    found: list[float] = []
    number = trial.after
    while number is not None and number in trials:
        found.insert(0, own_epochs(trials[number]))
        number = trials[number].after
    return tuple(found)


def _drops(trial: Trial, state: State, target: str) -> dict[str, float]:
    """Precision -> drop on val of the trial's candidates."""
    found = {}
    for name in trial.candidates:
        candidate = state.candidates.get(name)
        if candidate is not None and target in candidate.measured:
            scheme = candidate.config["precision"]["scheme"]
            found[scheme] = candidate.measured[target].quality_drop.val.value
    return found


def _readings(
    trial: Trial, network: Network, epochs: float, state: State, scale: Scale, train_examples: int
) -> list[Reading]:
    found = []
    zero = scale.response.baseline
    for precision, drop in _drops(trial, state, scale.target).items():
        loss = zero + drop if scale.is_proportion else drop
        found.append(Reading(network, epochs, loss, scale.noise(loss), "val", precision))
    if trial.train_drop is not None and train_examples:
        drop = trial.train_drop
        noise = proportion_noise(min(max(drop, 0.0), 1.0), train_examples) if scale.is_proportion else scale.typical
        found.append(Reading(network, epochs, drop, noise, "train"))
    return found

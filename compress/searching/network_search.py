"""A search that chooses networks by what they cost, which is known, and by what quality they promise, which is learnt.

Cost is known, quality is learnt, training is what is paid for: some twenty untrained networks are measured, and a
regression makes the costs of thousands; a model of quality learns from every training, short or long; the next
training is the one that is worth most for each second of it. The formulas are in ``sampling/``; here the parts come
together, for one call of a search. What was measured and trained lies in the run's record and cache, so a continued
search knows it.
"""

from __future__ import annotations

import copy
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from compress.baseline.contexts import Context, Training
from compress.pruning.patterns import network_patterns
from compress.sampling import quality_model, rungs
from compress.sampling.encoding import randomly
from compress.sampling.first_configs import steady
from compress.sampling.network_arrays import Patterns, macs, patterns_by_dropped, whole
from compress.sampling.network_features import Eyes
from compress.sampling.network_history import ENDING, History, Scale, history, own_epochs, rungs_before, scale_of
from compress.sampling.network_spaces import allowed, projected
from compress.sampling.next_training import REFERENCE, Aim, Known, Options, next_training
from compress.sampling.next_training import Training as NextTraining
from compress.sampling.pool import neighbours, random_networks, spread
from compress.sampling.problems import Problem
from compress.sampling.quality_model import Reading
from compress.sampling.rungs import Plan
from compress.sampling.studies import distributions
from compress.searching.config_proposals import ConfigProposals
from compress.searching.cost_knowledge import NETWORKS, CostKnowledge, learn_costs
from compress.searching.progress import Progress
from compress.searching.proposals import Proposal
from compress.stages.cost_scan import untrained
from compress.stages.step_times import seconds_of, step_seconds
from compress.stages.train_drops import MOST
from compress.values.domains import Float, Int, corners
from compress.values.networks import Network, network_of, params_of
from compress.values.search_spaces import AUTO, SearchSpace
from targets.errors import StageError

_POOL = 2500
_AROUND, _NEIGHBOURS = 6, 20
_UNTIMED = 8
"""Networks that are measured before the first one is trained, where no time is given."""
_TIMED = 5
"""Networks whose training steps are timed."""
_LONGEST = 16
"""Epochs of a training, where neither the space nor a time says how many."""
_REFITTED = 3
"""Beyond so many readings as are quick to fit, hyperparameters are found anew after so many trainings."""
_QUICK = 40
_MARGIN = 0.92
"""Share of the time that is left which a training is planned to take."""
_VARIED = 0.4
"""Probability of a setting to be drawn anew, where a network is trained once more with other settings."""
_FEWEST_READ = 8
"""Networks that must have been trained before what is expected of them on test has a say."""
_TRIES = 4
"""Networks that are measured before one of them is trained, at most."""


@dataclass(frozen=True)
class Time:
    """The time of a call, for trials; without a deadline it does not run."""

    begun: float
    deadline: float | None

    @property
    def spent(self) -> float:
        """Seconds since the first trial could begin."""
        return 0.0 if self.deadline is None else clock.monotonic() - self.begun

    @property
    def budget(self) -> float | None:
        """Seconds for all trials."""
        return None if self.deadline is None else self.deadline - self.begun


class NetworkSearch:
    """Proposes which network is trained next, and for how long."""

    def __init__(
        self, context: Context, training: Training, problem: Problem, time: Time, *, deterministic: bool,
        progress: Progress, trials: int | None = None,
    ) -> None:  # fmt: skip
        """``trials``: how many are asked for, where that is known."""
        self.trials = trials
        self.context, self.training, self.problem, self.time = context, training, problem, time
        self.deterministic, self.progress = deterministic, progress
        self.configs = ConfigProposals(context, problem, "auto", progress, deterministic=deterministic)
        """Proposes the untouched baseline first; and all else, where no costs can be learnt."""
        self.is_blind = False
        self.space: SearchSpace = context.run.request.space
        self.seed = context.run.request.seed
        self.limit = _limit(problem)
        self.scale: Scale = scale_of(context.metric, problem.baseline, problem.targets[0], self.limit)
        self._model: quality_model.QualityModel | None = None
        self._model_of: tuple[Reading, ...] = ()
        self._scales: dict[int, quality_model.Scales] = {}
        self.endings = 0

    # -- what is found out once

    @cached_property
    def patterns(self) -> Patterns:
        """What may be dropped, and the widths that are left to choose."""
        training, groups = self.training, self.context.profile.groups
        found = network_patterns(
            training.module, training.example, groups, training.blocks, self.context.targets.step,
            without=partial(training.groups_without, groups),
        )  # fmt: skip
        return patterns_by_dropped(allowed(found, self.space, len(training.blocks.removable)))

    @cached_property
    def costs(self) -> CostKnowledge:
        """What networks cost, from measurements; at most a tenth of the time goes into them."""
        self.progress.stage("costs")
        seconds = None if self.time.budget is None else 0.1 * self.time.budget
        most = NETWORKS if seconds is not None else _UNTIMED
        found = learn_costs(
            self.context, self.training, self.problem, self.patterns, self.importance, self.seed, seconds, most
        )
        for params in self.context.run.state.facts.measured_networks:
            network = network_of(params)
            if network is not None and network.dropped in self.patterns:
                found.measure(network)
        return found

    def _is_measured(self, network: Network) -> bool:
        """Measure a network that is about to be trained, and write down that it was; False where it was before."""
        if not self.costs.measure(network):
            return False
        facts = self.context.run.state.facts
        self.context.run.record.note("measured_networks", [*facts.measured_networks, params_of(network)])
        return True

    @property
    def importance(self) -> str:
        """How channels are ranked."""
        return str(corners(self.space.importance)[0])

    @cached_property
    def _step_seconds(self) -> dict[Network, float]:
        """Seconds of a step, of a few networks; where nothing may depend on a clock, a share of the baseline's MACs."""
        some = spread(self.patterns, _TIMED, self.seed)
        if self.deterministic or self.time.budget is None:
            share = macs(self.patterns, some) / macs(self.patterns, [whole(self.patterns[()])])[0]
            return dict(zip(some, np.maximum(share, 0.02).tolist(), strict=True))
        self.progress.stage("steps")
        found: dict[Network, float] = {}
        for network in some:
            try:
                module = untrained(self.context, self.training, network, self.importance).pruned.module
                found[network] = step_seconds(self.training, copy.deepcopy(module), self._batch_size)
            except (StageError, RuntimeError):
                continue
        return found or {whole(self.patterns[()]): 1.0}

    @property
    def _batch_size(self) -> int:
        return int(self._settings["batch_size"]) if "batch_size" in self._settings else int(self.space.batch_size)  # type: ignore[arg-type]  # a constant

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """Settings of training that seldom hurt, for the dimensions that are no network's."""
        taken = ("prune_ratio", "prune_skew", "depth", "epochs", "precision")
        return {
            name: steady(name, domain)
            for name, domain in self.context.space.dimensions((), 0, 0).items()
            if name not in taken
        }

    @cached_property
    def _lengths(self) -> tuple[float, ...]:
        """Epochs after each rung where trainings have given lengths; empty where the time says it."""
        epochs = self.space.epochs
        if epochs == AUTO and self.time.budget is not None:
            return ()
        values = sorted({int(value) for value in corners(_LONGEST if epochs == AUTO else epochs)} - {0}) or [1]
        if self.time.budget is None:
            return (float(values[-1]),)
        if isinstance(epochs, (Int, Float)) and len(values) == 2 and values[1] >= 4 * values[0]:
            values.insert(1, round((values[0] * values[1]) ** 0.5))
        return tuple(float(value) for value in values)

    @cached_property
    def plan(self) -> Plan:
        """How the time of this call is spent."""
        seconds = self._epoch_seconds(list(self._step_seconds))
        if self.time.budget is None:
            return replace(rungs.plan(1e9, seconds.tolist(), self._lengths), end=0.0)
        return rungs.plan(self.time.budget, seconds.tolist(), self._lengths)

    @cached_property
    def eyes(self) -> Eyes:
        """What the quality model sees of networks."""
        return Eyes(self.patterns)

    # -- what is asked again and again

    def propose(self, number: int) -> Proposal | None:
        """The trial to make next; None where the time is over, or nothing is worth it."""
        if self.configs.untrained is not None:
            return self.configs.untrained
        if not self.is_blind:
            try:
                self.costs.of([whole(self.patterns[()])])
            except (StageError, ValueError) as error:
                self.is_blind = True
                self.progress.note(f"the costs of networks cannot be learnt ({error}); the sampler is 'auto'")
        if self.is_blind:
            return self.configs.propose(number)
        with self.context.cache.timed("sampler"):
            return self._chosen()

    def _chosen(self) -> Proposal | None:
        for attempt in range(_TRIES):
            found, past, options = self._next()
            if found is None:
                return self._varied(past) or self._unknown(past, options)
            # What is about to be trained is measured first; then it may not be the best any more.
            is_new = not any(found.network == each.network for each in past.trained)
            if not is_new or attempt == _TRIES - 1 or not self._is_measured(found.network):
                return self._proposal(found, past)
        return None

    def _varied(self, past: History) -> Proposal | None:
        """A network that was trained, once more with other settings, where no other one is worth a training.

        It is the one whose cost times probability to be within the limit promises most. None where settings are fixed,
        or the time is too short.
        """
        dimensions = {
            name: domain for name, domain in self.context.space.dimensions((), 0, 0).items() if name in self._settings
        }
        if not dimensions or not past.trained:
            return None
        networks = [each.network for each in past.trained]
        lengths = np.array([each.epochs for each in past.trained])
        model = self._fit(past)
        costs = np.min(list(self.costs.of(networks).values()), axis=0)
        limit = float(model.response.of_drop(np.array(self.limit)))
        chances = (
            model.predict(networks, lengths).at(costs).within(limit, self._noise_at_limit(self.scale.examples) ** 2)
        )
        best = int(np.argmax((1.0 - costs) * chances))
        rng = np.random.default_rng((self.seed, len(self.context.run.state.trials)))
        space = distributions(dimensions)
        drawn = randomly(space, rng)
        varied = {name: drawn[name] if rng.random() < _VARIED else value for name, value in self._settings.items()}
        if varied == self._settings:
            varied = drawn
        training = NextTraining(networks[best], float(lengths[best]), "varied", 0.0, float(chances[best]), True)
        epochs = self._fitting(training, past)
        if self.time.budget is not None and epochs < lengths[best] / 2:
            return None
        return self._proposal(training, past, varied)

    def _unknown(self, past: History, options: Options) -> Proposal | None:
        """Where a number of trials is asked for and nothing promises anything: what is known least."""
        known = {each.network for each in past.trained} | past.barred
        left = [network for network in options.networks if network not in known]
        if self.trials is None or self.time.budget is not None or not left:
            return None
        model = self._fit(past)
        sd = model.predict(left, np.full(len(left), self._lengths[-1])).sd
        return self._proposal(
            NextTraining(left[int(np.argmax(sd))], self._lengths[-1], "unknown", 0.0, 0.0, True), past
        )

    def _next(self) -> tuple[NextTraining | None, History, Options]:
        past = self._past
        networks = self._pool(past)
        options = Options(networks, self.costs.of(networks), self._epoch_seconds(networks, past))
        noise = self._noise_at_limit(self.scale.examples)
        known = Known(
            self.plan, self.time.spent, self._aim(noise), options, past.trained, self._fit(past),
            endings=self.endings,
        )  # fmt: skip
        return next_training(known), past, options

    @cached_property
    def _random(self) -> list[Network]:
        return random_networks(self.patterns, _POOL, self.seed)

    def certainties(self) -> dict[str, float]:
        """Candidate's id -> probability that its drop on test is within the limit, of all networks that were trained.

        That is of the drop as it will be read: on few examples, what is within the limit may be read beyond it.
        """
        state, test = self.context.run.state, self.context.test
        past = self._past if not self.is_blind and "costs" in self.__dict__ else None
        if past is None or len(past.trained) < _FEWEST_READ:
            return {}
        rows: dict[str, list[tuple[str, Network, float]]] = {}
        for trial in state.trials.values():
            network = network_of(trial.params)
            if trial.state != "finished" or network is None:
                continue
            epochs = sum(rungs_before(trial, state.trials)) + own_epochs(trial)
            for one in (state.candidates[name] for name in trial.candidates if name in state.candidates):
                rows.setdefault(one.config["precision"]["scheme"], []).append((one.id, network, epochs))
        model = self._fit(past)
        limit = float(model.response.of_drop(np.array(self.limit)))
        noise = self._noise_at_limit(len(test)) if test is not None else 0.0
        found: dict[str, float] = {}
        for scheme, some in rows.items():
            names, networks, lengths = zip(*some, strict=True)
            expected = model.predict(networks, np.array(lengths), scheme)
            chances = expected.at(np.zeros(len(names))).within(limit, noise**2)
            found |= dict(zip(names, np.round(chances, 4).tolist(), strict=True))
        return found

    def _noise_at_limit(self, examples: int) -> float:
        """Standard deviation of z of a reading on so many examples, at the limit."""
        response = self.scale.response
        if not self.scale.is_proportion:
            return float(self.scale.typical * (self.scale.examples / examples) ** 0.5 / (self.limit + response.floor))
        loss = response.baseline + self.limit
        return quality_model.proportion_noise(min(loss, 1.0), examples) / (loss + response.floor)

    def _aim(self, noise: float) -> Aim:
        """What is looked for: the front counts up to twice the limit, since what is beyond it is not on it."""
        return Aim(self.limit, noise, (REFERENCE[0], min(REFERENCE[1], 2 * self.limit) or REFERENCE[1]))

    @property
    def _past(self) -> History:
        return history(self.context.run.state, self.scale, len(self.plan.rungs), self._train_examples)

    def _pool(self, past: History) -> tuple[Network, ...]:
        """Random networks, neighbours of those trained last, and all that were trained; none that cannot be had."""
        last = [each.network for each in past.trained[-_AROUND:]]
        found = dict.fromkeys(self._random)
        found |= dict.fromkeys(neighbours(self.patterns, last, _NEIGHBOURS, self.seed + len(past.readings)))
        trained = dict.fromkeys(each.network for each in past.trained)
        fitting = self.costs.meets(list(found))
        kept = [one for one, fits in zip(found, fitting, strict=True) if fits and one not in past.barred]
        baseline = whole(self.patterns[()])
        return tuple(dict.fromkeys([*(one for one in kept if one != baseline), *trained])) or (baseline,)

    def _fit(self, past: History) -> quality_model.QualityModel:
        """The model of quality, fitted to all readings.

        Where these are many its hyperparameters are those of a few trainings ago: a function of the record all the
        same, so that a continued search goes on as if it had never stopped.
        """
        if self._model is not None and self._model_of == past.readings:
            return self._model
        done = len(past.counts)
        scales = None
        if len(past.readings) > _QUICK and done % _REFITTED:
            count = past.counts[done - done % _REFITTED - 1]
            if count not in self._scales:
                self._scales[count] = self._fitted(past.readings[:count], None).scales
            scales = self._scales[count]
        self._model, self._model_of = self._fitted(past.readings, scales), past.readings
        return self._model

    def _fitted(self, readings: Sequence[Reading], scales: quality_model.Scales | None) -> quality_model.QualityModel:
        zero = self.scale.response.baseline
        noise = self.scale.noise(zero) if self.scale.is_proportion else self.scale.typical
        return quality_model.fit(self.eyes, self.scale.response, readings, noise, scales)

    @property
    def _train_examples(self) -> int:
        return min(MOST, len(self.training.train))

    def _epoch_seconds(self, networks: list[Network] | tuple[Network, ...], past: History | None = None) -> np.ndarray:
        """Seconds of an epoch of each, its own where it was trained already."""
        timed, table = list(self._step_seconds), self.costs.table
        columns = [i for i, name in enumerate(table.names) if name in ("1", "moved") or "in x out" in name]
        steps = max(1, -(-len(self.training.train) // self._batch_size))
        known = table.matrix(timed)[:, columns]
        found = seconds_of(known, list(self._step_seconds.values()), table.matrix(networks)[:, columns]) * steps
        if past is None or not past.seconds or self.time.budget is None:
            return found
        place = {network: i for i, network in enumerate(networks)}
        read = [(place[network], float(np.median(own))) for network, own in past.seconds.items() if network in place]
        found = found * (float(np.median([own / found[i] for i, own in read])) if read else 1.0)
        for i, own in read:
            found[i] = own
        return found

    def _proposal(self, found: NextTraining, past: History, settings: Mapping[str, Any] | None = None) -> Proposal:
        chain = () if found.starts_anew else past.chains.get(found.network, ())
        if found.reason == ENDING:
            self.endings += 1
        epochs = self._fitting(found, past)
        whole_epochs = max(1, round(epochs)) if epochs >= 4 or epochs == round(epochs) else int(np.ceil(epochs))
        part = {} if epochs >= 4 or epochs == whole_epochs else {"part": round(epochs / whole_epochs, 4)}
        params = {
            **params_of(found.network),
            **projected(found.network, self.patterns[()], self.problem.dimensions),
            **(settings or self._settings), "epochs": whole_epochs, **part,
        }  # fmt: skip
        why = {
            "reason": found.reason, "gain": round(found.gain, 6), "probability": round(found.probability, 4),
            "cost": {name: round(float(values[0]), 4) for name, values in self.costs.of([found.network]).items()},
        }  # fmt: skip
        return Proposal(params, chain[-1] if chain else None, self.costs.worth_making(found.network), why)

    def _fitting(self, found: NextTraining, past: History) -> float:
        """The training's epochs, or as many as are likely to end in time."""
        if self.time.budget is None or self._lengths:
            return found.epochs
        seconds = float(self._epoch_seconds([found.network], past)[0])
        left = _MARGIN * (self.time.budget - self.time.spent) - self.costs.overhead
        most = max(0.25, left / seconds)
        return min(found.epochs, most if most < 4 else float(int(most)))


def _limit(problem: Problem) -> float:
    """The drop on val that the constraints allow; a tenth of the range where they say nothing of quality."""
    zero = problem.baseline.measured[problem.targets[0]].quality.val.value
    sign = 1.0 if problem.higher_is_better else -1.0
    least = ">=" if problem.higher_is_better else "<="
    drops = [c.limit for c in problem.constraints if c.quantity == "quality_drop" and c.operator == "<="]
    drops += [sign * (zero - c.limit) for c in problem.constraints if c.quantity == "quality" and c.operator == least]
    return max(0.0, min(drops)) if drops else 0.1 * max(1.0 if 0 <= zero <= 1 else abs(zero), 1e-9)

"""A search that chooses networks by what they cost, which is known, and by what quality they promise, which is learnt.

Cost is known, quality is learnt, training is what is paid for: some twenty untrained networks are measured, and a
regression makes the costs of thousands; a model of quality learns from every training, short or long; the next
training is the one that is worth most for each second of it. The formulas are in ``sampling/``; here the parts come
together, for one call of a search. What was measured and trained lies in the run's record and cache, so a continued
search knows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from compress.run_folder.facts import Learnt
from compress.sampling import quality_model
from compress.sampling.encoding import randomly
from compress.sampling.network_arrays import whole
from compress.sampling.network_history import ENDING, History, history, own_epochs, rungs_before, under_way
from compress.sampling.network_spaces import projected
from compress.sampling.next_training import REFERENCE, Aim, Known, Options, Trained, UnderWay, next_training
from compress.sampling.next_training import Training as NextTraining
from compress.sampling.pool import neighbours, random_networks
from compress.sampling.quality_model import Reading
from compress.sampling.studies import distributions
from compress.searching.config_proposals import ConfigProposals
from compress.searching.network_knowledge import NetworkKnowledge
from compress.searching.proposals import Proposal
from compress.stages.train_drops import MOST
from compress.values.networks import Network, network_of, params_of
from targets.errors import StageError

_POOL = 2500
_AROUND, _NEIGHBOURS = 6, 20
_REFITTED = 3
"""Beyond so many readings as are quick to fit, hyperparameters are found anew after so many trainings."""
_QUICK = 40
_MARGIN = 0.92
"""Share of the time that is left which a training is planned to take."""
_MOST_VARIED = 2
"""Such trainings of one network."""
_VARIED = 0.4
"""Probability of a setting to be drawn anew, where a network is trained once more with other settings."""
_FEWEST_READ = 8
"""Trainings there must have been before what is expected of networks on test has a say."""
_TRIES = 4
"""Networks that are measured before one of them is trained, at most."""


class NetworkSearch:
    """Proposes which network is trained next, and for how long."""

    def __init__(
        self, known: NetworkKnowledge, configs: ConfigProposals, trials: int | None = None, workers: int = 1
    ) -> None:
        """``configs``: proposes the untouched baseline first, and all else where no costs can be learnt.

        ``trials``: how many are asked for, where that is known. ``workers``: how many trainings go on at once.
        """
        self.known, self.configs, self.trials, self.workers = known, configs, trials, workers
        self.context, self.seed = known.context, known.seed
        self.is_blind = False
        self._model: quality_model.QualityModel | None = None
        self._model_of: tuple[Reading, ...] = ()
        self._scales: dict[int, quality_model.Scales] = {}
        self.endings = 0

    def propose(self, number: int) -> Proposal | None:
        """The trial to make next; None where the time is over, or nothing is worth it."""
        if self.configs.untrained is not None:
            return self.configs.untrained
        if not self.is_blind:
            try:
                self.known.costs.of([whole(self.known.patterns[()])])
            except (StageError, ValueError) as error:
                self.is_blind = True
                self.known.progress.note(f"the costs of networks cannot be learnt ({error}); the sampler is 'auto'")
        if self.is_blind:
            return self.configs.propose(number)
        self.known.costs.take_in_trained()
        with self.context.cache.timed("sampler"):
            return self._chosen()

    def _chosen(self) -> Proposal | None:
        for attempt in range(_TRIES):
            found, past, options = self._next()
            if found is None:
                # Nothing that is left to explore is worth it: then what is kept for the end is begun early.
                found, past, options = self._next(ending=True)
            if found is None:
                return self._varied(past) or self._unknown(past, options)
            # What is about to be trained is measured first; then it may not be the best any more.
            is_new = all(found.network != each.network for each in past.trained)
            if not is_new or attempt == _TRIES - 1 or not self.known.measure(found.network):
                return self._proposal(found, past)
        return None

    def _varied(self, past: History) -> Proposal | None:
        """A network of the front, once more with other settings, where no other one is worth a training.

        It is the one whose gain in cost times probability to be within the limit promises most, of those that had no
        two such trainings yet. None where settings are fixed, or the time is too short.
        """
        dimensions = self.known.setting_dimensions
        trials = self.context.run.state.trials.values()
        had = Counter(network_of(one.params) for one in trials if one.why.get("reason") == "varied")
        busy = {each.network for each in self._under_way}
        left = [one for one in self._on_front(past) if had[one.network] < _MOST_VARIED and one.network not in busy]
        if not dimensions or not left:
            return None
        networks, lengths = [each.network for each in left], np.array([each.epochs for each in left])
        model = self._fit(past)
        costs = self._least_costs(networks)
        limit = float(model.response.of_drop(np.array(self.known.limit)))
        luck = self.known.noise_at_limit(self.known.scale.examples) ** 2
        chances = model.predict(networks, lengths).at(costs).within(limit, luck)
        best = int(np.argmax((1.0 - costs) * chances))
        rng = np.random.default_rng((self.seed, len(self.context.run.state.trials)))
        drawn = randomly(distributions(dimensions), rng)
        varied = {
            name: drawn[name] if name in drawn and rng.random() < _VARIED else value
            for name, value in self.known.settings.items()
        }
        training = NextTraining(networks[best], float(lengths[best]), "varied", 0.0, float(chances[best]), True)
        if self.known.time.budget is not None and self._fitting(training, past) < lengths[best] / 2:
            return None
        return self._proposal(training, past, drawn if varied == self.known.settings else varied)

    def _on_front(self, past: History) -> list[Trained]:
        """The trained networks within the limit on val that no other one is at once cheaper and better than.

        Quality beyond the baseline's counts nothing.
        """

        def drop(one: Trained) -> float:
            return max(0.0, min(one.drops.values(), default=np.inf))

        within = [one for one in past.trained if drop(one) <= self.known.limit]
        costs = self._least_costs([one.network for one in within])
        order = sorted(range(len(within)), key=lambda i: (costs[i], drop(within[i])))
        front: list[Trained] = []
        for i in order:
            if not front or drop(within[i]) < drop(front[-1]):
                front.append(within[i])
        return front

    def _least_costs(self, networks: Sequence[Network]) -> np.ndarray:
        return np.asarray(np.min(list(self.known.costs.of(networks).values()), axis=0)) if networks else np.zeros(0)

    def _unknown(self, past: History, options: Options) -> Proposal | None:
        """Where a number of trials is asked for and nothing promises anything: what is known least."""
        known = {one.network for one in past.trained} | {one.network for one in self._under_way} | past.barred
        left = [network for network in options.networks if network not in known]
        if self.trials is None or self.known.time.budget is not None or not left:
            return None
        model = self._fit(past)
        sd = model.predict(left, np.full(len(left), self.known.lengths[-1])).sd
        return self._proposal(
            NextTraining(left[int(np.argmax(sd))], self.known.lengths[-1], "unknown", 0.0, 0.0, True), past
        )

    def _next(self, *, ending: bool = False) -> tuple[NextTraining | None, History, Options]:
        past = self._past
        networks = self._pool(past)
        options = Options(networks, self.known.costs.of(networks), self.known.epoch_seconds(networks, past))
        noise = self.known.noise_at_limit(self.known.scale.examples)
        plan = self.known.plan
        if ending and self.known.time.budget is not None:
            plan = replace(plan, end=plan.budget)
        known = Known(
            plan, self.known.time.spent, self._aim(noise), options, past.trained, self._fit(past),
            self._under_way, self.endings // self.workers,
        )  # fmt: skip
        return next_training(known), past, options

    @cached_property
    def _random(self) -> list[Network]:
        return random_networks(self.known.patterns, _POOL, self.seed)

    def learnt(self) -> Learnt | None:
        """What was learnt about costs and qualities, and how well; None where it was not asked for."""
        if self.is_blind or "costs" not in self.known.__dict__:
            return None
        errors = self._fit(self._past).calibration()
        usual, worst = self.known.costs.error
        return Learnt(
            self.known.costs.measured, round(usual, 4), round(worst, 4), len(errors),
            round(float(np.sqrt(np.mean(errors**2))), 3) if len(errors) else None,
            round(float(np.mean(np.abs(errors) <= 1.0)), 3) if len(errors) else None,
            self.known.costs.left_out,
        )  # fmt: skip

    def certainties(self) -> dict[str, float]:
        """Candidate's id -> probability that its drop on test is within the limit, of all networks that were trained.

        That is of the drop as it will be read: on few examples, what is within the limit may be read beyond it.
        """
        state, test = self.context.run.state, self.context.test
        past = self._past if not self.is_blind and "costs" in self.known.__dict__ else None
        if past is None or len(past.counts) < _FEWEST_READ:
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
        limit = float(model.response.of_drop(np.array(self.known.limit)))
        noise = self.known.noise_at_limit(len(test)) if test is not None else 0.0
        found: dict[str, float] = {}
        for scheme, some in rows.items():
            names, networks, lengths = zip(*some, strict=True)
            expected = model.predict(networks, np.array(lengths), scheme)
            chances = expected.at(np.zeros(len(names))).within(limit, noise**2)
            found |= dict(zip(names, np.round(chances, 4).tolist(), strict=True))
        return found

    def _aim(self, noise: float) -> Aim:
        """What is looked for: the front counts up to twice the limit, since what is beyond it is not on it."""
        return Aim(self.known.limit, noise, (REFERENCE[0], min(REFERENCE[1], 2 * self.known.limit) or REFERENCE[1]))

    @property
    def _under_way(self) -> tuple[UnderWay, ...]:
        """Networks that are being trained elsewhere: they count as what is expected of them."""
        return under_way(self.context.run.state)

    @property
    def _past(self) -> History:
        read = min(MOST, len(self.known.training.train))
        return history(self.context.run.state, self.known.scale, len(self.known.plan.rungs), read)

    def _pool(self, past: History) -> tuple[Network, ...]:
        """Random networks, neighbours of those trained last, and all that were trained; none that cannot be had.

        Where memory is a cost, also what leads from there to less of it.
        """
        last = [each.network for each in past.trained[-_AROUND:]]
        found = dict.fromkeys(self._random)
        found |= dict.fromkeys(neighbours(self.known.patterns, last, _NEIGHBOURS, self.seed + len(past.readings)))
        found |= dict.fromkeys(self.known.costs.relieved([whole(self.known.patterns[()]), *last]))
        trained = dict.fromkeys(each.network for each in past.trained)
        trained |= dict.fromkeys(each.network for each in self._under_way)
        fitting = self.known.costs.meets(list(found))
        kept = [one for one, fits in zip(found, fitting, strict=True) if fits and one not in past.barred]
        baseline = whole(self.known.patterns[()])
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
        zero = self.known.scale.response.baseline
        noise = self.known.scale.noise(zero) if self.known.scale.is_proportion else self.known.scale.typical
        return quality_model.fit(self.known.eyes, self.known.scale.response, readings, noise, scales)

    def _proposal(self, found: NextTraining, past: History, settings: Mapping[str, Any] | None = None) -> Proposal:
        chain = () if found.starts_anew else past.chains.get(found.network, ())
        if found.reason == ENDING:
            self.endings += 1
        epochs = self._fitting(found, past)
        whole_epochs = max(1, round(epochs)) if epochs >= 4 or epochs == round(epochs) else int(np.ceil(epochs))
        part = {} if epochs >= 4 or epochs == whole_epochs else {"part": round(epochs / whole_epochs, 4)}
        params = {
            **params_of(found.network),
            **projected(found.network, self.known.patterns[()], self.known.problem.dimensions),
            **(settings or self.known.settings), "epochs": whole_epochs, **part,
        }  # fmt: skip
        why = {
            "reason": found.reason, "gain": round(found.gain, 6), "probability": round(found.probability, 4),
            "cost": {name: round(float(values[0]), 4) for name, values in self.known.costs.of([found.network]).items()},
        }  # fmt: skip
        return Proposal(params, chain[-1] if chain else None, self.known.costs.worth_making(found.network), why)

    @property
    def _overhead(self) -> float:
        """Seconds that a trial takes besides its training, by those that there were."""
        trials = self.context.run.state.trials.values()
        took = [one.seconds - one.train_seconds for one in trials if one.state == "finished"]
        return float(np.median(took)) if took else 0.0

    def _fitting(self, found: NextTraining, past: History) -> float:
        """The training's epochs, or as many as are likely to end in time."""
        if self.known.time.budget is None or self.known.lengths:
            return found.epochs
        seconds = float(self.known.epoch_seconds([found.network], past)[0])
        left = _MARGIN * (self.known.time.budget - self.known.time.spent) - self._overhead
        most = max(0.25, left / seconds)
        return min(found.epochs, most if most < 4 else float(int(most)))

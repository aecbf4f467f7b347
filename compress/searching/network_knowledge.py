"""What a search finds out once about its networks: which there are, what they cost, how long they take to train."""

from __future__ import annotations

import copy
import time as clock
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from compress.baseline.contexts import Context, Training
from compress.pruning.patterns import network_patterns
from compress.sampling import quality_model, rungs
from compress.sampling.first_configs import steady
from compress.sampling.network_arrays import Patterns, macs, patterns_by_dropped, whole
from compress.sampling.network_features import Eyes
from compress.sampling.network_history import History, Scale, scale_of
from compress.sampling.network_spaces import allowed
from compress.sampling.pool import spread
from compress.sampling.problems import Problem
from compress.sampling.rungs import Plan
from compress.scanning.cost_scan import untrained
from compress.scanning.step_times import seconds_of, step_seconds
from compress.scanning.traced_runs import with_runs
from compress.searching.cost_knowledge import NETWORKS, CostKnowledge, learn_costs, quantities_of
from compress.searching.first_candidates import QUANTIZING, best_untouched
from compress.searching.progress import Progress
from compress.values.configs import OPERATORS
from compress.values.constraints import allowed_drops
from compress.values.domains import Choice, Float, Int, corners
from compress.values.networks import Network, network_of, params_of
from compress.values.search_spaces import AUTO, SearchSpace
from targets.errors import SpaceError, StageError, TransientError

_UNTIMED = 8
"""Networks that are measured before the first one is trained, where no time is given."""
_TIMED = 5
"""Networks whose training steps are timed."""
_LONGEST = 16
"""Epochs of a training, where neither the space nor a time says how many."""


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
        """Seconds that there are for all trials of this call; None without a deadline."""
        return None if self.deadline is None else self.deadline - self.begun


class NetworkKnowledge:
    """What is known of the networks of a search; all of it is found out when it is asked for first."""

    def __init__(
        self, context: Context, training: Training, problem: Problem, time: Time, progress: Progress
    ) -> None:  # fmt: skip
        self.context, self.training, self.problem, self.time = context, training, problem, time
        self.progress = progress
        self.space: SearchSpace = context.run.request.space
        self.seed = context.run.request.seed
        self.limit = _limit(problem)
        self.scale: Scale = scale_of(context.metric, problem.baseline, problem.targets[0], self.limit)

    @cached_property
    def patterns(self) -> Patterns:
        """What may be dropped, and the widths that are left to choose."""
        training, groups = self.training, self.context.profile.groups
        without = partial(training.groups_without, groups)
        found = network_patterns(
            training.module, training.example, groups, training.blocks, self.context.targets.step, without=without
        )
        if self.context.targets.first.counted or "memory" in quantities_of(self.problem):
            found = with_runs(found, training.module, training.example, training.blocks, without)
        return patterns_by_dropped(allowed(found, self.space, len(training.blocks.removable)))

    @cached_property
    def costs(self) -> CostKnowledge:
        """What networks cost, from measurements; at most a tenth of the time goes into them."""
        self.progress.stage("costs")
        seconds = None if self.time.budget is None else 0.1 * self.time.budget
        most = NETWORKS if seconds is not None else _UNTIMED
        found = learn_costs(
            self.context, self.training, self.problem, self.patterns, self.importance, self.seed, seconds, most,
            operators=str(self.settings.get("int8_operators", OPERATORS[0])),
        )  # fmt: skip
        for params in self.context.run.state.facts.measured_networks:
            network = network_of(params)
            if network is not None and network.dropped in self.patterns:
                found.measure(network)
        return found

    def measure(self, network: Network) -> bool:
        """Measure a network that is about to be trained, and write down that it was; False where it was before."""
        try:
            if not self.costs.measure(network):
                return False
        except TransientError:
            return False  # the trial meets it as well, and is tried again
        facts = self.context.run.state.facts
        self.context.run.record.note("measured_networks", [*facts.measured_networks, params_of(network)])
        return True

    @property
    def importance(self) -> str:
        """How channels are ranked where they are cut, the space's first choice."""
        return str(corners(self.space.importance)[0])

    @cached_property
    def _step_seconds(self) -> dict[Network, float]:
        """Seconds of a step, of a few networks; where no time is given and so no clock has a say, the share of MACs."""
        some = spread(self.patterns, _TIMED, self.seed)
        if self.time.budget is None:
            share = macs(self.patterns, some) / macs(self.patterns, [whole(self.patterns[()])])[0]
            return dict(zip(some, np.maximum(share, 0.02).tolist(), strict=True))
        self.progress.stage("steps")
        found: dict[Network, float] = {}
        for network in some:
            try:
                module = untrained(self.context, self.training, network, self.importance).pruned.module
                found[network] = step_seconds(self.training, copy.deepcopy(module), self._batch_size)
            except (StageError, SpaceError, RuntimeError):
                continue
        return found or {whole(self.patterns[()]): 1.0}

    @property
    def _batch_size(self) -> int:
        return int(self.settings["batch_size"]) if "batch_size" in self.settings else int(self.space.batch_size)  # type: ignore[arg-type]  # a constant

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings that seldom hurt, for the dimensions that are no network's; int8 as the untouched one bears it."""
        best = best_untouched(self.context.run.state, self.problem)
        known = {} if best is None else {name: best.params[name] for name in QUANTIZING if name in best.params}
        return {name: steady(name, domain) for name, domain in self.setting_dimensions.items()} | known

    @property
    def setting_dimensions(self) -> dict[str, Float | Int | Choice]:
        """The dimensions that are no network's, nor the length of a training."""
        taken = ("prune_ratio", "prune_skew", "depth", "epochs", "precision")
        lossy = len(self.context.run.state.facts.lossy_operators)
        found = self.context.space.dimensions((), 0, lossy)
        return {name: domain for name, domain in found.items() if name not in taken}

    @cached_property
    def lengths(self) -> tuple[float, ...]:
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
        seconds = self.epoch_seconds(list(self._step_seconds))
        if self.time.budget is None:
            return replace(rungs.plan(1e9, seconds.tolist(), self.lengths), end=0.0)
        return rungs.plan(self.time.budget, seconds.tolist(), self.lengths)

    @cached_property
    def eyes(self) -> Eyes:
        """What the quality model sees of networks."""
        return Eyes(self.patterns)

    def epoch_seconds(self, networks: list[Network] | tuple[Network, ...], past: History | None = None) -> np.ndarray:
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

    def noise_at_limit(self, examples: int) -> float:
        """Standard deviation of z of a reading on so many examples, at the limit."""
        response = self.scale.response
        if not self.scale.is_proportion:
            return float(self.scale.typical * (self.scale.examples / examples) ** 0.5 / (self.limit + response.floor))
        loss = response.baseline + self.limit
        return quality_model.proportion_noise(min(loss, 1.0), examples) / (loss + response.floor)


def _limit(problem: Problem) -> float:
    """The drop on val that the constraints allow; a tenth of the range where they say nothing of quality."""
    zero = problem.baseline.measured[problem.targets[0]].quality.val.value
    drops = allowed_drops(problem.constraints, zero, higher_is_better=problem.higher_is_better)
    return max(0.0, min(drops)) if drops else 0.1 * max(1.0 if 0 <= zero <= 1 else abs(zero), 1e-9)

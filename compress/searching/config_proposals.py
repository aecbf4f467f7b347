"""Proposals of configs: first those that usually do well, then an Optuna sampler's, or the points of a grid."""

from __future__ import annotations

import time as clock
from typing import TYPE_CHECKING, Any

from compress.baseline.contexts import Context
from compress.sampling.first_configs import for_each_depth, halfway, is_untouched, is_worth, steady, strong_params
from compress.sampling.problems import Problem
from compress.sampling.samplers import grid_params
from compress.sampling.studies import GP_MOST, GP_SHARE, propose
from compress.searching.first_candidates import QUANTIZING, best_untouched, beyond_limits
from compress.searching.progress import Progress
from compress.searching.proposals import Proposal
from compress.selection.feasibility import excesses
from compress.values.domains import Float, nearest

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_STEP = 0.04
"""Shares of layers in float that are nearer to one another than this are not told apart."""


class ConfigProposals:
    """Proposes points of the search space, whatever networks they mean."""

    def __init__(
        self, context: Context, problem: Problem, sampler: str | BaseSampler, progress: Progress, *,
        deterministic: bool, workers: int = 1,
    ) -> None:  # fmt: skip
        self.context, self.problem, self.sampler = context, problem, sampler
        self.progress, self.deterministic, self.workers = progress, deterministic, workers
        self.state = context.run.state
        blocks = 0 if context.training is None else len(context.training.blocks.removable)
        groups = len(context.profile.groups.prunable)
        self.strong = strong_params(context.space, problem.dimensions, groups, blocks)
        self.grid = grid_params(problem.dimensions) if sampler == "grid" else None
        self.ask_seconds: list[float] = []

    def propose(self, number: int) -> Proposal | None:
        """The config of trial ``number``; None where a grid is exhausted."""
        if self.grid is not None:
            if number < len(self.grid):
                return Proposal(self.grid[number])
            self.progress.note("the grid is exhausted")
            return None
        strong = self._strong(number)
        if strong is not None:
            return Proposal(strong)
        if not self.context.profile.groups.prunable and (mixed := self._more_in_float()) is not None:
            return mixed
        sampler = self._sampler_now()
        start = clock.perf_counter()
        with self.context.cache.timed("sampler"):
            seed = self.context.run.request.seed
            params, attributes = propose(
                self.problem, self.state.trials, self.state.candidates, number, seed, sampler
            )  # fmt: skip
        self.ask_seconds.append(clock.perf_counter() - start)
        return Proposal(params, system_attrs=attributes)

    @property
    def untrained(self) -> Proposal | None:
        """The untouched baseline in every precision, where that was not tried yet."""
        first = self.strong[0] if self.strong else {}
        return Proposal(first) if is_untouched(first) and first not in self._tried else None

    @property
    def _tried(self) -> list[dict[str, Any]]:
        """Parameters of all trials; what was made before all dimensions were known stands as where it is steady."""
        usual = {name: steady(name, domain) for name, domain in self.problem.dimensions.items()}
        return [
            {name: trial.params.get(name, value) for name, value in usual.items()}
            if is_untouched(trial.params)
            else trial.params
            for trial in self.state.trials.values()
        ]

    def _strong(self, number: int) -> dict[str, Any] | None:
        """A config to begin with that is not tried yet and worth it, then those halfway; None: ask the sampler."""
        tried = self._tried
        for params in self.strong if number < len(self.strong) else ():
            worth = is_worth(float(params.get("prune_ratio", 0.0)), self._seen(params.get("depth")))
            if params not in tried and worth:
                return params
        for base in for_each_depth(self.strong):
            ratio = halfway(self._seen(base.get("depth")))
            if ratio is None:
                continue
            params = {**base, "prune_ratio": nearest(self.problem.dimensions["prune_ratio"], ratio)}
            if params not in tried:
                return params
        return None

    def _more_in_float(self) -> Proposal | None:
        """The untouched network with another share of its layers in float; None where that is found, or not searched.

        Of a network that nothing can be cut of, it is what decides: the least share within the limits on quality is
        looked for by halving, from the largest one down.
        """
        domain = self.problem.dimensions.get("float_share")
        names = tuple(one.name for one in self.context.targets.variants if one.scheme == "mixed")
        best = best_untouched(self.state, self.problem)
        if not isinstance(domain, Float) or not names or best is None:
            return None
        tried = {
            float(trial.params["float_share"]): beyond_limits(self.state, self.problem, trial.candidates, "mixed")
            for trial in self.state.trials.values()
            if is_untouched(trial.params) and all(trial.params.get(n) == best.params.get(n) for n in QUANTIZING)
        }
        good = [share for share, beyond in tried.items() if beyond <= 0.0]
        bad = [share for share, beyond in tried.items() if beyond > 0.0]
        if not good:
            share = domain.high
        else:
            share = (max([one for one in bad if one < min(good)], default=domain.low) + min(good)) / 2
        share = nearest(domain, round(share, 2))
        if any(abs(share - one) < _STEP for one in tried):
            return None
        return Proposal({**best.params, "float_share": share}, precisions=names)

    def _seen(self, depth: Any) -> list[tuple[float, float]]:
        """(pruning ratio, excess of quality over its limit) of what ``_strong`` has begun with at this depth."""
        target, zero = self.problem.targets[0], self.problem.baseline
        limits = tuple(c for c in self.problem.constraints if c.quantity in ("quality", "quality_drop"))
        begun = [{**params, "prune_ratio": 0.0} for params in self.strong]
        found = []
        for trial in self.state.trials.values():
            ratio = float(trial.params.get("prune_ratio", 0.0))
            mine = {**trial.params, "prune_ratio": 0.0} in begun and trial.params.get("depth") == depth
            if trial.state != "finished" or not mine or not ratio or not limits:
                continue
            made = [self.state.candidates[name] for name in trial.candidates]
            beyond = [
                max(excesses(c, zero, target, limits, scaled=True).values()) for c in made if target in c.measured
            ]
            if beyond:
                found.append((ratio, min(beyond)))
        return found

    def _sampler_now(self) -> str | BaseSampler:
        """``auto``: the GP for as long as it is cheap beside training, then TPE."""
        if self.sampler != "auto":
            return self.sampler
        if not self.problem.dimensions:
            return "random"
        if self.deterministic:
            return "gp" if len(self.state.candidates) <= GP_MOST else "tpe"
        took = sorted(trial.seconds for trial in self.state.trials.values() if trial.state == "finished")
        recent = self.ask_seconds[-3:]
        if not took or len(recent) < 3:
            return "gp"
        # Every worker waits for one driver.
        return "tpe" if sorted(recent)[1] > GP_SHARE * took[len(took) // 2] / self.workers else "gp"

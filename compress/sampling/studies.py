"""Which config next: Optuna's samplers over a study that is rebuilt from the run's record for every question.

The study lives in memory and is a pure function of the record, so a run survives kill -9, constraints and ranges may
change under way, and the sampler, reseeded from (seed, trial number), proposes the same points whatever process asks.
Every candidate is told as a trial of its own. Infeasible ones stay COMPLETE (dropping them was the worst policy
measured), with all constraints in one fixed order, scaled to their limits: GPSampler reads them by position and
TPESampler adds them up.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from compress.run_folder.records import Trial
from compress.sampling.first_configs import steady
from compress.sampling.problems import Problem
from compress.sampling.samplers import make_sampler
from compress.selection import feasibility
from compress.selection.costs import costs_of
from compress.selection.feasibility import violation
from compress.values.candidates import Candidate
from compress.values.domains import Choice, Float, Int, nearest

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
GP_SHARE = 0.2
"""``auto`` leaves the GP for TPE when asking takes more than this share of a trial's time."""
GP_MOST = 150
"""... and on deterministic targets, where time may not decide, beyond this many told candidates."""
MOST_TOLD = 300
"""Trials that a sampler is told of, at most."""
_WORST = 10.0


def propose(
    problem: Problem,
    trials: Mapping[int, Trial],
    candidates: Mapping[str, Candidate],
    number: int,
    seed: int,
    sampler: str | BaseSampler,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, system attributes) for trial ``number``."""
    own = not isinstance(sampler, str)
    known = trials if own else worth_telling(problem, trials, candidates, 0 if sampler == "random" else MOST_TOLD)
    study = build_study(problem, known, candidates, make_sampler(sampler, seed, number), under_way=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial = study.ask(fixed_distributions=distributions(problem.dimensions))
    attributes = study._storage.get_trial_system_attrs(trial._trial_id)
    return dict(trial.params), {k: v for k, v in attributes.items() if _is_json(v)}


def build_study(
    problem: Problem,
    trials: Mapping[int, Trial],
    candidates: Mapping[str, Candidate],
    sampler: BaseSampler | None = None,
    *,
    under_way: bool = False,
) -> optuna.Study:
    """An in-memory study of all that has happened. ``user_attrs``: ``trial``, ``candidate`` or ``gated``.

    ``under_way``: trials that were asked for and have not ended are told as running; GPSampler and TPESampler take
    that into account (the constant liar of Ginsbourger et al. 2010, and its like), so that the same is not asked again.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=directions(problem), sampler=sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, and only a label
        study.set_metric_names(metric_names(problem))
    told = [
        frozen
        for trial in sorted(trials.values(), key=lambda t: t.number)
        for frozen in _frozen(problem, trial, candidates)
    ]
    waiting = [trial for trial in trials.values() if under_way and trial.state == "asked"]
    study.add_trials([*told, *(_running(problem, trial) for trial in waiting)])
    return study


def worth_telling(
    problem: Problem, trials: Mapping[int, Trial], candidates: Mapping[str, Candidate], most: int
) -> dict[int, Trial]:
    """At most so many finished trials, since asking takes longer with each of them; all that are under way.

    A third of them are those with the least cost on the first target among those that meet the constraints on val, a
    third the newest, and a third evenly over all others.
    """
    ended = [trial for trial in trials.values() if trial.state in ("finished", "gated")]
    under_way = {trial.number: trial for trial in trials.values() if trial.state == "asked"}
    if len(ended) <= most:
        return {**{trial.number: trial for trial in ended}, **under_way}
    if most == 0:  # nobody learns from them; which are the best is not asked
        return under_way
    each = most // 3
    best = sorted((trial for trial in ended if trial.state == "finished"), key=partial(_merit, problem, candidates))
    chosen = {trial.number: trial for trial in (*best[:each], *ended[len(ended) - each :])}
    others = [trial for trial in ended if trial.number not in chosen]
    left = most - len(chosen)
    chosen |= {others[i * len(others) // left].number: others[i * len(others) // left] for i in range(left)}
    return {**chosen, **under_way}


def _merit(problem: Problem, candidates: Mapping[str, Candidate], trial: Trial) -> tuple[float, float]:
    """How far a trial's best candidate is beyond the constraints, then its cost; less is better."""
    target, found = problem.targets[0], []
    for candidate in (candidates[name] for name in trial.candidates if name in candidates):
        measured = candidate.measured.get(target)
        if measured is None:
            continue
        beyond = max([0.0, *_excesses(problem, candidate, target)])
        cost = measured.latency.ratio if measured.latency else float(measured.count or candidate.size)
        found.append((beyond, cost))
    return min(found, default=(math.inf, math.inf))


def _excesses(problem: Problem, candidate: Candidate, target: str) -> list[float]:
    """How far a candidate is beyond each of the constraints on ``target``, scaled to its limit."""
    found = feasibility.excesses(candidate, problem.baseline, target, problem.constraints, scaled=True)
    return list(found.values())


def directions(problem: Problem) -> list[Literal["minimize", "maximize"]]:
    """Optuna's direction for every objective: all are minimised."""
    return ["minimize" for _ in metric_names(problem)]


def metric_names(problem: Problem) -> list[str]:
    """Objectives, costs once per target. Quality is told as its loss against the baseline, the worst over targets."""
    names: list[str] = []
    for objective in problem.objectives:
        if objective in ("quality", "size"):
            names.append("quality_loss" if objective == "quality" else objective)
        else:
            names += (
                [f"{objective}@{target}" for target in problem.targets] if len(problem.targets) > 1 else [objective]
            )
    return names


def distributions(dimensions: Mapping[str, Float | Int | Choice]) -> dict[str, BaseDistribution]:
    """The dimensions as Optuna's distributions, by name."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, domain in dimensions.items():
        if isinstance(domain, Choice):
            found[name] = CategoricalDistribution(domain.values)
        elif isinstance(domain, Int):
            found[name] = IntDistribution(domain.low, domain.high, log=domain.log)
        else:
            found[name] = FloatDistribution(domain.low, domain.high, log=domain.log)
    return found


def _frozen(problem: Problem, trial: Trial, candidates: Mapping[str, Candidate]) -> list[optuna.trial.FrozenTrial]:
    if trial.state == "finished":
        return [
            _told(problem, trial, candidates[name], first=i == 0)
            for i, name in enumerate(trial.candidates)
            if all(problem.is_known_on(target, candidates[name]) for target in problem.targets)
        ]
    if trial.state == "gated" and all(target in trial.known for target in problem.targets):
        return [_told_gated(problem, trial)]
    return []


def _told(problem: Problem, trial: Trial, candidate: Candidate, *, first: bool) -> optuna.trial.FrozenTrial:
    """A candidate. On a target that does not run it nothing is gained: there the baseline would stay."""
    zero = problem.baseline
    candidate = replace(candidate, measured={t: candidate.measured.get(t, zero.measured[t]) for t in problem.targets})
    values: list[float] = []
    for objective in problem.objectives:
        if objective == "quality":
            drops = [candidate.measured[t].quality_drop.val.value for t in problem.targets]
            values.append(max(drops))
        elif objective == "size":
            values.append(candidate.size / problem.baseline.size)
        else:
            for target in problem.targets:
                cost = costs_of(candidate, problem.baseline, target, (objective,), problem.higher_is_better)[0]
                values.append(cost)
    constraints: dict[str, float] = {}
    for target in problem.targets:
        found = feasibility.excesses(candidate, problem.baseline, target, problem.constraints, scaled=True)
        constraints.update({f"{text}@{target}": value for text, value in found.items()})
    params = dict(trial.params)
    if "precision" in problem.dimensions:
        params["precision"] = candidate.config["precision"]["scheme"]
    return _create(
        problem,
        params,
        values,
        constraints,
        {"trial": trial.number, "candidate": candidate.id},
        trial.system_attrs if first else {},
    )


def _told_gated(problem: Problem, trial: Trial) -> optuna.trial.FrozenTrial:
    """A gated config: costs as measured; quality, which nobody knows, as the baseline's (not why it is gated)."""

    values: list[float] = []
    for objective in problem.objectives:
        if objective == "quality":
            values.append(0.0)
        elif objective == "size":
            values.append(next(iter(trial.known.values()))["size"] / problem.baseline.size)
        elif objective == "memory":
            values += [1.0 for _ in problem.targets]
        else:
            key = "ratio" if objective == "latency" else f"{objective}_ratio"
            values += [float(trial.known[target][key] or 1.0) for target in problem.targets]
    constraints = {
        f"{c.text}@{target}": violation(trial.known[target], c, problem.baseline)
        for target in problem.targets
        for c in problem.constraints
    }
    return _create(
        problem, dict(trial.params), values, constraints, {"trial": trial.number, "gated": True}, trial.system_attrs
    )


def _running(problem: Problem, trial: Trial) -> optuna.trial.FrozenTrial:
    """A trial that is under way, as Optuna has those that other processes are at."""
    import optuna

    known = {name: nearest(domain, trial.params[name]) for name, domain in problem.dimensions.items()
             if name in trial.params}  # fmt: skip
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, params=known,
        distributions={name: one for name, one in distributions(problem.dimensions).items() if name in known},
        user_attrs={"trial": trial.number},
    )  # fmt: skip


def _create(
    problem: Problem, params: Mapping[str, Any], values: Sequence[float], constraints: Mapping[str, float],
    user_attrs: dict[str, Any], system_attrs: Mapping[str, Any],
) -> optuna.trial.FrozenTrial:  # fmt: skip
    """A finished Optuna trial. Params are moved into today's ranges, since a space may change under way."""
    import optuna

    inside = {
        name: nearest(domain, params[name]) if name in params else steady(name, domain)
        for name, domain in problem.dimensions.items()
    }
    attributes = {k: v for k, v in system_attrs.items() if not k.startswith("constraints")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.trial.create_trial(
            params=inside,
            distributions=distributions(problem.dimensions),
            values=[_bounded(value) for value in values],
            constraints={name: _bounded(value) for name, value in constraints.items()},
            user_attrs=user_attrs,
            system_attrs=attributes,
        )


def _bounded(value: float) -> float:
    """Finite, for samplers that cannot take less."""
    return _WORST if math.isnan(value) else max(-_WORST, min(_WORST, value))


def _is_json(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, list, dict, type(None)))

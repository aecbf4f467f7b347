"""What a search may be asked besides task, target, objectives and constraints; checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import targets as targets_package
from compress.metrics import metrics
from compress.run_folder.runs import Request
from compress.sampling.samplers import SAMPLERS, check_sampler
from compress.selection.rankings import PICKS
from compress.tasks.tasks import Task
from compress.values import constraints as values_constraints
from compress.values.configs import SearchSpace
from compress.values.durations import parse_duration
from targets.errors import RequestError, RunError
from targets.machine import environment
from targets.target import Target

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

KEEPS = ("all", "front")
"""Which artifacts a run keeps."""
_MOST_SEED = 2**32 - 1


def check_options(
    *,
    trials: int | None = None,
    time: str | float | None = None,
    seed: int | None = None,
    sampler: str | BaseSampler | None = None,
    device: str = "auto",
    workers: int = 1,
    pick: str | None = None,
    keep: str = "all",
) -> None:
    """Raise RequestError for what cannot be asked; None is "not given" and always fine."""
    from compress.training.training_modes import resolve_device

    if trials is not None and not (_is_whole(trials) and trials >= 1):
        raise RequestError(f"trials={trials!r}: a whole number, at least 1, is needed")
    parse_duration(time)
    if seed is not None and not (_is_whole(seed) and 0 <= seed <= _MOST_SEED):
        raise RequestError(f"seed={seed!r}: a whole number from 0 to {_MOST_SEED} is needed")
    check_sampler(sampler)
    if workers != 1:
        raise RequestError(f"workers={workers!r}: this version trains one network at a time; leave it at 1")
    if pick is not None and pick not in PICKS:
        raise RequestError(f"unknown pick {pick!r}; use one of {', '.join(PICKS)}")
    if keep not in KEEPS:
        raise RequestError(f"keep {keep!r}: use {' or '.join(repr(name) for name in KEEPS)}")
    resolve_device(device)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def sampler_name(given: str | BaseSampler | None, before: str | None) -> str:
    """The sampler's name for the run; ``before``: what a continued run had.

    Raises RequestError where that was an object of the caller's own, which no folder can hold.
    """
    if given is not None or before is None:
        return check_sampler(given)
    if before not in SAMPLERS:
        raise RequestError(
            f"the run was begun with a sampler of your own ({before}): "
            f"give it again, or a name (--sampler {', '.join(SAMPLERS)})"
        )
    return before


@dataclass(frozen=True)
class _Wanted:
    """The arguments of a call; None: not given."""

    task: Task
    objectives: Sequence[str] | None
    constraints: Sequence[str] | None
    seed: int | None
    sampler: str | BaseSampler | None
    space: SearchSpace | None
    pick: str | None
    keep: str
    trials: int | None
    time: str | float | None


def _targets(target: str | Target | Sequence[str | Target] | None) -> list[Target]:
    if target is None:
        return []
    several = [target] if isinstance(target, (str, Target)) else list(target)
    found = [targets_package.get(one) for one in several]
    names = [one.name for one in found]
    if len(set(names)) != len(names):
        raise RequestError(f"targets {names}: each may be given once")
    return found


def _request(wanted: _Wanted, before: Request | None, places: list[Target], command: str | None) -> Request:
    """What this call asks: what is given replaces, what is not given stays."""
    if before is not None and wanted.seed is not None and wanted.seed != before.seed:
        raise RunError(
            f"the run was begun with seed {before.seed}; continue it with that, "
            f"or choose another --out for seed {wanted.seed}"
        )
    sampler = sampler_name(wanted.sampler, before.sampler if before else None)
    default = Request(
        None, SearchSpace(), ("quality", "latency"), ("quality_drop<=0.01",), ("ort-cpu",), 0, "auto", "fastest", {}
    )
    old = before or default
    counted = bool(places) and places[0].counted and before is None and wanted.objectives is None
    objectives = (
        tuple(wanted.objectives) if wanted.objectives else (("quality", "instructions") if counted else old.objectives)
    )
    constraints = tuple(wanted.constraints) if wanted.constraints else old.constraints
    parsed = [values_constraints.parse_constraint(text) for text in constraints]
    names = tuple(place.name for place in places) or old.targets
    versions = environment.describe_environment(("paretopress", "torch", "onnx", "onnxruntime", "optuna", "numpy"))
    metric = metrics.get(wanted.task.metric)
    return replace(
        old,
        space=wanted.space or old.space,
        objectives=values_constraints.parse_objectives(objectives),
        constraints=tuple(c.text for c in parsed),
        targets=names,
        seed=old.seed if wanted.seed is None else wanted.seed,
        sampler=sampler,
        pick=wanted.pick or old.pick,
        environment={**versions, "command": command or old.environment.get("command")},
        higher_is_better=metric.higher_is_better,
        bounded=metric.bounded,
    )

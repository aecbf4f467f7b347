"""What a call asks, resolved: checked, and filled up with what the run was begun with, the task file, the defaults.

A search and its dry run ask the same way and resolve by the same function, so that the one says what the other would.
Nothing is written here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import targets as targets_package
from compress.executing.worker_counts import Cluster, check_workers
from compress.precision.schemes import offered, wanted
from compress.run_folder.records import Record
from compress.run_folder.runs import Request, read_request
from compress.sampling.samplers import SAMPLERS, check_sampler
from compress.searching.space_checks import check_space
from compress.selection.rankings import PICKS
from compress.tasks.decoding import task_metric
from compress.tasks.identities import architecture, check_identity, identity
from compress.tasks.loading import LoadedTask
from compress.tasks.splits import Splits, read_splits
from compress.tasks.tasks import Task, TaskIdentity
from compress.training.training_modes import resolve_device
from compress.values.constraints import parse_bytes, parse_constraint, parse_objectives
from compress.values.durations import parse_duration
from compress.values.search_spaces import SearchSpace
from targets.errors import ConstraintError, RequestError, RunError
from targets.machine.environment import describe_environment
from targets.registry import DEFAULT
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
    workers: int | str | None = None,
    pick: str | None = None,
    keep: str = "all",
    memory: str | int | None = None,
) -> None:
    """Raise RequestError for what cannot be asked; None is "not given" and always fine."""

    if trials is not None and not (_is_whole(trials) and trials >= 1):
        raise RequestError(f"trials={trials!r}: a whole number, at least 1, is needed")
    parse_duration(time)
    if seed is not None and not (_is_whole(seed) and 0 <= seed <= _MOST_SEED):
        raise RequestError(f"seed={seed!r}: a whole number from 0 to {_MOST_SEED} is needed")
    check_sampler(sampler)
    check_workers(workers)
    if pick is not None and pick not in PICKS:
        raise RequestError(f"unknown pick {pick!r}; use one of {', '.join(PICKS)}")
    if keep not in KEEPS:
        raise RequestError(f"keep {keep!r}: use {' or '.join(repr(name) for name in KEEPS)}")
    parse_bytes(memory)
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
class Asked:
    """The arguments of a call; None: not given."""

    task: Task
    target: str | Target | Sequence[str | Target] | None = None
    objectives: Sequence[str] | None = None
    constraints: Sequence[str] | None = None
    trials: int | None = None
    time: str | float | None = None
    seed: int | None = None
    sampler: str | BaseSampler | None = None
    device: str = "auto"
    out: str | Path | None = None
    space: SearchSpace | None = None
    pick: str | None = None
    keep: str = "all"
    workers: int | str | None = None
    command: str | None = None
    memory: str | int | None = None
    """Bytes that what is done with samples may take; None: half of what is free."""
    brought: LoadedTask | None = None
    """What the task's file brings for a new run; its space is also taken by one that is continued."""
    cluster: Cluster | None = None
    """Where trials are carried out, where that is not this machine."""
    here: Path = field(default_factory=Path.cwd)
    """The working directory of the call. Paths are relative to it even where the task's code goes elsewhere."""

    def __post_init__(self) -> None:
        if self.task.onnx_path is not None:
            object.__setattr__(self, "task", replace(self.task, model=self.here / self.task.onnx_path))

    @property
    def shown(self) -> Path:
        """The run's folder as it was given."""
        return Path(self.out) if self.out is not None else Path("runs") / self.task.name

    @property
    def folder(self) -> Path:
        """The folder of the run that is asked for."""
        return self.here / self.shown


@dataclass(frozen=True)
class Resolved:
    """What is to be done: the request, and what it was made from."""

    asked: Asked
    before: Request | None
    """What the run was begun with, or continued with last; None where it begins now."""
    request: Request
    targets: tuple[Target, ...]
    """Open; whoever resolves closes them."""
    splits: Splits

    @property
    def sampler(self) -> str | BaseSampler:
        """What proposes configs: an object of the caller's own, or a name."""
        given = self.asked.sampler
        return given if given is not None and not isinstance(given, str) else self.request.sampler


@contextlib.contextmanager
def resolved(asked: Asked) -> Iterator[Resolved]:
    """What is asked, checked as far as that is possible before anything is measured; targets are closed at the end.

    What is given replaces, what is not given stays as the run had it, or is what the task's file brings, or the
    default. Raises RequestError (TaskError, SpaceError, RunError ...) where it cannot be done, in one line.
    """
    check_options(
        trials=asked.trials, time=asked.time, seed=asked.seed, sampler=asked.sampler, device=asked.device,
        workers=asked.workers, pick=asked.pick, keep=asked.keep, memory=asked.memory,
    )  # fmt: skip
    before = read_request(asked.folder)
    with contextlib.ExitStack() as opened:
        given = _opened(asked.target, opened)
        request = _request(asked, before, given)
        targets = given or _opened(request.targets, opened)
        abilities = {target.name: target.capabilities() for target in targets}
        offered(wanted(request.space, [one.precisions for one in abilities.values()]), abilities)
        splits = read_splits(asked.task)
        check_space(request.space, asked.task, splits.train)
        new = identity(asked.task, splits, task_metric(asked.task))
        if before is None:
            # From the start on, so that what a killed call leaves is known to be this task's.
            request = replace(request, task=new)
        else:
            _check_same_task(asked, before, new)
        yield Resolved(asked, before, request, tuple(targets), splits)


def _opened(target: str | Target | Sequence[str | Target] | None, opened: contextlib.ExitStack) -> list[Target]:
    """The targets by their names, each once, to be closed with ``opened``."""
    if target is None:
        return []
    several = [target] if isinstance(target, (str, Target)) else list(target)
    found = [targets_package.get(one) for one in several]
    for one in found:
        opened.callback(one.close)
    names = [one.name for one in found]
    if len(set(names)) != len(names):
        raise RequestError(f"targets {names}: each may be given once")
    return found


def _check_same_task(asked: Asked, before: Request, new: TaskIdentity) -> None:
    """Raise RunError where the run belongs to another task or model, before anything is exported."""
    folder = asked.folder
    # First: of another network, that its weights are others says too little.
    known = Record(folder / "record.jsonl", write=False).state.facts.architecture
    if known and architecture(asked.task) not in ("", known):
        raise RunError(
            f"{str(folder)!r} is the run of another model than this {asked.task.name!r}; choose another --out"
        )
    check_identity(before.task, new, folder)


def _request(asked: Asked, before: Request | None, targets: Sequence[Target]) -> Request:
    """What this call asks: what is given replaces, what is not given stays."""
    if before is not None and asked.seed is not None and asked.seed != before.seed:
        raise RunError(
            f"the run was begun with seed {before.seed}; continue it with that, "
            f"or choose another --out for seed {asked.seed}"
        )
    old = before or _new_request(asked, targets)
    metric = task_metric(asked.task)
    limits = _limits_of(targets)
    parsed = [parse_constraint(text) for text in dict.fromkeys((*(asked.constraints or old.constraints), *limits))]
    versions = describe_environment(("paretopress", "torch", "onnx", "onnxruntime", "optuna", "numpy"))
    return replace(
        old,
        space=asked.space or old.space,
        objectives=parse_objectives(tuple(asked.objectives or old.objectives)),
        constraints=tuple(c.text for c in parsed),
        targets=tuple(target.name for target in targets) or old.targets,
        seed=old.seed if asked.seed is None else asked.seed,
        sampler=sampler_name(asked.sampler, before.sampler if before else None),
        pick=asked.pick or old.pick,
        environment={**versions, "command": asked.command or old.environment.get("command")},
        higher_is_better=metric.higher_is_better,
        bounded=metric.bounded,
    )


def _limits_of(targets: Sequence[Target]) -> list[str]:
    """The constraints that a named device sets by what it has; raises ConstraintError where others are searched too."""
    limited = [target for target in targets if target.limits]
    if limited and len(targets) > 1:
        raise ConstraintError(
            f"target {limited[0].name!r} sets limits, which would hold for every target of the search: search it "
            "alone, or name its cpu and give --constraint"
        )
    return [f"{quantity}<={most}B" for target in limited for quantity, most in target.limits.items()]


def _new_request(asked: Asked, targets: Sequence[Target]) -> Request:
    """What a run begins with where nothing is given: what the task's file brings, and the defaults."""
    objectives: tuple[str, ...] = ("quality", targets[0].cost_quantity if targets else "latency")
    constraints: tuple[str, ...] = ("quality_drop<=0.01",)
    if asked.brought is not None:
        objectives = asked.brought.objectives or objectives
        constraints = asked.brought.constraints or constraints
    return Request(None, SearchSpace(), objectives, constraints, (DEFAULT,), 0, "auto", "fastest", {})

"""What a worker is made ready from: the task, the run's folder and the targets, pickled once and read by every worker.

The user's own code travels by value (``cloudpickle``), since no other process need be able to import a task file, a
script or a notebook; what comes from installed packages travels by name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import cast

import cloudpickle

from compress.baseline import preparing
from compress.baseline.contexts import Context
from compress.executing.followed_runs import Tell, follow
from compress.measurement.latencies import SEARCHING
from compress.run_folder.caching import Cache
from compress.tasks.splits import read_splits
from compress.tasks.tasks import Task
from compress.tasks.user_code import is_users
from compress.values.error_lines import one_line
from targets import registry
from targets.errors import RequestError, TargetError
from targets.target import Protocol, Target


@dataclass(frozen=True)
class WorkerSetup:
    """What every worker of a search has in common."""

    task: Task
    folder: Path
    """The run's."""
    targets: tuple[str | Target, ...]
    """By name where that says all there is."""
    device: str
    protocol: Protocol
    here: Path
    """The working directory of the call."""
    path: tuple[str, ...]
    """Where modules are looked for."""
    threads: int
    """Of a training, at most."""


def worker_setup(
    task: Task, folder: Path, targets: Sequence[Target], device: str, protocol: Protocol, threads: int
) -> WorkerSetup:
    """The setup of the workers of a search in this process."""
    named = tuple(_as_name(target) for target in targets)
    if task.onnx_path is not None:
        task = replace(task, model=task.onnx_path.absolute())
    return WorkerSetup(task, folder.absolute(), named, device, protocol, Path.cwd(), tuple(sys.path), threads)


def _as_name(target: Target) -> str | Target:
    """The target itself where it can travel, else its name where the registry makes the same kind of it."""
    try:
        cloudpickle.dumps(target)
        return target
    except Exception:
        try:
            made = registry.class_of(registry.parse(target.name)[0])
        except TargetError:
            return target
        return target.name if type(target) is made else target


def pickled(setup: WorkerSetup) -> bytes:
    """The setup as bytes; raises RequestError naming what cannot travel."""
    with _by_value():
        try:
            return bytes(cloudpickle.dumps((setup.path, cloudpickle.dumps(setup))))
        except Exception as error:
            raise RequestError(
                f"task {setup.task.name!r} cannot be sent to workers ({one_line(error)}): let nothing in it hold open "
                "files, locks or running generators, or leave workers at 1"
            ) from error


def unpickled(data: bytes) -> WorkerSetup:
    """The setup out of its bytes; modules are found from then on where the driver finds them."""
    path, inner = cloudpickle.loads(data)
    sys.path[:] = dict.fromkeys([*sys.path, *path])
    return cast(WorkerSetup, cloudpickle.loads(inner))


@contextmanager
def _by_value() -> Iterator[None]:
    """Inside, what the user's own modules define is pickled by value."""
    registered: list[ModuleType] = []
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(module, ModuleType) and isinstance(file, str) and is_users(file):
            with suppress(ValueError):  # not under its own name: nothing of it can be found by that either
                cloudpickle.register_pickle_by_value(module)
                registered.append(module)
    try:
        yield
    finally:
        for module in registered:
            with suppress(ValueError):
                cloudpickle.unregister_pickle_by_value(module)


@contextmanager
def opened_context(setup: WorkerSetup, tell: Tell, say: Callable[[str], None]) -> Iterator[Context]:
    """The search's context in this process; its targets are closed at the end. Raises what preparing raises."""
    if setup.here.is_dir():
        os.chdir(setup.here)
    run = follow(setup.folder, tell)
    cache = Cache(
        setup.folder / "cache",
        lambda name, cached, s: run.record.append("stage", stage=name, cached=cached, seconds=round(s, 5)),
    )
    places = [registry.get(target) for target in setup.targets]
    try:
        splits = read_splits(setup.task)
        context = preparing.prepare(
            setup.task, run, cache, places, splits, setup.device, say, (), setup.protocol or SEARCHING,
            threads=setup.threads,
        )  # fmt: skip
        yield context
        context.instruments.scorer.close()
    finally:
        for place in places:
            place.close()

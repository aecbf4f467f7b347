"""What a runtime does with somebody's file happens in a process of its own, with limits of time and memory.

A file may hold a loop that never ends, ask for more memory than there is, or crash a library. So nothing that executes
a graph, or walks it in native code, is called in our own process: a function that does is marked ``isolated``, and a
call of it is sent to a worker process (``targets/workers``), which sends back what it returns.

A worker is started for a call and ended after it; inside ``kept_worker`` one serves all calls of the thread.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from compress.onnx_files.transport import decode_value, encode_value
from targets.errors import MeasurementError, ModelError
from targets.machine import memory
from targets.workers.process import WorkerProcess, local_launch

PATIENCE = 60.0
"""Seconds that a worker may take for one step (one inference, one check of a file) before it is ended."""
LONG = 600.0
"""Seconds for what takes as long as a network is large: calibrating, quantizing, importing into torch."""
MEMORY_SHARE = 0.5
"""Share of the free memory that a worker may use where nobody has said how much: the rest is for our own process."""

_SETUP = {
    "runtime": "targets.runtimes.ort.ort_cpu:OrtRuntime",
    "settings": {"threads": 1, "opt": "basic", "spinning": 0},
    "threads": 1,
}
P = ParamSpec("P")
R = TypeVar("R")


class _Kept(threading.local):
    """The worker of this thread, and how many ``kept_worker`` are open around it."""

    worker: WorkerProcess | None = None
    owner: int = 0
    depth: int = 0


_KEPT = _Kept()
_INSIDE = False
"""Whether this process is such a worker: then functions are simply called."""


def isolated(doing: str, *, long: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function of a module: a call of it is carried out in a worker process.

    ``doing`` says in words what it does, for messages; the first path among its arguments is added. Its arguments and
    what it returns are plain values, paths, arrays, ONNX models, or tuples, lists, dicts and dataclasses of them. A
    call raises the errors of ours that the function raises; MeasurementError for any other, for a crash, and for no
    answer within PATIENCE seconds (LONG where it is ``long``); TransientError where more than MEMORY_SHARE of the free
    memory is used.
    """

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        name = f"{function.__module__}:{function.__qualname__}"

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if _INSIDE:
                return function(*args, **kwargs)
            file = next((one.name for one in (*args, *kwargs.values()) if isinstance(one, Path)), "")
            found: R = _ask(name, args, kwargs, f"{doing} {file}".rstrip(), LONG if long else PATIENCE)
            return found

        return call

    return mark


@contextlib.contextmanager
def kept_worker() -> Iterator[None]:
    """Inside, one worker serves all calls of this thread; it is ended at the end of the outermost of these contexts."""
    _KEPT.depth += 1
    try:
        yield
    finally:
        _KEPT.depth -= 1
        if _KEPT.depth == 0:
            _close()


@contextlib.contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turn what a worker says of a file (a crash, no answer, too much memory) into a ModelError that names the file."""
    try:
        yield
    except MeasurementError as error:
        raise ModelError(f"{str(path)!r}: {error}") from None


def _ask(function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], doing: str, patience: float) -> Any:
    """What ``function`` (``module:name``) returns in the worker."""
    arrays: dict[str, np.ndarray] = {}
    arguments = {
        "function": function, "args": encode_value(args, arrays), "kwargs": encode_value(dict(kwargs), arrays),
        "bound": memory.bound(),
    }  # fmt: skip
    header = {"operation": "call", "function": f"{__name__}:answer", "arguments": arguments, "doing": doing}
    with kept_worker():
        worker = _worker()
        worker.patience = patience
        reply = worker.ask(header, arrays)
    return decode_value(reply.header["result"], reply.arrays)


def _worker() -> WorkerProcess:
    """The worker of this thread, started if there is none that can be asked."""
    # A process that was forked from this one has a copy of the pipes; what it writes there would be mixed with ours.
    if _KEPT.worker is None or _KEPT.owner != os.getpid() or not _KEPT.worker.alive:
        _close()
        free = memory.available_bytes()
        limit = memory.bound() or (None if free is None else int(MEMORY_SHARE * free))
        _KEPT.worker = WorkerProcess(_SETUP, local_launch(1), patience=PATIENCE, memory_limit=limit)
        _KEPT.owner = os.getpid()
    return _KEPT.worker


def _close() -> None:
    if _KEPT.worker is not None and _KEPT.owner == os.getpid():
        _KEPT.worker.close()
    _KEPT.worker = None


def answer(
    arguments: Mapping[str, Any], arrays: Mapping[str, np.ndarray], _: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """In the worker: call the function that is asked for; what is sent back is what it returns."""
    global _INSIDE
    _INSIDE = True
    module, _, name = arguments["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    found: dict[str, np.ndarray] = {}
    with memory.bounded(arguments.get("bound")):
        result = function(*decode_value(arguments["args"], arrays), **decode_value(arguments["kwargs"], arrays))
    return {"result": encode_value(result, found)}, found

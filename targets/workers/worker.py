"""The process that loads and runs models: ``python -P -m targets.workers.worker SETUP``.

It answers requests on stdin with frames on stdout (``pipes.py``) until stdin is closed. Everything that can go
wrong inside a native library goes wrong here. Three precautions:

- the protocol's descriptors are moved away from 0 and 1, so that a runtime that prints cannot corrupt a frame;
- a lifeline, a pipe whose other end only the parent holds: when the parent dies, even by ``kill -9``, the kernel
  signals this process (works while native code holds the interpreter), and a thread ends it where that is not known;
- SIGINT is ignored: Ctrl-C reaches the whole group, and the parent decides what it means.

``SETUP`` is JSON: ``lifeline`` (descriptor), ``runtime`` (``module:class``), ``settings``, ``threads``, and ``afresh``:
whether every request is answered by a fork of the process that has loaded the runtime and done nothing else.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import json
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Callable

import numpy as np

from targets import errors
from targets.intervals import Interval
from targets.machine import cpus, memory
from targets.target import Protocol, Samples
from targets.workers import inputs, measuring, pipes
from targets.workers.process import die_like
from targets.workers.runtime import Runtime, Session

_PR_SET_PDEATHSIG = 1
_NO_MORE = 99
"""Status of a child that found no request."""
Report = Callable[..., None]
"""Of a stage, in words, and what else there is to say (JSON)."""
Reply = tuple[dict[str, Any], dict[str, np.ndarray]]


@dataclass(frozen=True)
class _Loaded:
    """A session with what loading it took."""

    session: Session
    feeds: dict[str, np.ndarray]
    load_seconds: float
    first: float
    memory: int | None


def main() -> None:
    """Serve until the parent closes our stdin, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup = json.loads(sys.argv[1])
    _end_with_parent(setup["lifeline"])
    requests, replies = claim_pipes()

    def report(stage: str, **more: Any) -> None:
        pipes.write_message(replies, {"stage": stage, **more})

    service = _Service(setup, report)
    with suppress(BrokenPipeError):
        if setup.get("afresh"):
            _serve_afresh(service, requests, replies)
        while _serve_one(service, requests, replies):
            pass
    # Destructors of native libraries have nothing left to do that is worth a crash.
    os._exit(0)


def _serve_one(service: _Service, requests: BinaryIO, replies: BinaryIO) -> bool:
    """Answer a request; False where there is no more."""
    message = pipes.read_message(requests)
    if message is None:
        return False
    header, arrays = service.answer(message)
    pipes.write_message(replies, header, arrays)
    return True


def _serve_afresh(service: _Service, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer every request in a child: what one leaves in memory does not act on the next."""
    # Here, once; what is wrong with it is said by the child that tries again.
    with suppress(Exception):
        service.load_runtime()
    while True:
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
            os._exit(0 if _serve_one(service, requests, replies) else _NO_MORE)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == _NO_MORE:
            os._exit(0)
        if status:
            die_like(status)


def _end_with_parent(descriptor: int) -> None:
    with suppress(OSError, AttributeError):
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)

    def wait() -> None:
        os.read(descriptor, 1)
        os._exit(0)

    threading.Thread(target=wait, daemon=True, name="lifeline").start()


def claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Descriptors 0 and 1 for the protocol alone: what prints goes to stderr from here on."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, replies


_MOST_AT_ONCE = 1024
"""Samples: whether more would have room is of no interest."""


class _Service:
    """Answers requests; keeps the runtime, and the model that was run last."""

    def __init__(self, setup: Mapping[str, Any], report: Report) -> None:
        self._setup = setup
        self._report = report
        self._runtime: Runtime | None = None
        self._kept: tuple[tuple[str, int, int], Session] | None = None
        self._fits: int | None = None
        """How many samples the kept session has room for at once, once that was looked at."""
        self._cpus = cpus.allowed()

    def answer(self, message: pipes.Message) -> Reply:
        """The reply to a request; an error is a reply too."""
        try:
            operation = {
                "measure": self._measure,
                "count": self._count,
                "run": self._run,
                "facts": self._facts,
                "audit": self._audit,
                "call": self._call,
            }[message.header["operation"]]
            return operation(message)
        except errors.CompressError as error:
            return _failure(type(error).__name__, str(error))
        except ImportError as error:
            return _failure("TargetUnavailable", one_line(error))
        except MemoryError as error:
            return _failure("TransientError", f"out of memory while {self._doing}: {one_line(error)}")
        except Exception as error:
            return _failure("MeasurementError", f"{type(error).__name__} while {self._doing}: {one_line(error)}")

    _doing = "starting"

    def _stage(self, stage: str) -> None:
        self._doing = stage
        self._report(stage)

    def _tell(self, ratios: Sequence[Interval]) -> None:
        self._report("timing", ratios=[[one.value, one.low, one.high] for one in ratios])

    def load_runtime(self) -> Runtime:
        """The runtime, loaded when it is first needed."""
        if self._runtime is None:
            self._stage("loading the runtime")
            module, _, name = self._setup["runtime"].partition(":")
            made: Runtime = getattr(importlib.import_module(module), name)(self._setup["settings"])
            self._runtime = made
        return self._runtime

    def _facts(self, _: pipes.Message) -> Reply:
        return {"facts": self.load_runtime().facts()}, {}

    def _audit(self, message: pipes.Message) -> Reply:
        path = Path(message.header["model"])
        existing(path)
        self._stage(f"auditing {path}")
        found = self.load_runtime().audit(path)
        return {"layers": None if found is None else [asdict(one) for one in found]}, {}

    def _call(self, message: pipes.Message) -> Reply:
        """What a function of the asker's own code (``module:name``) replies, given arguments, arrays and ``_stage``."""
        self._stage(message.header["doing"])
        module, _, name = message.header["function"].partition(":")
        reply: Reply = getattr(importlib.import_module(module), name)(
            message.header["arguments"], message.arrays, self._stage
        )
        return reply

    def _run(self, message: pipes.Message) -> Reply:
        runtime = self.load_runtime()
        path = Path(message.header["model"])
        session = self._session(runtime, path)
        self._stage(f"running {path}")
        batch, room = message.header["batch"], message.header.get("room")
        if room is not None:
            if self._fits is None:
                # At its first run, whatever that is asked for: later it has the memory of a sample already.
                self._fits = inputs.fitting_batch(session, message.arrays, _MOST_AT_ONCE, room)
            batch = min(batch, self._fits)
        outputs = inputs.run_batches(session, message.arrays, batch, self._stage)
        return {"outputs": len(outputs)}, {str(number): output for number, output in enumerate(outputs)}

    def _session(self, runtime: Runtime, path: Path) -> Session:
        status = existing(path)
        key = (str(path), status.st_mtime_ns, status.st_size)
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            self._stage(f"loading {path}")
            self._kept, self._fits = (key, runtime.load(path)), None
        return self._kept[1]

    def _measure(self, message: pipes.Message) -> Reply:
        header = message.header
        protocol = Protocol(**header["protocol"])
        threads = int(self._setup["threads"])
        cpus.pin_quietest(self._cpus, threads)
        runtime = self.load_runtime()
        if runtime.processes:
            _move(self._cpus, threads, runtime)
        paths = [Path(path) for path in header["models"]]
        # What the library does once (thread pools, kernels touched for the first time) is nobody's: it falls on
        # a model that is thrown away.
        self._load(runtime, paths[header["order"][0]], message.arrays, header["shapes"])
        loaded: dict[int, _Loaded] = {}
        for index in header["order"]:
            loaded[index] = self._load(runtime, paths[index], message.arrays, header["shapes"])
        models = [loaded[index] for index in range(len(paths))]
        names = [item.name for one in models for item in one.session.inputs]
        inputs.check_names(names, message.arrays, "values")
        inputs.check_names(names, header["shapes"], "shape", errors.TargetError)
        self._stage("warming up")
        taken = measuring.take_samples(
            [one.session.timed(one.feeds) for one in models],
            protocol,
            cpus.SystemClock(threads, runtime.processes),
            seed=header["seed"],
            report=self._stage,
            disturbed=lambda: _move(self._cpus, threads, runtime),
            estimated=self._tell,
        )
        self._stage("looking at memory")
        return {"models": [_described(*pair) for pair in zip(models, taken)]}, {}

    def _count(self, message: pipes.Message) -> Reply:
        given, shapes = message.arrays, message.header["shapes"]
        runtime = self.load_runtime()
        path = Path(message.header["model"])
        existing(path)
        self._stage(f"loading {path}")
        count, takes = runtime.count(path, lambda items: inputs.make_feeds(items, given, shapes, 0), self._stage)
        return {"count": count, "inputs": [item.name for item in takes]}, {}

    def _load(self, runtime: Runtime, path: Path, given: Mapping[str, np.ndarray], shapes: inputs.Shapes) -> _Loaded:
        existing(path)
        self._stage(f"preparing {path}")
        runtime.prepare(path)
        self._stage(f"loading {path}")
        memory.trim()
        before = memory.private()
        start = time.perf_counter()
        session = runtime.load(path)
        loaded = time.perf_counter()
        feeds = inputs.make_feeds(session.inputs, given, shapes, seed=0)
        self._stage(f"running {path} for the first time")
        ready = time.perf_counter()
        session.run(feeds)
        done = time.perf_counter()
        memory.trim()
        after = memory.private()
        grown = None if before is None or after is None else max(0, after - before)
        return _Loaded(session, feeds, loaded - start, done - ready, grown)


def existing(path: Path) -> os.stat_result:
    """What the system says of a file; raises ModelError where there is none."""
    try:
        status = path.stat()
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise errors.ModelError(f"{path}: {'no such file' if missing else one_line(error)}") from None
    if not stat.S_ISREG(status.st_mode):
        raise errors.ModelError(f"{path}: not a file; give the path of one .onnx file")
    return status


def _move(among: tuple[int, ...], threads: int, runtime: Runtime) -> None:
    cpus.pin_quietest(among, threads, runtime.processes)


def _described(model: _Loaded, taken: Samples) -> dict[str, Any]:
    full = replace(taken, first=model.first, load_seconds=model.load_seconds)
    known = model.session.memory(model.feeds)
    return {"samples": asdict(full), "memory": model.memory if known is None else known}


def _failure(kind: str, text: str) -> Reply:
    return {"error": kind, "message": text}, {}


def one_line(error: BaseException, limit: int = 300) -> str:
    """What an exception says, on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


if __name__ == "__main__":
    main()

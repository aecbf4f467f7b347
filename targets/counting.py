"""ONNX Runtime with a counter of executed instructions: the side of ``arm-emulated`` that runs in the emulated process.

Counted is one call of the loaded session with inputs and outputs bound beforehand: kernels, the runtime's own work
between them, and a few thousand instructions of its Python binding; not the conversion of arrays, which a program in
another language does not have. A call of nothing is counted likewise and taken off.

Every model is loaded and counted in a child, forked from the process that has loaded the runtime: where things lie in
memory does not depend on what was counted before. Without that, counts of a model of 50 000 instructions differed by
0.16 %; with it, by less than 0.07 % whatever the model, process and installation.

Only the thread that runs the program counts: with one thread for kernels, it is the one they run on. Counts of one
model still differ by a few hundred from call to call (what the allocator finds free), so the median of some calls is
taken, after calls that are thrown away: the first ones also allocate what later ones reuse.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from targets import errors
from targets.errors import MeasurementError
from targets.ort_cpu import OrtRuntime, OrtSession
from targets.runtime import Input

Call: TypeAlias = tuple[Callable[[Any, Any], object], Any, Any]
"""A function and its two arguments: the same to call whatever it is."""
COUNTERS = "paretopress-counters"
"""Name of the memory file that the plugin keeps its counters in."""
_PR_SET_PDEATHSIG = 1
_WARM = 2
"""Calls thrown away."""
_FEWEST, _MOST = 3, 31
"""Calls counted, at least and at most ..."""
_ENOUGH = 12_000_000
"""... and the instructions that make more than the fewest unnecessary: relative to many, a few hundred are nothing."""


class CountedSession(OrtSession):
    """A loaded model whose calls can be bound."""

    def bind(self, feeds: dict[str, np.ndarray]) -> Call:
        """A call of the session, with its two arguments; what cannot be bound (texts, sequences) is passed as it is."""
        session = self._session
        try:
            binding = session.io_binding()
            for name, array in feeds.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            for output in session.get_outputs():
                binding.bind_output(output.name, "cpu")
            # Below the Python class, whose own work is not the model's.
            session._sess.run_with_iobinding(binding._iobinding, None)
        except Exception:
            return session.run, None, feeds
        return session._sess.run_with_iobinding, binding._iobinding, None


class CountingRuntime(OrtRuntime):
    """The worker's side."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__({"threads": 1, "opt": "all", "spinning": 0, **settings})
        self._counters = open_counters()
        self._nothing = self._counted((_nothing, None, None), lambda _: None)

    def load(self, path: Path) -> CountedSession:
        """Load a file; raises ModelError with one line where it cannot be."""
        return CountedSession(self._session(path, self._options()), path)

    def count(
        self,
        path: Path,
        make_feeds: Callable[[Sequence[Input]], dict[str, np.ndarray]],
        report: Callable[[str], None],
    ) -> tuple[int, tuple[Input, ...]]:
        """Instructions of one inference, and the file's inputs; counted in a child of this process."""

        def work() -> dict[str, Any]:
            session = self.load(path)
            feeds = make_feeds(session.inputs)
            report(f"running {path} for the first time")
            # What it does not accept shows here, with an explanation.
            session.run(feeds)
            count = self._counted(session.bind(feeds), report) - self._nothing
            return {"count": max(1, count), "inputs": [astuple(item) for item in session.inputs]}

        found = alone(work)
        takes = tuple(Input(name, dtype, tuple(shape)) for name, dtype, shape in found["inputs"])
        return int(found["count"]), takes

    def _counted(self, bound: Call, report: Callable[[str], None]) -> int:
        counters, taken = self._counters, [0] * (_WARM + _MOST)
        call, first, second = bound
        number = 0
        while number < _WARM + _FEWEST or (number < len(taken) and sum(taken[_WARM:]) < _ENOUGH):
            report("counting instructions")
            before = counters[0]
            call(first, second)
            taken[number] = counters[0] - before
            number += 1
        found = int(median(taken[_WARM:number]))
        if found <= 0:
            raise MeasurementError("the emulator counts nothing; its plugin does not fit this version of qemu")
        return found


def alone(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` gives (JSON), done in a child: what it leaves in memory is gone when the next one starts.

    Raises what it raised, by name, if that is ours; MeasurementError where the child died.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        _end_with_parent()
        os.write(theirs, json.dumps(_outcome(work)).encode())
        os._exit(0)
    os.close(theirs)
    # Nothing is done here meanwhile: parent and child share the counters.
    with os.fdopen(ours, "rb") as stream:
        said = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status or not said:
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        raise MeasurementError(f"{how} while counting instructions")
    outcome: dict[str, Any] = json.loads(said)
    if "error" in outcome:
        raise getattr(errors, outcome["error"])(outcome["message"])
    return outcome


def _outcome(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except errors.CompressError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        return {"error": "TransientError", "message": "out of memory while counting instructions"}
    except BaseException as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return {"error": "MeasurementError", "message": said}


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, however that ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _nothing(first: object, second: object) -> None:
    pass


def open_counters() -> memoryview:
    """The plugin's counters, one for each thread (64 bits); raises MeasurementError where nobody counts."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if COUNTERS in os.readlink(f"/proc/self/fd/{name}"):
                return memoryview(mmap.mmap(int(name), mmap.PAGESIZE)).cast("Q")
        except OSError:  # the descriptor that listed the folder
            continue
    raise MeasurementError("this process does not run under the emulator that counts")

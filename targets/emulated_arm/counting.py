"""ONNX Runtime with a counter of executed instructions: the side of ``arm-emulated`` that runs in the emulated process.

Counted is one call of the loaded session with inputs and outputs bound beforehand: kernels, the runtime's own work
between them, and a few thousand instructions of its Python binding; not the conversion of arrays, which a program in
another language does not have. A call of nothing is counted likewise and taken off.

Every model is loaded and counted in a process that has done nothing else (``afresh`` in ``worker.py``): where things
lie in memory does not depend on what was counted before, which moved the counts of a model of 40 000 instructions by
0.2 %.

Only the thread that runs the program counts: with one thread for kernels, it is the one they run on. Counts of one
model still differ by a few hundred from call to call (what the allocator finds free), so the median of some calls is
taken, after calls that are thrown away: the first ones also allocate what later ones reuse.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from targets.errors import MeasurementError
from targets.runtimes.ort.ort_cpu import OrtRuntime, OrtSession
from targets.workers.runtime import Input

Call: TypeAlias = tuple[Callable[[Any, Any], object], Any, Any]
"""A function and its two arguments: the same to call whatever it is."""
COUNTERS = "paretopress-counters"
"""Name of the memory file that the plugin keeps its counters in."""
_WARM = 2
"""Calls thrown away."""
_FEWEST, _MOST = 3, 31
"""Calls counted, at least and at most ..."""
_ENOUGH = 12_000_000
"""... and the instructions that make more than the fewest unnecessary: relative to many, a few hundred are nothing."""


class CountedSession(OrtSession):
    """A loaded model whose inputs and outputs can be bound before the call that is counted."""

    def bind(self, feeds: dict[str, np.ndarray]) -> Call:
        """A call of the session, with its two arguments; what cannot be bound (texts, sequences) is passed as it is."""
        session = self.session
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
    """ONNX Runtime in the emulated process, with the plugin's counters; raises MeasurementError where nobody counts."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__({"threads": 1, "opt": "all", "spinning": 0, **settings})
        self._counters = open_counters()
        self._nothing = self._counted((_nothing, None, None), lambda _: None)

    def load(self, path: Path) -> CountedSession:
        """Load a file; raises ModelError with one line where it cannot be."""
        return CountedSession(self.open_session(path, self.session_options()), path)

    def count(
        self,
        path: Path,
        make_feeds: Callable[[Sequence[Input]], dict[str, np.ndarray]],
        report: Callable[[str], None],
    ) -> tuple[int, tuple[Input, ...]]:
        """Instructions of one inference of a file, and its inputs; raises ModelError as ``load`` and ``run`` do."""
        session = self.load(path)
        feeds = make_feeds(session.inputs)
        report(f"running {path} for the first time")
        # What it does not accept shows here, with an explanation.
        session.run(feeds)
        return max(1, self._counted(session.bind(feeds), report) - self._nothing), session.inputs

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

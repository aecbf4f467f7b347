"""Where a measurement runs: the least busy CPUs, pinning, and a clock that notices being kept off them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_LOOK = 0.05
"""Seconds between two readings of /proc/stat."""


def allowed() -> tuple[int, ...]:
    """The numbers of the CPUs that this process may use; empty where the system cannot say."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def quietest(
    before: Mapping[int, tuple[int, int]], after: Mapping[int, tuple[int, int]], count: int
) -> tuple[int, ...]:
    """The ``count`` CPUs with the smallest busy share between two readings (CPU -> busy, total ticks)."""

    def busy(cpu: int) -> float:
        total = after[cpu][1] - before[cpu][1]
        return (after[cpu][0] - before[cpu][0]) / total if total > 0 else 0.0

    # Among equals the last one: interrupts and everybody's default land on the first.
    return tuple(sorted(sorted(before.keys() & after.keys(), key=lambda cpu: (busy(cpu), -cpu))[:count]))


def read_busy(cpus: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """CPU -> (busy, total) ticks since boot, from /proc/stat; empty where there is none."""
    found: dict[int, tuple[int, int]] = {}
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, rest = line.partition(" ")
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            ticks = [int(x) for x in rest.split()]
            found[int(name[3:])] = (sum(ticks) - ticks[3] - ticks[4], sum(ticks))
    return found


def pin_quietest(among: tuple[int, ...], count: int, others: Sequence[int] = ()) -> tuple[int, ...]:
    """Pin all threads of this process to the ``count`` least busy CPUs of ``among``; returns them.

    ``others`` are processes that work while this one waits. Where one thread works, theirs that only help it, by
    compiling for example, are left where they do not take its time.
    """
    if not among or count >= len(among):
        return among
    before = read_busy(among)
    time.sleep(_LOOK)
    chosen = quietest(before, read_busy(among), count)
    if chosen:
        _pin(os.getpid(), chosen, chosen)
        for process in others:
            _pin(process, chosen, among if count == 1 else chosen)
    return chosen


def _pin(process: int, cpus: tuple[int, ...], helpers: tuple[int, ...]) -> None:
    """Pin the first thread of a process, and those that are not the first."""
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{process}/task")]
    except OSError:
        threads = [process]
    for thread in threads:
        try:
            os.sched_setaffinity(thread, cpus if thread == process else helpers)
        except OSError:  # a thread that has just ended
            continue


class SystemClock:
    """Wall time, and the part of it in which the work was not kept waiting for a CPU. Nanoseconds."""

    def __init__(self, threads: int, others: Sequence[int] = ()) -> None:
        self._threads = threads
        self._others = others

    def now(self) -> int:
        """Wall time in nanoseconds, from some fixed moment on."""
        return time.perf_counter_ns()

    def ran(self) -> int:
        """Time really spent running.

        One thread: its CPU time. Several, or those of ``others``, which work while this process waits: wall time less
        the mean time they stood in a run queue, since a thread that waits for its siblings is idle without being kept
        from anything. Of processes with one thread at work only the first counts, which is that one.
        """
        if self._threads == 1 and not self._others:
            return time.thread_time_ns()
        working, single = self._others or (os.getpid(),), self._threads == 1
        queued = sum([_queued(process, first_only=single) for process in working])
        return self.now() - queued // self._threads


def _queued(process: int, *, first_only: bool) -> int:
    """Nanoseconds that the threads of a process have waited for a CPU."""
    total = 0
    try:
        folder = f"/proc/{process}/task"
        for name in [str(process)] if first_only else os.listdir(folder):
            total += int(Path(f"{folder}/{name}/schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return total

"""Resident memory of a process, and what the machine has left.

Read from ``/proc``; on a system without it the answer is None and nothing is limited.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from targets.machine.processes import descendants

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def resident(pid: int | str = "self") -> int | None:
    """The resident set of a process in bytes; None where the system does not say."""
    fields = _statm(pid)
    return None if fields is None else fields[1] * _PAGE


def family(pid: int) -> int | None:
    """Resident set of a process and of those it has started, in bytes; what they share counts for each."""
    own = resident(pid)
    return None if own is None else own + sum(resident(child) or 0 for child in descendants(pid))


def private(pid: int | str = "self") -> int | None:
    """Resident bytes that are not backed by a file: the process's own data, without the code it has touched."""
    fields = _statm(pid)
    return None if fields is None else (fields[1] - fields[2]) * _PAGE


def _statm(pid: int | str) -> list[int] | None:
    try:
        return [int(x) for x in Path(f"/proc/{pid}/statm").read_text().split()]
    except (OSError, ValueError):
        return None


def available_bytes() -> int | None:
    """Bytes that can be used without swapping (the kernel's MemAvailable); None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


_BOUND: ContextVar[int | None] = ContextVar("bound", default=None)
_PART = 8
"""Of the bound, this part is for the samples that are run at once: several processes and copies share the rest."""


@contextlib.contextmanager
def bounded(limit: int | None) -> Iterator[None]:
    """Inside, what is done with samples takes no more than about ``limit`` bytes; None: half of what is free now."""
    if limit is None:
        free = available_bytes()
        limit = None if free is None else free // 2
    token = _BOUND.set(limit)
    try:
        yield
    finally:
        _BOUND.reset(token)


def bound() -> int | None:
    """The bytes that were set by ``bounded``; None where nothing was."""
    return _BOUND.get()


def room(most: int) -> int:
    """Bytes that the inner values of samples which are run at once may take: ``most``, or what the bound leaves."""
    limit = _BOUND.get()
    return most if limit is None else max(1, min(most, limit // _PART))


def reset_peak() -> bool:
    """Let ``peak`` count from now on; False where the system does not."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak() -> int | None:
    """The largest resident set of this process since ``reset_peak``, in bytes; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def grown_by(work: Callable[[], object]) -> int | None:
    """Bytes that this process's resident set grows by at most while ``work`` is done; None where nobody knows."""
    gc.collect()  # what would be freed while it is done would hide as much growth
    trim()
    before = resident()
    known = reset_peak()
    work()
    most = peak()
    return None if before is None or most is None or not known else max(0, most - before)


def trim() -> None:
    """Give freed memory back to the system (glibc), so that growth means growth."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

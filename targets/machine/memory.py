"""Resident memory of a process, and what the machine has left.

Read from ``/proc``; on a system without it the answer is None and nothing is limited.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def resident(pid: int | str = "self") -> int | None:
    """The resident set of a process in bytes; None where the system does not say."""
    fields = _statm(pid)
    return None if fields is None else fields[1] * _PAGE


def family(pid: int) -> int | None:
    """Resident set of a process and of those it has forked, in bytes; what they share counts for each."""
    own = resident(pid)
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return own
    return None if own is None else own + sum(resident(child) or 0 for child in children)


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


def trim() -> None:
    """Give freed memory back to the system (glibc), so that growth means growth."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

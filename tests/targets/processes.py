"""What tests want to know of processes: whether they run, what they started, what they were called with; by /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process runs; one that was killed and that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(true: Callable[[], object], said: Callable[[], object] = lambda: "", seconds: float = 30.0) -> None:
    """Until it is true; fails with what ``said`` says where that does not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, said()
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and theirs."""
    children: dict[int, list[int]] = {}
    for other in _processes():
        with suppress(OSError, IndexError):
            parent = int(Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(other)
    found, waiting = [], [pid]
    while waiting:
        waiting += (more := children.get(waiting.pop(), []))
        found += more
    return found


def name_of(pid: int) -> str:
    """Of a process's program; newer sshds have one for sessions."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip().partition("-")[0]
    return ""


def naming(text: str) -> dict[int, str]:
    """Command lines and Python paths in which a text stands, by process."""
    found = {}
    for pid in _processes():
        with suppress(OSError):
            said = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            if text.encode() in said:
                found[pid] = said.replace(b"\0", b" ").decode(errors="replace")[:200]
    return found


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]

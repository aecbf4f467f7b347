"""Processes that a process has started, and how long they have run; by ``/proc``, empty where there is none."""

from __future__ import annotations

from pathlib import Path


def descendants(pid: int) -> list[int]:
    """The processes that the first thread of a process has started, and those that theirs have."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            children = Path(f"/proc/{one}/task/{one}/children").read_text().split()
        except OSError:
            continue
        found += (more := [int(child) for child in children])
        waiting += more
    return found


def command_line(pid: int) -> str:
    """The words that a process was started with; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def ran(pid: int) -> int:
    """Nanoseconds that the first thread of a process has run; 0 where nobody can say."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0

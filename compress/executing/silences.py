"""How long a worker says nothing before it is given up: one that computes may be silent for longer than one that waits.

An epoch of a large network may take an hour on a slow machine, and nothing is said meanwhile; a worker that hangs
uses no processor, as a rule.
"""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SILENCE = 900.0
"""Seconds without a word after which it is looked at; ten times its longest silence so far, where that is more."""
ENDLESS = 4 * 3600.0
"""Seconds after which one that computes is taken to do so for ever; thirty times its longest silence, likewise."""
_LOOK = 10.0
"""Seconds between two looks at what it has computed."""
_IDLE = 0.02
"""Share of a processor below which it computes nothing."""


@dataclass
class Silence:
    """Since when a worker has said nothing, and what it has computed meanwhile."""

    heard: float = field(default_factory=clock.monotonic)
    longest: float = 0.0
    """Its longest silence so far, in seconds."""
    _looked: tuple[float, float] | None = None
    """When it was looked at last, and the processor's seconds that it had used then."""

    def broken(self, now: float) -> None:
        """Something was heard of it: its silence begins anew, and how long it was is kept."""
        self.longest, self.heard, self._looked = max(self.longest, now - self.heard), now, None

    def begun(self, now: float) -> None:
        """It was given something to do: that it had nothing to say before is no silence."""
        self.heard, self._looked = now, None

    def is_hang(self, now: float, computed: Callable[[], float | None]) -> bool:
        """Whether it hangs. ``computed``: the processor's seconds that it has used so far; None where nobody knows."""
        quiet = now - self.heard
        if quiet <= max(SILENCE, 10 * self.longest):
            return False
        seconds = computed()
        if seconds is None or quiet > max(ENDLESS, 30 * self.longest):
            return True
        if self._looked is None:
            self._looked = (now, seconds)
            return False
        when, before = self._looked
        if now - when < _LOOK:
            return False
        self._looked = (now, seconds)
        return seconds - before < _IDLE * (now - when)


def computed_by(pid: int) -> float | None:
    """The processor's seconds that a process and all that it has started have used; None where the system is silent."""
    used: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return None
    for name in names:
        if name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                used[int(name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
                children.setdefault(int(fields[1]), []).append(int(name))
    if pid not in used:
        return None
    found, waiting = 0.0, [pid]
    while waiting:
        one = waiting.pop()
        found += used[one]
        waiting += children.get(one, [])
    return found

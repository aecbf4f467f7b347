"""Time that something may take: what is still under way when it is over is interrupted, as by Ctrl-C.

A step is estimated before it is begun, and some can only be guessed: then a clock ends them. Whatever survives Ctrl-C
survives this as well.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

_AGAIN = 5.0
"""Seconds after which the clock strikes once more: an interrupt may be lost in code that takes no exceptions."""


class OutOfTime(BaseException):
    """The time is over. No failure (so no Exception): the next call finishes what was under way."""


@dataclass(frozen=True)
class TimeLimit:
    """The time that a call has, in the seconds of ``time.monotonic``; without an end nothing is limited."""

    begun: float = field(default_factory=time.monotonic)
    end: float | None = None

    @property
    def left(self) -> float | None:
        """Seconds until the end, at least 0; None without one."""
        return None if self.end is None else max(0.0, self.end - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether the time is over; never where there is no end."""
        return self.end is not None and time.monotonic() >= self.end

    def share(self, part: float) -> float | None:
        """Seconds that one step may take: ``part`` of the whole time, and no more than what is left of it."""
        left = self.left
        return None if left is None or self.end is None else min(left, part * (self.end - self.begun))

    def within(self, seconds: float | None) -> TimeLimit:
        """A limit that begins now and ends after ``seconds``, and never later than this one."""
        now = time.monotonic()
        ends = [end for end in (self.end, None if seconds is None else now + seconds) if end is not None]
        return replace(self, begun=now, end=min(ends, default=None))


UNLIMITED = TimeLimit()
"""No end."""


@contextlib.contextmanager
def interrupted(limit: TimeLimit) -> Iterator[None]:
    """Inside, OutOfTime is raised wherever the work is when ``limit`` ends.

    That takes the main thread, a system that has such a clock, and nobody else who has set it; elsewhere nothing is
    interrupted, and the estimates alone hold.
    """
    clock = getattr(signal, "ITIMER_REAL", None)
    if limit.end is None or clock is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGALRM)
    ours = getattr(before, "ends_a_time_limit", False)
    outer, _ = signal.getitimer(clock)
    if outer and not ours:
        yield
        return
    set_at, put_back = time.monotonic(), _global_state()
    # An outer limit that ends earlier stays as it is: what it interrupts is more than this.
    first = min(max(1e-3, limit.end - set_at), outer or float("inf"))
    signal.signal(signal.SIGALRM, _striker())
    signal.setitimer(clock, first, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(clock, 0.0)
        signal.signal(signal.SIGALRM, before)
        put_back()
        if outer:
            signal.setitimer(clock, max(1e-3, outer - (time.monotonic() - set_at)), _AGAIN)


def _global_state() -> Callable[[], None]:
    """What torch keeps for the whole process, as it is now: call what is given back to set it so again.

    A block that sets it for a while (``no_grad``) and is interrupted as it ends never gets to put it back.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return lambda: None
    gradients, threads = torch.is_grad_enabled(), torch.get_num_threads()

    def put_back() -> None:
        torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    return put_back


def _striker() -> Callable[[int, Any], None]:
    """What the clock calls; marked, so that a limit inside another one knows it for one of ours."""

    def strike(_number: int, _frame: Any) -> None:
        if _WHOLE.depth:
            _WHOLE.struck = True
        else:
            raise OutOfTime

    strike.ends_a_time_limit = True  # type: ignore[attr-defined]
    return strike


@dataclass
class _Whole:
    """How many ``undisturbed`` are open, and whether the clock struck meanwhile."""

    depth: int = 0
    struck: bool = False


_WHOLE = _Whole()
"""Of the main thread, which is the only one that is interrupted."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, the clock does not strike; it does afterwards. For what must happen whole, and takes no time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _WHOLE.depth += 1
    try:
        yield
    finally:
        _WHOLE.depth -= 1
        struck = _WHOLE.struck
        if not _WHOLE.depth:
            _WHOLE.struck = False
    if struck and not _WHOLE.depth:
        raise OutOfTime

"""The steps before the first training, each with its part of a call's time: what does not fit is left out, and said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from compress.values.durations import format_duration
from compress.values.time_limits import UNLIMITED, OutOfTime, TimeLimit, interrupted

T = TypeVar("T")
IMPORTING, LEARNING, PROFILING, TIMING = 0.2, 0.25, 0.08, 0.08
"""Shares of the time of a call that these steps may take at most: a file brought into torch; groups, training mode and
learning rate; what int8 costs each layer; what it saves by each."""

QUANTIZED_ONLY = 0.3
"""Instead of the last two, for a network of which nothing can be cut: choosing layers to quantize is all there is."""


@dataclass(frozen=True)
class Steps:
    """What the steps of a call share: its time, and whom to tell of what is left out."""

    time: TimeLimit = UNLIMITED
    warn: Callable[[str], None] = lambda _: None

    def do(self, doing: str, instead: str, share: float, work: Callable[[], T]) -> T | None:
        """What ``work`` gives; None, and a warning, where it takes longer than ``share`` of the time.

        ``doing`` and ``instead`` say in words what it is, and what comes of leaving it out. Raises OutOfTime where the
        whole time is over.
        """
        seconds = self.time.share(share)
        try:
            with interrupted(self.time.within(seconds)):
                return work()
        except OutOfTime:
            if self.time.is_over:
                raise
            self.warn(f"{doing} took more than {format_duration(seconds or 0.0)}, its part of --time: {instead}")
            return None

    def fits(self, seconds: float, share: float, doing: str, instead: str) -> bool:
        """Whether a step that is expected to take ``seconds`` fits into ``share`` of the time; a warning if not."""
        most = self.time.share(share)
        if most is None or seconds <= most:
            return True
        self.warn(
            f"{doing} was left out: it would take about {format_duration(seconds)}, and {format_duration(most)} of "
            f"--time are for it: {instead}"
        )
        return False


ALL_THE_TIME = Steps()
"""Nothing is left out."""

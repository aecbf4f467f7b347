"""How the time of a call is divided: so much for trials, so much for reading and timing finalists at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from compress.measurement.latencies import FINAL
from compress.values.durations import format_duration
from targets.target import Protocol

_TIMING_SHARE, _LEAST, _MOST = 0.12, 5.0, 60.0
"""Of the whole time, for timing finalists on one target; at least and at most so many seconds."""
_END = 0.4
"""Of the whole time, that timing on all targets and reading on test may take at most."""
_READINGS = 2
"""Files that are read on test in the usual case: the baseline, and the first choice."""


@dataclass(frozen=True)
class Budget:
    """When to stop; ``deadline`` is when the last trial must have ended (monotonic seconds)."""

    trials: int | None
    deadline: float | None
    timing: float
    """Seconds of what comes after the deadline in which finalists are timed, on all targets together."""


def budget_of(trials: int | None, seconds: float | None, start: float, targets: int, reading: float) -> Budget:
    """The budget of a call that began at ``start`` and takes ``seconds`` (None: as long as it takes).

    What is kept for the end grows with the number of ``targets`` and with ``reading``, the seconds that one reading of
    all of them on test is expected to take.
    """
    if seconds is None:
        return Budget(trials, None, 0.0)
    timing = min(_MOST * targets, max(_LEAST, _TIMING_SHARE * seconds * targets), _END * seconds)
    kept = min(timing + _READINGS * reading, _END * seconds)
    return Budget(trials, start + seconds - kept, timing)


def final_protocol(budget: Budget, targets: int) -> Protocol:
    """How finalists are timed on each target, so that all of it fits into what is kept for it."""
    if budget.deadline is None:
        return FINAL
    each = 0.8 * budget.timing / targets
    return replace(FINAL, seconds=max(1.0, min(FINAL.seconds, 0.7 * each / FINAL.processes)), total=each)


def seconds_of_a_reading(stages: Mapping[str, Mapping[str, float]], examples: int, of: int) -> float:
    """Seconds that scoring a file on ``examples`` takes, by what scoring on ``of`` examples has taken in this run."""
    known = stages.get("score", {})
    made = known.get("count", 0) - known.get("cached", 0)
    return known["seconds"] / made * examples / max(1, of) if made > 0 else 0.0


def too_short(seconds: float, baseline: float) -> str:
    """What to say where the time was over before the first candidate; ``baseline``: the seconds that it took itself."""
    return (
        f"the time was over after {format_duration(seconds)}, before the first candidate was made: the baseline alone "
        f"took {format_duration(baseline)}; the same command with --time "
        f"{format_duration(max(2 * seconds, 4 * baseline))} or more goes on from there"
    )

"""Costs: what candidates are compared by on the front, every number of them the better the lower.

Quality is turned round where higher is better, everything else is relative to the baseline on the same target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from compress.values.candidates import Candidate


def costs_of(
    candidate: Candidate, baseline: Candidate, target: str, objectives: Sequence[str], higher_is_better: bool = True
) -> tuple[float, ...]:
    """The candidate's costs on ``target``, one for each objective in their order, each the better the lower.

    ``quality`` is the metric's value on val, negated if ``higher_is_better``. ``latency`` is the paired ratio to the
    baseline, or the ratio of instructions or cycles, or else of memory, where these are counted instead. The others are
    ratios to the baseline's value. Infinite where the target does not measure it.
    """
    return tuple(_cost(candidate, baseline, target, name, higher_is_better) for name in objectives)


def quality_loss(candidate: Candidate, target: str, higher_is_better: bool) -> float:
    """The candidate's quality on val, in the metric's unit, turned round so that lower is better."""
    value = candidate.measured[target].quality.val.value
    return -value if higher_is_better else value


def speed_cost(candidate: Candidate, target: str) -> float:
    """What the fastest candidate has least of: the latency ratio, or instructions or cycles where these are counted.

    Of memory where neither is; infinite where the target measures nothing.
    """
    measured = candidate.measured[target]
    if measured.latency is not None:
        return measured.latency.ratio
    counted = measured.memory if measured.count is None else measured.count
    return math.inf if counted is None else float(counted)


def _cost(candidate: Candidate, baseline: Candidate, target: str, name: str, higher_is_better: bool) -> float:
    measured, zero = candidate.measured[target], baseline.measured[target]
    if name == "quality":
        return quality_loss(candidate, target, higher_is_better)
    if name == "size":
        return _relative(measured.flash or candidate.size, zero.flash or baseline.size)
    if name == "memory":
        return _relative(measured.memory, zero.memory)
    if name == "latency" and measured.latency is not None:
        return measured.latency.ratio
    if measured.count is None:
        return _relative(measured.memory, zero.memory)
    return _relative(measured.count, zero.count)


def _relative(value: int | None, baseline: int | None) -> float:
    if value is None or baseline is None:
        return math.inf
    # A baseline of 0 bytes above the runtime's own happens: then count in bytes rather than divide by it.
    return value / max(baseline, 1)

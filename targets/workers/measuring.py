"""Latency by paired, shuffled blocks: the loop that takes samples, and what is derived from them.

    warm up every model
    rounds: for every model, in shuffled order, one block of runs; keep the block's fastest run
    ratio  = median over rounds of (model's block / reference's block)

The fastest run of a short block is hardly touched by whatever else the machine does, and neighbouring blocks
share its state (frequency, caches), so the quotient holds where absolute times do not. A model against itself,
load 5 on two cores: 0.997-1.005; with medians inside the blocks 0.94-1.05, with means 0.77-1.27.

A round in which something else held the CPU for more than a tenth of the time, or in which a model ran more than a
tenth slower than at its best (the other thread of the same core was busy, or the clock was low: CPU time does not show
that, and it slows int8 and float by different factors), is kept in the raw samples, but left out of the statistics and
made up for by another round.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Optional, Union
from typing import Protocol as Interface

from targets.intervals import Interval, pooled_interval
from targets.target import Latency, Protocol, Samples
from targets.workers.runtime import Block

CLEAN = 0.9
"""Share of a block's wall time that the thread must have been running."""
SLOWED = 1.1
"""Times a model's fastest block that a block may take. Sessions of one model differ by up to 4 %."""
KEPT_RUNS = 300
"""Single run times kept per model and process."""
_FEWEST_PROCESSES = 3
"""Processes that must be left before slow ones are left out."""
_FEWEST = 5
"""Clean rounds needed before the contaminated ones are left out."""
_TELL = 0.25
"""Seconds between two estimates."""
_MOST_ROUNDS = 3
"""Times the rounds asked for that are taken at most for want of clean ones."""
_FEWEST_ROUNDS = 3
"""Rounds taken even when the time is spent."""

Call = Callable[[], Optional[float]]
"""One run; it gives the seconds it took where the runtime says them, for our clock sees the way there as well."""
Timed = Union[Call, Block]


class Clock(Interface):
    """What the measuring loop takes times from, in nanoseconds; a test drives the loop with a clock of its own."""

    def now(self) -> int:
        """The wall time in nanoseconds, from a clock that never goes back."""

    def ran(self) -> int:
        """Nanoseconds of the wall time in which the work was really running."""


@dataclass
class _Series:
    """What one model has shown so far. Nanoseconds."""

    call: Timed
    repeats: int = 1
    blocks: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    runs: list[list[int]] = field(default_factory=list)


def take_samples(
    calls: Sequence[Timed],
    protocol: Protocol,
    clock: Clock,
    *,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
    disturbed: Callable[[], None] = lambda: None,
    estimated: Callable[[list[Interval]], None] = lambda _: None,
) -> list[Samples]:
    """Time ``calls`` against ``calls[0]`` until every ratio is settled or the time is spent.

    ``report`` is called before every block, ``disturbed`` after a contaminated round (to move elsewhere),
    ``estimated`` some times a second with the ratios so far.
    """
    shuffler = random.Random(seed)
    series = [_Series(call) for call in calls]
    for number, one in enumerate(series):
        report(f"warming up model {number + 1} of {len(series)}")
        one.repeats = _warm_up(one.call, protocol, clock, len(series))
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = told = clock.now()
        while not _enough(series, protocol, (clock.now() - start) / 1e9):
            order = list(series)
            shuffler.shuffle(order)
            for one in order:
                report("timing")
                _block(one, clock)
            if min(one.shares[-1] for one in series) < CLEAN:
                disturbed()
            if clock.now() - told >= _TELL * 1e9:
                told = clock.now()
                estimated([pooled_interval([_clean_ratios(one, series[0])]) for one in series])
    finally:
        if collecting:
            gc.enable()
    return [_samples(one, series[0]) for one in series]


def _warm_up(call: Timed, protocol: Protocol, clock: Clock, models: int) -> int:
    """Run for ``protocol.warmup`` seconds at least; returns how many runs make a block."""
    start = now = clock.now()
    fastest: int | None = None
    while fastest is None or now - start < protocol.warmup * 1e9:
        took = min(_times(call, 1, clock))
        now = clock.now()
        fastest = took if fastest is None else min(fastest, took)
    seconds = max(fastest, 1) / 1e9
    repeats = max(1, round(protocol.block / seconds))
    # The fastest of one or two runs says little; three are taken where the time allows it.
    affordable = protocol.seconds / (seconds * models * protocol.rounds)
    return max(repeats, min(3, int(affordable)))


def _block(one: _Series, clock: Clock) -> None:
    ran, start = clock.ran(), clock.now()
    times = _times(one.call, one.repeats, clock)
    wall = max(clock.now() - start, 1)
    one.blocks.append(max(min(times), 1))
    one.shares.append(min(1.0, max(0.0, (clock.ran() - ran) / wall)))
    one.runs.append(times)


def _times(call: Timed, runs: int, clock: Clock) -> list[int]:
    """Nanoseconds of so many runs."""
    if isinstance(call, Block):
        return [round(seconds * 1e9) for seconds in call.run(runs)]
    now, times = clock.now, []
    before = now()
    for _ in range(runs):
        own = call()
        after = now()
        times.append(after - before if own is None else round(own * 1e9))
        before = after
    return times


def _enough(series: Sequence[_Series], protocol: Protocol, spent: float) -> bool:
    done = len(series[0].blocks)
    if done < min(_FEWEST_ROUNDS, protocol.rounds):
        return False
    if spent >= protocol.seconds:
        return True
    clean = min(sum(_clean(one.blocks, series[0].blocks, _shares(one, series[0]))) for one in series)
    # A contaminated round is made up for by another one, but on a busy machine not for ever.
    if clean < protocol.rounds and done < _MOST_ROUNDS * protocol.rounds:
        return False
    return all(pooled_interval([_clean_ratios(one, series[0])]).half_width <= protocol.width for one in series)


def _shares(one: _Series, reference: _Series) -> list[float]:
    return [min(pair) for pair in zip(one.shares, reference.shares)]


def _samples(one: _Series, reference: _Series) -> Samples:
    shares = _shares(one, reference)
    clean = [times for times, good in zip(one.runs, _clean(one.blocks, one.blocks, one.shares)) if good]
    runs = [time for times in (clean if len(clean) >= _FEWEST else one.runs) for time in times]
    step = max(1, -(-len(runs) // KEPT_RUNS))
    return Samples(
        blocks=tuple(ns / 1e9 for ns in one.blocks),
        reference=tuple(ns / 1e9 for ns in reference.blocks),
        runs=tuple(ns / 1e9 for ns in runs[::step]),
        count=sum(map(len, one.runs)),
        cpu=tuple(shares),
    )


def _clean_ratios(one: _Series, reference: _Series) -> list[float]:
    return _ratios(one.blocks, reference.blocks, _shares(one, reference))


def _ratios(blocks: Sequence[float], reference: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Per-round ratios of the clean rounds, or of all where too few are clean."""
    ratios = [a / b for a, b in zip(blocks, reference)]
    clean = [ratio for ratio, good in zip(ratios, _clean(blocks, reference, shares)) if good]
    return clean if len(clean) >= min(_FEWEST, len(ratios)) else ratios


def _clean(blocks: Sequence[float], reference: Sequence[float], shares: Sequence[float]) -> list[bool]:
    """Which rounds nothing else got in the way of, as far as this process shows."""
    best, zero = SLOWED * min(blocks, default=0), SLOWED * min(reference, default=0)
    held = shares or [1.0] * len(blocks)
    return [share >= CLEAN and a <= best and b <= zero for a, b, share in zip(blocks, reference, held)]


def clean_rounds(samples: Samples) -> list[bool]:
    """Which rounds of a model and its reference nothing else got in the way of."""
    return _clean(samples.blocks, samples.reference, samples.cpu)


def undisturbed(samples: Sequence[Samples]) -> list[Samples]:
    """The processes in which both models came near their best; all, where those are too few to tell."""
    best = [SLOWED * min((min(one) for one in series if one), default=0) for series in _both(samples)]
    good = [
        one for one in samples if one.blocks and min(one.blocks) <= best[0] and min(one.reference, default=0) <= best[1]
    ]
    return good if len(good) >= min(_FEWEST_PROCESSES, len(samples)) else list(samples)


def _both(samples: Sequence[Samples]) -> tuple[list[Sequence[float]], list[Sequence[float]]]:
    return [one.blocks for one in samples], [one.reference for one in samples]


def paired_ratio(samples: Sequence[Samples]) -> Interval:
    """The paired ratio to the reference, over all processes that were not slowed from beginning to end."""
    return pooled_interval([_ratios(one.blocks, one.reference, one.cpu) for one in undisturbed(samples)])


def latency(samples: Sequence[Samples]) -> Latency:
    """All that is derived from one model's samples, one ``Samples`` a process."""
    interval = paired_ratio(samples)
    runs = [run for one in undisturbed(samples) for run in one.runs]
    shares = [share for one in samples for share in one.cpu]
    p50 = median(runs)
    return Latency(
        p50=p50,
        # Interpolating between equal values may come out a rounding error below them.
        p95=max(p50, quantiles(runs, n=20, method="inclusive")[-1]) if len(runs) > 1 else p50,
        ratio=interval.value,
        low=interval.low,
        high=interval.high,
        runs=sum(one.count for one in samples),
        load=max(0.0, 1.0 - median(shares)) if shares else 0.0,
    )

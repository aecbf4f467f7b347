"""The settings of a target that make a model fast and change nothing else: ``tune("model.onnx", "ort-cpu")``.

One setting after the other, every value is run in turns with the best so far, each time in a fresh process; a value is
taken where it is faster by more than a tie. Two settings that only help together are not found.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from targets.benches.comparing import Ratio, compare
from targets.errors import RequestError
from targets.intervals import TIE, pooled_interval
from targets.registry import DEFAULT, class_of, get, parse
from targets.settings import canonical_name
from targets.target import Estimate, Protocol, Target, Watch

TURN = Protocol(width=0.01, seconds=0.8, processes=1)
"""One turn of one value: a fresh process each."""
_TURNS, _FEWEST = 5, 3
"""Turns of every value, and of the one that it is compared with; where the time is over, so many at least."""
_STARTING = 0.7
"""Seconds that a process takes to start and to load a model, about."""


@dataclass(frozen=True)
class Tried:
    """One value of one setting, run in turns with the best settings that were known then."""

    target: str
    """With that value: ``ort-cpu:threads=2``."""
    against: str
    """The settings that it was run in turns with."""
    p50: float
    """Seconds of an inference: the median over the turns."""
    ratio: Ratio
    """Its time as a share of that of ``against``, with the 95 % interval."""

    @property
    def faster(self) -> bool:
        """Whether it is faster by more than two sessions of one model differ by."""
        return not self.ratio.tied and self.ratio.value < 1.0 - TIE


@dataclass(frozen=True)
class Tuned:
    """The settings to use for a model on one target, and all that was tried."""

    model: Path
    asked: str
    """The target that was given."""
    best: str
    """The target with its fastest settings; what was given where nothing is faster."""
    gain: Ratio
    """The time with the best settings as a share of that with those given."""
    tried: tuple[Tried, ...]

    def to_json(self) -> dict[str, Any]:
        """The entry of ``bench --tune --json``: seconds and ratios."""
        rows = [
            {"target": one.target, "against": one.against, "p50": one.p50, **_flat(one.ratio), "faster": one.faster}
            for one in self.tried
        ]
        return {"path": str(self.model), "asked": self.asked, "best": self.best, **_flat(self.gain), "tried": rows}


def _flat(ratio: Ratio) -> dict[str, float]:
    return {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}


def tune(
    model: str | Path,
    target: str = DEFAULT,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    seconds: float | None = None,
    watch: Watch | None = None,
) -> Tuned:
    """Find the settings with which ``model`` runs fastest on ``target``, beginning with those given.

    ``shapes`` and ``inputs`` are by input name; ``seconds``: about how long all of it may take. ``watch`` is told what
    is tried. Raises RequestError for a target without such settings, ModelError, TargetError and MeasurementError as
    ``compare`` does.
    """
    name, given = parse(target)
    cls = class_of(name)
    known = getattr(cls, "settings", {})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    worth = {key: one.worth_trying(cores) for key, one in known.items() if key not in given}
    worth = {key: values for key, values in worth.items() if len(values) > 1}
    made = get(target)
    made.close()
    if made.counted or not worth:
        raise RequestError(f"target {target!r} has no setting left that could be tuned; give it without settings")
    end = None if seconds is None else time.monotonic() + seconds
    turns = _Turns(Path(model), shapes, inputs, _turn(seconds, sum(map(len, worth.values()))), end, watch)
    values = {key: one.parse(name, key, given.get(key, one.default)) for key, one in known.items()}
    first = best = canonical_name(name, known, values)
    tried: list[Tried] = []
    gain = Ratio(1.0, 1.0, 1.0)
    for key, candidates in worth.items():
        others = {value: canonical_name(name, known, {**values, key: value}) for value in candidates}
        round_of = turns.compared(best, [one for one in others.values() if one != best])
        tried += round_of
        faster = [one for one in round_of if one.faster]
        if faster:
            chosen = min(faster, key=lambda one: one.ratio.value)
            values[key] = next(value for value, one in others.items() if one == chosen.target)
            best = chosen.target
            gain = Ratio(*(a * b for a, b in zip(asdict(gain).values(), asdict(chosen.ratio).values(), strict=True)))
    return Tuned(Path(model), first, best, gain, tuple(tried))


def _turn(seconds: float | None, values: int) -> Protocol:
    """How long a turn is, so that all of them fit into ``seconds``."""
    if seconds is None:
        return TURN
    # Of every setting, one value is what the others are compared with: as many runs as there are values.
    each = min(TURN.seconds, max(0.1, seconds / (_TURNS * values) - _STARTING))
    return replace(TURN, seconds=each, warmup=min(TURN.warmup, each))


@dataclass(frozen=True)
class _Turns:
    """Runs one model with several settings in turns."""

    model: Path
    shapes: Mapping[str, tuple[int, ...]] | None
    inputs: Mapping[str, np.ndarray] | None
    protocol: Protocol
    end: float | None
    """When the time is over (``time.monotonic``)."""
    watch: Watch | None

    def compared(self, best: str, others: Sequence[str]) -> list[Tried]:
        """Every one of ``others`` against ``best``; the order is turned over from turn to turn."""
        names, times = [best, *others], dict[str, list[float]]()
        for turn in range(_TURNS):
            if turn >= _FEWEST and self.end is not None and time.monotonic() > self.end:
                break
            for name in names if turn % 2 == 0 else reversed(names):
                if self.watch is not None:
                    self.watch(Estimate(name, f"turn {turn + 1} of {_TURNS}"))
                times.setdefault(name, []).append(self._once(name))
        zero = times[best]
        found = []
        for name in others:
            interval = pooled_interval([[mine / theirs] for mine, theirs in zip(times[name], zero, strict=True)])
            ratio = Ratio(interval.value, interval.low, interval.high)
            found.append(Tried(name, best, float(np.median(times[name])), ratio))
        return found

    def _once(self, name: str) -> float:
        target: Target = get(name)
        try:
            [measured] = compare([self.model], target, dict(self.shapes or {}), self.protocol, self.inputs).measurements
        finally:
            target.close()
        if measured.latency is None:
            raise RequestError(f"target {name!r} gives no latency, so there is nothing to tune")
        return measured.latency.p50

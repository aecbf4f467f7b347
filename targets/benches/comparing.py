"""Paired ratios between models: ``compare(["a.onnx", "b.onnx"])``.

Two sessions of one model differ by a few percent, so a comparison takes several fresh processes, and a difference
below 3 % is called a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from targets.errors import ModelError, RequestError
from targets.intervals import COUNTED_TIE, TIE
from targets.registry import DEFAULT, get
from targets.target import Measurement, Protocol, Target, Watch
from targets.workers.measuring import clean_rounds

CAREFUL = Protocol(width=0.01, seconds=0.8, processes=5, most=12, total=30.0)
"""How ``compare`` measures unless told otherwise."""
_MANY = 1000
"""Processes at most where only the time is to decide."""


def careful(width: float | None = None, seconds: float | None = None) -> Protocol:
    """``CAREFUL``, but until every ratio is known within ± ``width`` (a share), or ``seconds`` are spent.

    Raises RequestError for a width that is not between 0.1 % and 20 %, or no positive time.
    """
    protocol = CAREFUL
    if width is not None:
        if not 0.001 <= width <= 0.2:
            raise RequestError(f"precision {100 * width:g} % is not allowed; it is between 0.1 % and 20 %")
        protocol = replace(protocol, width=width)
    if seconds is not None:
        if not seconds > 0:
            raise RequestError(f"time {seconds:g} s is not allowed; it must be more than nothing")
        # Half a second of starting and loading, then warming up and timing: many short processes say more than few.
        each = min(protocol.seconds, max(0.1, (seconds / protocol.processes - 0.5) / 2))
        protocol = replace(protocol, seconds=each, warmup=min(protocol.warmup, each), most=_MANY, total=seconds)
    return protocol


@dataclass(frozen=True)
class Ratio:
    """A model's cost as a ratio to the first model's, with its 95 % interval; below 1 is faster."""

    value: float
    low: float
    high: float
    tie: float = field(default=TIE, compare=False)
    """The share within which it is too close to 1 to be called a difference."""

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"

    @property
    def tied(self) -> bool:
        """Too close to 1 to be called a difference: within ``tie``, or 1 lies inside the interval."""
        return abs(self.value - 1.0) < self.tie or self.low <= 1.0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """Measurements of several models in one setting, the first one being the reference."""

    measurements: tuple[Measurement, ...]

    def ratio(self, path: str | Path) -> Ratio:
        """The ratio of the model at ``path``, or of that name, to the first one; raises ModelError if there is none."""
        return _ratio(self._measurement(path), self.measurements[0])

    def ratio_at(self, index: int) -> Ratio:
        """The ratio of the model at a place in the list, from 0, to the first one; for a file that is given twice."""
        return _ratio(self.measurements[index], self.measurements[0])

    def tied(self, path: str | Path) -> bool:
        """Whether the model at ``path`` cannot be told from the first one."""
        return self.ratio(path).tied

    def to_json(self) -> list[dict[str, Any]]:
        """One entry a model, in order: the ``results`` of ``paretopress bench --json``. Seconds, bytes, ratios."""
        return [entry(one, self.measurements[0]) for one in self.measurements]

    def _measurement(self, path: str | Path) -> Measurement:
        asked = Path(path)
        tests: tuple[Callable[[Measurement], bool], ...] = (
            lambda one: one.path == asked,
            lambda one: one.path.resolve() == asked.resolve(),
            lambda one: one.path.name == str(path),
        )
        for same in tests:
            # The first model's own ratio is 1 by definition: of two equal paths the later one is meant.
            found = [one for one in self.measurements if same(one)]
            if found:
                return found[-1]
        raise ModelError(f"{path} was not compared; there are {', '.join(str(one.path) for one in self.measurements)}")


def compare(
    models: str | Path | Sequence[str | Path],
    target: str | Target = DEFAULT,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    protocol: Protocol | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    watch: Watch | None = None,
    *,
    width: float | None = None,
    seconds: float | None = None,
) -> Comparison:
    """Measure ``models`` against the first of them, at batch 1, in several fresh processes.

    ``shapes`` and ``inputs`` are by input name; what is missing is made up. It goes on until every ratio is known
    within ± ``width`` (a share, 0.01 unless given) or ``seconds`` are spent (30); a ``protocol`` says all of that
    itself. ``watch`` is called some times a second with a ``targets.target.Estimate``. Raises ModelError, TargetError,
    MeasurementError, or RequestError for a width or time that is not allowed.
    """
    protocol = protocol or careful(width, seconds)
    made = get(target)
    try:
        paths = [Path(model) for model in ([models] if isinstance(models, str | Path) else models)]
        measured = made.measure(paths, inputs=inputs, shapes=shapes, protocol=protocol, watch=watch)
    finally:
        if made is not target:
            made.close()
    return Comparison(tuple(measured))


def entry(one: Measurement, reference: Measurement) -> dict[str, Any]:
    """A measurement as an entry of ``bench --json``: seconds, bytes, the ratio to ``reference`` with its interval."""
    latency = one.latency
    ratio = _ratio(one, reference)
    return {
        "target": one.target,
        "path": str(one.path),
        "p50": latency.p50 if latency else None,
        "p95": latency.p95 if latency else None,
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "runs": latency.runs if latency else 0,
        "load": latency.load if latency else 0.0,
        "first": one.first,
        "load_s": one.load_seconds,
        "memory": one.memory,
        "instructions": one.instructions,
        "size": one.size,
        **{name: value for name, value in (("cycles", one.cycles), ("flash", one.flash)) if value is not None},
        "processes": len(one.samples),
        "settled": one.settled,
        "tied": one is not reference and ratio.tied,
        "disturbed": disturbed(one),
        "fastest": fastest(one),
    }


def disturbed(one: Measurement) -> float:
    """Share of the rounds that something else held up or slowed; they are left out and made up for."""
    clean = [good for part in one.samples for good in clean_rounds(part)]
    return 1.0 - sum(clean) / len(clean) if clean else 0.0


def fastest(one: Measurement) -> list[float] | None:
    """Seconds of the fastest run: the median over the processes, the smallest and the largest of them."""
    found = [min(part.blocks) for part in one.samples if part.blocks]
    return [median(found), min(found), max(found)] if found else None


def _ratio(one: Measurement, reference: Measurement) -> Ratio:
    if one.latency:
        return Ratio(one.latency.ratio, one.latency.low, one.latency.high)
    if one.count is not None and reference.count:
        counted = one.count / reference.count
    elif one.memory is not None and reference.memory:
        counted = one.memory / reference.memory
    else:
        raise ModelError(f"{one.path}: target {one.target} gave neither a latency nor a count")
    return Ratio(counted, counted, counted, tie_share(None, one.instructions))


def tie_share(timed: object, instructions: object) -> float:
    """The share within which costs are not told apart: of times, of instructions, or of anything else that is counted.

    Instructions move a little with the input. Both are None where they were not measured.
    """
    if timed is not None:
        return TIE
    return 0.0 if instructions is None else COUNTED_TIE

"""What is known about a candidate, as plain data. `report.json` is these, written down (design: "report.json").

Bytes, seconds, plain ratios. ``None`` means: not measured (yet).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Quality:
    """A metric's value on one split, with its 95 % interval over ``n`` examples."""

    metric: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Drop:
    """Baseline minus candidate on the same examples; positive is always worse."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassQuality:
    """How well one class is told apart; ``n`` examples are of it, ``decided`` were taken for it."""

    precision: float
    recall: float
    f1: float
    n: int
    decided: int


@dataclass(frozen=True)
class QualitySplits:
    """Quality on val, on test once it was read, and per slice and class of test."""

    val: Quality
    test: Quality | None = None
    slices: dict[str, dict[str, Quality]] = field(default_factory=dict)
    """slice's name -> value of the slice -> quality on those test examples."""
    classes: dict[str, ClassQuality] = field(default_factory=dict)
    """Class number -> how well it is told apart on test; only where each example is of one class."""


@dataclass(frozen=True)
class DropSplits:
    """Quality drop on val, and on test once it was read."""

    val: Drop
    test: Drop | None = None


@dataclass(frozen=True)
class LatencyResult:
    """Latency on a target; ``ratio`` is candidate / baseline, paired, with its 95 % interval."""

    p50: float
    p95: float
    ratio: float
    low: float
    high: float
    runs: int
    disturbed: float = 0.0
    """Share of the rounds that something else held up or slowed; they are left out, unless most were."""
    settled: bool = True
    """Whether the interval came as narrow as asked before the time was spent."""
    baseline: float | None = None
    """The baseline's own best time beside it, in seconds: by that the machine's state is told."""


@dataclass(frozen=True)
class DeviceCheck:
    """How outputs computed on this machine agree with the device's, on ``n`` examples.

    ``agreement``: share of equal decisions; ``max_abs``: largest difference of an output.
    """

    n: int
    agreement: float
    max_abs: float


@dataclass(frozen=True)
class IntegerShare:
    """How many of a file's products (convolutions, matrix products, recurrences) run in integer kernels.

    With an NPU (``on_npu``): how many of all its operators run there.
    """

    integer: int
    layers: int
    why: tuple[str, ...] = ()
    """Why the others do not, the most frequent reason first."""
    on_npu: bool = False


@dataclass(frozen=True)
class Measured:
    """All that one target says of one candidate."""

    quality: QualitySplits
    quality_drop: DropSplits
    latency: LatencyResult | None
    memory: int | None = None
    instructions: int | None = None
    feasible: bool = True
    scored_on_host: dict[str, DeviceCheck] = field(default_factory=dict)
    """Splits that this machine scored in the device's place, with how the device agreed."""
    integer: IntegerShare | None = None
    """None where the runtime does not show what it executes."""
    flash: int | None = None
    """Bytes of the file and of the code that runs it, where a target knows that; limits on ``size`` are held to it."""
    cycles: int | None = None
    """Modelled, on targets that count these and no instructions."""
    stand_in: bool = False
    """Whether costs are of a file that was made of this one, which itself does not run there: it is no choice."""

    @property
    def count(self) -> int | None:
        """What is counted of it, instructions or cycles; None where neither is."""
        return self.cycles if self.instructions is None else self.instructions


@dataclass(frozen=True)
class Parity:
    """ONNX file against the torch network it came from."""

    max_abs: float
    agreement: float


@dataclass(frozen=True)
class LayerDamage:
    """What int8 takes from one layer, or from all nodes of one operator, in the baseline.

    ``sqnr``: decibels of its output with all else in int8 too, or None where it was not looked at; ``alone``: decibels
    of the network's output with nothing but this in int8, or None where that is not finite or not measured; ``saved``:
    the share of the int8 network's time that int8 saves here (below 0: it is faster in float), or None where it was not
    timed.
    """

    layer: str
    operator: str
    sqnr: float | None
    alone: float | None
    saved: float | None


@dataclass(frozen=True)
class Candidate:
    """A config together with its ONNX artifact and its measurements."""

    id: str
    path: str | None
    config: dict[str, Any]
    size: int
    parameters: int
    macs: int
    parity: Parity
    measured: dict[str, Measured]
    trial: int | None = None
    """The trial it came from; None for the baseline."""
    sha256: str = ""
    """Of the file: two configs may come to the very same network."""
    files: dict[str, str] = field(default_factory=dict)
    """Files that belong to it, besides that of ``path``: name in its folder -> SHA-256."""
    sqnr: dict[str, float] = field(default_factory=dict)
    """Of a quantized file: output -> decibels of signal to noise against the float file it was made of."""
    lost_in: str = ""
    """Where an output has too few of them: a sentence that says so, with the operator that takes most."""

    def on(self, target: str, measured: Measured) -> Candidate:
        """The same candidate with what ``target`` says replaced."""
        return replace(self, measured={**self.measured, target: measured})


@dataclass(frozen=True)
class Pick:
    """A candidate chosen for one purpose, and how it was judged on test."""

    id: str
    verdict: str
    """``confirmed``, ``refuted`` or ``open``."""
    read: int = 0
    """How many candidates were read on test for this pick, at most three: this one included, unless all three were
    refuted and one that was read for another pick stands in."""
    refuted: tuple[str, ...] = ()
    """The ids that were read before it and refuted."""
    needed: int | None = None
    """For ``open``: about how many test examples would settle it, if any number does."""
    tied_with: tuple[str, ...] = ()
    """Ids that cannot be told apart from it in what it was picked for."""
    certainty: float | None = None
    """The probability that the search gave it to be within the limits on test, before it was read there."""


@dataclass(frozen=True)
class Failure:
    """A trial that ended without candidates, and why."""

    trial: int
    stage: str
    cause: str


@dataclass(frozen=True)
class NearestMiss:
    """The candidate closest to meeting every constraint; ``by``: constraint -> excess in its own unit."""

    id: str
    by: dict[str, float]

"""What a target is: the one contract between a runtime on a device and everything above it.

A target takes paths of ``.onnx`` files and gives back numbers. It never sees torch, Optuna or a search.
Everything derived (p50, ratios, intervals) is computed from the raw samples by ``measuring.py``, so that a
target only has to produce honest samples.

Units: seconds, bytes, plain counts.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

COUNTS = ("instructions", "cycles")
"""What stands for speed where nothing is timed: executed instructions, or the cycles of a compiler's model."""


@dataclass(frozen=True)
class Capabilities:
    """What a target can do; `compress` asks this instead of assuming."""

    precisions: tuple[str, ...] = ("fp32", "int8", "int8-dynamic", "mixed")
    """Schemes worth producing for this target."""
    refuses: tuple[str, ...] = ()
    """Schemes whose files do not run there at all."""
    int8_format: str = "u8s8"
    """Activation and weight types whose integer kernels run here: ``u8s8`` or ``s8s8``; ``tflite``, or
    ``tflite-float-io`` with floats in and out, where the target converts float files itself (``Target.convert``)."""
    reduce_range: bool = False
    """7-bit weights: needed where u8s8 saturates (x86 without VNNI)."""
    channel_step: int = 1
    """Cost falls only when a width crosses a multiple of this (fp32). Declared here, measured by ``probing.py``."""
    int8_step: int = 1
    """The same in int8."""
    opset: int = 23
    """Highest ONNX opset the runtime accepts."""
    ir_version: int = 11
    """Highest ONNX IR version the runtime accepts."""
    lacks: tuple[str, ...] = ()
    """Operators (``Op`` or ``domain:Op``) the runtime is known not to have."""


@dataclass(frozen=True)
class Protocol:
    """How carefully to measure: how long, how many rounds and processes, and how narrow the interval must be."""

    width: float = 0.01
    """Stop when the 95 % interval of every ratio is within ± this share."""
    seconds: float = 4.0
    """Give up narrowing after this much measuring, per process."""
    rounds: int = 10
    """Rounds at least, per process."""
    block: float = 0.02
    """Seconds one block of one model lasts."""
    warmup: float = 0.2
    """Seconds every model is warmed up."""
    processes: int = 1
    """Fresh processes at least; the order of loading is turned over between them."""
    most: int = 1
    """Fresh processes at most: more than ``processes`` while an interval is wider than asked."""
    total: float | None = None
    """Start no further process once this many seconds have passed, however few there were; None: no limit."""


@dataclass(frozen=True)
class Estimate:
    """What a measurement under way has found so far; what ``watch`` is told."""

    target: str
    stage: str
    """What it is doing, in words."""
    process: int = 1
    """Which fresh process this is, from 1."""
    processes: int = 1
    """How many there will be at least."""
    ratios: tuple[tuple[float, float, float], ...] = ()
    """Per model, in order: paired ratio to the first and its 95 % interval (value, low, high), in this process."""


Watch = Callable[[Estimate], None]


@dataclass(frozen=True)
class Layer:
    """One product (convolution, matrix product, recurrence) of the graph that a runtime really executes."""

    name: str
    operator: str
    """The runtime's own name of the kernel or operator."""
    integer: bool
    """Whether it computes in integers."""
    why: str = ""
    """Where not, or where the file says otherwise: the reason in words, as far as it can be seen."""
    instructions: int | None = None
    """That it executes in one inference, where these are counted for each operator."""
    on_npu: bool | None = None
    """Whether it runs on the NPU rather than on the CPU beside it; None where there is no NPU."""


@dataclass(frozen=True)
class Samples:
    """Raw timings of one model in one process, next to the reference's in the same rounds.

    ``blocks[r]`` and ``reference[r]`` are the fastest run in round r's block (seconds).
    ``cpu[r]`` is the share of round r's wall time that the thread was really running.
    ``runs`` are single run times (seconds), thinned to a few hundred; ``count`` is how many there were.
    """

    blocks: tuple[float, ...]
    reference: tuple[float, ...]
    runs: tuple[float, ...]
    count: int
    cpu: tuple[float, ...] = ()
    first: float = 0.0
    """Seconds of the first inference in that process."""
    load_seconds: float = 0.0
    """Seconds it took to load the model in that process."""


@dataclass(frozen=True)
class Latency:
    """Derived from samples; ``ratio`` is to the reference, with its 95 % interval."""

    p50: float
    p95: float
    ratio: float
    low: float
    high: float
    runs: int
    load: float = 0.0
    """Share of the time that something else held the CPU: 0 is a quiet machine."""


@dataclass(frozen=True)
class Measurement:
    """One model on one target, measured against the reference (the first model of the call)."""

    path: Path
    target: str
    size: int
    latency: Latency | None = None
    instructions: int | None = None
    memory: int | None = None
    flash: int | None = None
    """What the file takes of a device together with the code that runs it; None where that is not known."""
    cycles: int | None = None
    """Of one inference, as a model of the device counts them; on targets that do not count instructions."""
    stand_in: bool = False
    """Whether costs are of a file that was made of this one, which itself does not run there."""
    first: float | None = None
    load_seconds: float | None = None
    settled: bool = True
    """Whether the interval came within the asked width before the time was spent."""
    samples: tuple[Samples, ...] = field(default=(), repr=False)

    @property
    def count(self) -> int | None:
        """What is counted of it, instructions or cycles; None where neither is."""
        return self.cycles if self.instructions is None else self.instructions


class Target(abc.ABC):
    """A runtime on a device, with its settings.

    Implement ``measure`` and ``run``; ``describe`` and ``capabilities`` say what and where it is.
    A subclass that runs on this machine derives from ``targets.LocalTarget`` instead,
    and only says how its runtime loads a model.
    """

    name: str
    """As it stands in reports: ``NAME[:KEY=VALUE,...]``, keys sorted, defaults left out."""
    counted: bool = False
    """Cost is counted, not timed."""
    deterministic: bool = False
    """Same file, same cost, bit for bit: searches on it are reproducible."""
    cost_by_weights: bool = False
    """Cost depends on the values of weights, too: files of one structure may differ in it."""
    has_npu: bool = False
    """An NPU runs what it can of a file and the CPU beside it the rest: how much that is belongs to every figure."""
    remote: bool = False
    """Runs elsewhere or emulated: quality may be too slow to score there, so scoring looks at the time it takes."""
    slow_to_load: bool = False
    """Loading a file takes long (it is converted, or emulated): probes make do with few."""
    probed: bool = True
    """Whether its steps and int8 format are found out by measuring (``probing.py``); else they are as declared."""

    at_once: int = 1
    """How many calls it can answer at the same moment, each without disturbing another."""

    @property
    def cost_quantity(self) -> str:
        """The quantity that stands for speed here: ``latency``, ``instructions``, ``cycles`` or ``memory``."""
        return "instructions" if self.counted else "latency"

    @property
    def limits(self) -> Mapping[str, int]:
        """What the named device has, in bytes, by the quantity that it limits (``memory``, ``size``)."""
        return {}

    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What the runtime accepts and where its latency steps are."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """The runtime, its version and the device, as JSON: part of a measurement's cache key."""

    @abc.abstractmethod
    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,
    ) -> list[Measurement]:
        """Measure ``models`` against ``models[0]``, in order, at batch 1.

        ``inputs`` are arrays by input name; missing ones are made up (seeded), dynamic axes being 1 or
        what ``shapes`` says. ``watch`` is told, some times a second, how far it is.

        Raises ``ModelError`` if a file is not a model, ``MeasurementError`` if the runtime refuses,
        crashes or hangs.
        """

    @abc.abstractmethod
    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        """Outputs for ``inputs`` (samples first, any number of them), run ``batch`` at a time.

        Raises as ``measure`` does.
        """

    def moment(self) -> dict[str, Any]:
        """What changes there from minute to minute (load, free memory, temperature), as JSON; no part of any key."""
        return {}

    def remarks(self) -> tuple[str, ...]:
        """What has been seen of the device so far that its reader should know, a sentence each; most have nothing."""
        return ()

    def audit(self, model: Path) -> tuple[Layer, ...] | None:  # noqa: ARG002  for those who can
        """The products of the graph that is really executed; None where the runtime does not show it.

        Raises as ``measure`` does.
        """
        return None

    def convert(
        self,
        model: Path,  # noqa: ARG002  for those who do
        precision: str,  # noqa: ARG002
        samples: Mapping[str, np.ndarray],  # noqa: ARG002
        made: Path,  # noqa: ARG002
    ) -> Path | None:
        """Write what this runtime takes in place of a float ``.onnx`` file, in a precision; None where it takes that.

        ``samples``: arrays by input name, samples first, to calibrate with. Only targets whose ``int8_format`` begins
        with ``tflite`` are asked. Raises ModelError naming the operator that cannot be converted.
        """
        return None

    def close(self) -> None:  # noqa: B027  not abstract: most targets have nothing to let go of
        """Let go of processes and connections."""

"""A target without a device, for tests: costs come from a formula, time from a clock, faults are injected.

The default cost is a small model of a CPU: a fixed cost a run and a node, and one a multiply-accumulate, half as
much where weights are int8, with widths rounded up to a step of 8 as blocked kernels do. It is not a prediction
of anything; it has the *shape* of the real thing, is the same on every machine, and takes milliseconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np

from targets.errors import ModelError
from targets.intervals import Interval
from targets.runtimes.fake import costs
from targets.runtimes.ort.ort_cpu import OrtRuntime
from targets.settings import Setting
from targets.target import Capabilities, Estimate, Measurement, Protocol, Samples, Target, Watch
from targets.workers.inputs import run_batches
from targets.workers.measuring import latency, paired_ratio, take_samples

Cost = Callable[[Path], float] | Mapping[str, float]
Fault = BaseException | type[BaseException] | Callable[[], object]
Run = Callable[[Path, Mapping[str, np.ndarray]], Sequence[np.ndarray]]


class FakeClock:
    """Time that passes when it is told to. Seconds in, nanoseconds out, as ``measuring.Clock`` has them."""

    def __init__(self) -> None:
        self._now = self._ran = 0

    def now(self) -> int:
        """The clock's wall time in nanoseconds."""
        return self._now

    def ran(self) -> int:
        """Nanoseconds of the wall time in which the work was really running."""
        return self._ran

    def advance(self, seconds: float, ran: float | None = None) -> None:
        """Let ``seconds`` pass, of which the work was running for ``ran`` (all of them)."""
        self._now += round(seconds * 1e9)
        self._ran += round((seconds if ran is None else ran) * 1e9)


class FakeTarget(Target):
    """No device: made-up, repeatable costs, for tests."""

    settings: ClassVar[Mapping[str, Setting]] = {}
    deterministic = True
    probed = False

    def __init__(
        self,
        name: str = "fake",
        cost: Cost | None = None,
        faults: Mapping[str | int, Fault] | None = None,
        run: Run | None = None,
        *,
        channel_step: int = costs.STEP,
        instructions: bool = False,
        cycles: bool = False,
        noise: float = 0.0,
        seed: int = 0,
        capabilities: Capabilities | None = None,
        clock: FakeClock | None = None,
    ) -> None:
        """Make one.

        ``cost``: seconds of a file, as a function of its path or a table by file name. ``faults``: what happens
        instead, by operation (``"measure"``, ``"run"``: every time) or by the number of the call (1 is the first
        call of either; once): an exception is raised, anything callable is called first. ``run``: outputs for
        (path, inputs); the default is onnxruntime, in this process. ``instructions``: cost is counted (a
        nanosecond is one), not timed; ``cycles``: so are cycles. ``noise``: relative spread of the run times, drawn
        from ``seed``. ``clock``: the real measuring loop runs on it, every run taking its cost of time; without, ten
        rounds are made up.
        """
        self.name = name
        self.counted = instructions or cycles
        self._cycles = cycles
        self.calls: list[tuple[str, tuple[Path, ...]]] = []
        """Every call so far: operation and files."""
        self.cost = cost
        self._faults = dict(faults or {})
        self._run = run
        self._step = channel_step
        self._noise = noise
        self._seed = seed
        self._clock = clock
        self._capabilities = capabilities or Capabilities(channel_step=channel_step, int8_step=channel_step)

    @property
    def cost_quantity(self) -> str:
        """As it was made: ``latency``, ``instructions`` or ``cycles``."""
        return "cycles" if self._cycles else super().cost_quantity

    def capabilities(self) -> Capabilities:
        """The capabilities that were given, or the defaults with this target's channel step."""
        return self._capabilities

    def describe(self) -> dict[str, Any]:
        """The target's name and nothing of the machine: its costs are the same everywhere."""
        return {"target": self.name, "settings": {}, "packages": {}, "machine": {"cpu": "fake"}}

    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,  # noqa: ARG002  costs do not depend on values
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,
    ) -> list[Measurement]:
        """Costs of ``models`` as measurements against the first of them; raises ModelError where there is no cost."""
        paths = [Path(model) for model in models]
        self._called("measure", paths)
        if not paths:
            raise ModelError("no model to measure")
        seconds = [self._seconds(path, shapes or {}) for path in paths]
        protocol = protocol or Protocol()
        if self.counted:
            return [self._counted(path, one) for path, one in zip(paths, seconds, strict=True)]
        taken: list[list[Samples]] = [[] for _ in paths]
        for process in range(protocol.processes):
            for found, one in zip(taken, self._process(seconds, protocol, process, watch), strict=True):
                found.append(one)
        return [self._measurement(path, tuple(found), protocol) for path, found in zip(paths, taken, strict=True)]

    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        """Outputs by the given function, or by onnxruntime in this process."""
        path = Path(model)
        self._called("run", [path])
        if self._run is not None:
            return list(self._run(path, inputs))
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        session = OrtRuntime({"threads": 1, "opt": "all", "spinning": 0}).load(path)
        return run_batches(session, {name: np.asarray(array) for name, array in inputs.items()}, batch)

    def _called(self, operation: str, paths: Sequence[Path]) -> None:
        self.calls.append((operation, tuple(paths)))
        fault = self._faults.pop(len(self.calls), None) or self._faults.get(operation)
        if fault is None:
            return
        if isinstance(fault, BaseException) or (isinstance(fault, type) and issubclass(fault, BaseException)):
            raise fault
        fault()

    def _seconds(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> float:
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        if self.cost is None:
            return costs.inference_seconds(path, step=self._step, shapes=shapes)
        if isinstance(self.cost, Mapping):
            if path.name not in self.cost:
                raise ModelError(f"{path}: FakeTarget was given no cost for {path.name!r}")
            return float(self.cost[path.name])
        return float(self.cost(path))

    def _counted(self, path: Path, seconds: float) -> Measurement:
        size = path.stat().st_size
        count, memory = round(seconds * 1e9), 4 * size
        if self._cycles:
            return Measurement(path, self.name, size, cycles=count, memory=memory)
        return Measurement(path, self.name, size, instructions=count, memory=memory)

    def _process(
        self, seconds: Sequence[float], protocol: Protocol, process: int, watch: Watch | None
    ) -> list[Samples]:
        """What one fresh process would give for every model."""
        told = Estimate(self.name, "timing", process + 1, protocol.processes)
        if self._clock is None:
            if watch is not None:
                watch(told)
            return [self._samples(one, seconds[0], index, process) for index, one in enumerate(seconds)]

        def estimated(ratios: list[Interval]) -> None:
            if watch is not None:
                watch(replace(told, ratios=tuple((one.value, one.low, one.high) for one in ratios)))

        calls = [self._call(one, f"{self._seed}/{process}/{index}") for index, one in enumerate(seconds)]
        return take_samples(calls, protocol, self._clock, seed=process, estimated=estimated)

    def _call(self, seconds: float, seed: str) -> Callable[[], None]:
        """A run on the clock that was given."""
        draw, clock = random.Random(seed), self._clock

        def run() -> None:
            if clock is not None:
                clock.advance(seconds * (1.0 + self._noise * (draw.random() - 0.5)))

        return run

    def _measurement(self, path: Path, samples: tuple[Samples, ...], protocol: Protocol) -> Measurement:
        size = path.stat().st_size
        return Measurement(
            path,
            self.name,
            size,
            latency=latency(samples),
            memory=4 * size,
            first=median(one.first for one in samples),
            load_seconds=median(one.load_seconds for one in samples),
            settled=self._clock is None or paired_ratio(samples).half_width <= protocol.width,
            samples=samples,
        )

    def _samples(self, seconds: float, reference: float, index: int, process: int) -> Samples:
        rounds = 10
        draw = random.Random(f"{self._seed}/{process}/{index}")
        spread = [1.0 + self._noise * (draw.random() - 0.5 if index else 0.0) for _ in range(rounds)]
        return Samples(
            blocks=tuple(seconds * one for one in spread),
            reference=(reference,) * rounds,
            runs=tuple(seconds * one for one in spread),
            count=rounds,
            cpu=(1.0,) * rounds,
            first=10 * seconds,
            load_seconds=0.001,
        )

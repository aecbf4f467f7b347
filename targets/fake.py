"""A target without a device, for tests: costs come from a formula, faults are injected.

The default cost is a small model of a CPU: a fixed cost a run and a node, and one a multiply-accumulate, half as
much where weights are int8, with widths rounded up to a step of 8 as blocked kernels do. It is not a prediction
of anything; it has the *shape* of the real thing, is the same on every machine, and takes milliseconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np

from targets import costs
from targets.errors import ModelError
from targets.measuring import latency
from targets.settings import Setting
from targets.target import Capabilities, Measurement, Protocol, Samples, Target, Watch

Cost = Callable[[Path], float] | Mapping[str, float]
Fault = BaseException | type[BaseException] | Callable[[], object]
Run = Callable[[Path, Mapping[str, np.ndarray]], Sequence[np.ndarray]]


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
        noise: float = 0.0,
        seed: int = 0,
        capabilities: Capabilities | None = None,
    ) -> None:
        """Make one.

        ``cost``: seconds of a file, as a function of its path or a table by file name. ``faults``: what happens
        instead, by operation (``"measure"``, ``"run"``: every time) or by the number of the call (1 is the first
        call of either; once): an exception is raised, anything callable is called first. ``run``: outputs for
        (path, inputs); the default is onnxruntime, in this process. ``instructions``: cost is counted (a
        nanosecond is one), not timed. ``noise``: relative spread of the run times, drawn from ``seed``.
        """
        self.name = name
        self.counted = instructions
        self.calls: list[tuple[str, tuple[Path, ...]]] = []
        """Every call so far: operation and files."""
        self._cost = cost
        self._faults = dict(faults or {})
        self._run = run
        self._step = channel_step
        self._noise = noise
        self._seed = seed
        self._capabilities = capabilities or Capabilities(channel_step=channel_step, int8_step=channel_step)

    def capabilities(self) -> Capabilities:
        """As given, or the defaults with this target's channel step."""
        return self._capabilities

    def describe(self) -> dict[str, Any]:
        """Its name: the same everywhere, as its costs are."""
        return {"target": self.name, "settings": {}, "packages": {}, "machine": {"cpu": "fake"}}

    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,  # noqa: ARG002  costs do not depend on values
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,  # noqa: ARG002  there is nothing to wait for
    ) -> list[Measurement]:
        """Costs of ``models`` as measurements against the first of them."""
        paths = [Path(model) for model in models]
        self._called("measure", paths)
        if not paths:
            raise ModelError("no model to measure")
        seconds = [self._seconds(path, shapes or {}) for path in paths]
        processes = (protocol or Protocol()).processes
        return [
            self._measurement(path, one, seconds[0], processes, index)
            for index, (path, one) in enumerate(zip(paths, seconds, strict=True))
        ]

    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        """Outputs by the given function, or by onnxruntime in this process."""
        path = Path(model)
        self._called("run", [path])
        if self._run is not None:
            return list(self._run(path, inputs))
        from targets.inputs import run_batches
        from targets.ort_cpu import OrtRuntime

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
        if self._cost is None:
            return costs.seconds(path, step=self._step, shapes=shapes)
        if isinstance(self._cost, Mapping):
            if path.name not in self._cost:
                raise ModelError(f"{path}: FakeTarget was given no cost for {path.name!r}")
            return float(self._cost[path.name])
        return float(self._cost(path))

    def _measurement(self, path: Path, seconds: float, reference: float, processes: int, index: int) -> Measurement:
        size = path.stat().st_size
        if self.counted:
            return Measurement(path, self.name, size, instructions=round(seconds * 1e9), memory=4 * size)
        samples = tuple(self._samples(seconds, reference, index, process) for process in range(processes))
        return Measurement(
            path,
            self.name,
            size,
            latency=latency(samples),
            memory=4 * size,
            first=median(one.first for one in samples),
            load_seconds=median(one.load_seconds for one in samples),
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

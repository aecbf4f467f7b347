"""Targets on this machine: everything native happens in worker processes.

A measurement gets fresh processes, so that one model's memory layout, crash or leak does not reach the next;
scoring, which is asked for often, keeps one process alive between calls.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np

from targets.errors import MeasurementError, ModelError, TargetError, TargetUnavailable
from targets.machine import environment, memory
from targets.settings import Setting, canonical_name, checked_settings
from targets.target import Estimate, Layer, Measurement, Protocol, Samples, Target, Watch
from targets.workers import measuring
from targets.workers.inputs import check_names, checked_shapes, join, sample_count
from targets.workers.leases import leased
from targets.workers.process import Heard, Launch, WorkerProcess, local_launch

ROOM = 200_000_000
"""Bytes for the samples that are run at once: more makes nothing faster."""
PIECE = 32_000_000
"""Bytes of input sent to a worker at once when scoring."""


_KINDS = {
    ".onnx": "convert it first",
    ".tflite": "litert-cpu and tflm run this one, and the float .onnx file that it was made of runs here",
}
"""Files that are for some runtimes only, and what to do about it."""


class LocalTarget(Target):
    """A runtime on this machine.

    A subclass says ``base`` (its name without settings), ``runtime`` (``module:class`` of a
    ``Runtime`` in ``runtime.py``, loaded in the worker), ``settings``, and ``capabilities``.
    """

    base: ClassVar[str]
    runtime: ClassVar[str]
    settings: ClassVar[Mapping[str, Setting]] = {"threads": Setting(1, least=1, help="threads of one inference")}
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules that must be there."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions belong to a measurement."""
    install: ClassVar[str | None] = None
    """The one command that brings the runtime."""
    patience: float = 120.0
    """Seconds of silence after which a worker is taken to hang."""
    takes: ClassVar[tuple[str, ...]] = (".onnx",)
    """How files end that are for this runtime, among those that are known to be for some."""
    memory_limit: int | None = None
    """Resident bytes a worker may use; None: 90 % of what is free when it starts."""

    def __init__(self, **settings: Any) -> None:
        self.values = checked_settings(self.base, self.settings, settings)
        self.name = canonical_name(self.base, self.settings, self.values)
        self.scorer: WorkerProcess | None = None
        self.lock = threading.RLock()
        self._facts: dict[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        """Runtime, settings, versions and the machine; what changes from minute to minute is left out."""
        return {
            "target": self.name,
            "settings": dict(self.values),
            "packages": environment.installed_versions(self.packages),
            "machine": environment.machine(),
        }

    def moment(self) -> dict[str, Any]:
        """Load, free memory in bytes, temperature in degrees Celsius and frequency in Hz, as they are now."""
        return environment.moment()

    def facts(self) -> dict[str, Any]:
        """What only the loaded runtime can say; asked of a worker once."""
        with self.lock:
            if self._facts is None:
                self._facts = dict(self.ask_scorer({"operation": "facts"}).header["facts"])
            return dict(self._facts)

    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,
    ) -> list[Measurement]:
        """Measure ``models`` against ``models[0]`` in fresh processes, as ``protocol`` asks (see ``Target``)."""
        protocol = protocol or Protocol()
        paths = [self.for_us(model) for model in models]
        check_request(paths, protocol)
        taken = given(inputs, shapes)
        answers: list[list[dict[str, Any]]] = []
        start = time.monotonic()
        while not _enough(answers, protocol, time.monotonic() - start):
            number = len(answers)
            request = {
                "operation": "measure",
                "models": [str(path.absolute()) for path in paths],
                "order": load_order(len(paths), number),
                "shapes": taken.shapes,
                "protocol": asdict(protocol),
                "seed": number,
            }
            heard = self.listener(watch, number + 1, max(protocol.processes, number + 1))

            def waiting(heard: Heard = heard) -> None:
                heard({"stage": "waiting for another measurement on this machine"})

            # For each process anew, so that two long measurements take turns.
            with leased(waiting=waiting), self.start_worker() as worker:
                answers.append(self.ask_worker(worker, request, taken.arrays, heard).header["models"])
        return [
            _measurement(path, self.name, [answer[index] for answer in answers], protocol)
            for index, path in enumerate(paths)
        ]

    def audit(self, model: Path) -> tuple[Layer, ...] | None:
        """The products of the graph that is really executed; None where the runtime does not show it."""
        header = {"operation": "audit", "model": str(self.for_us(model).absolute())}
        with self.lock:
            found = self.ask_scorer(header).header["layers"]
        return None if found is None else tuple(Layer(**one) for one in found)

    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        """Outputs for all samples, in a process that is kept for the next call (see ``Target``)."""
        if batch < 1:
            raise TargetError(f"batch={batch} is not allowed; it must be 1 or more")
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        path = str(self.for_us(model).absolute())
        header = {"operation": "run", "model": path, "batch": batch, "room": memory.room(ROOM)}
        parts: list[list[np.ndarray]] = []
        counts: list[int] = []
        with self.lock:
            for piece in pieces(arrays, batch):
                reply = self.ask_scorer(header, piece)
                parts.append([reply.arrays[str(number)] for number in range(reply.header["outputs"])])
                counts.append(len(next(iter(piece.values()))))
        return join(parts, counts)

    def close(self) -> None:
        """End the process that is kept for scoring, if there is one."""
        with self.lock:
            if self.scorer is not None:
                self.scorer.close()
                self.scorer = None

    def for_us(self, model: Path) -> Path:
        """The path; raises ModelError for a file that is meant for other runtimes."""
        path = Path(model)
        if path.suffix in _KINDS and path.suffix not in self.takes:
            raise ModelError(f"{path}: {self.base} runs {' and '.join(self.takes)} files; {_KINDS[path.suffix]}")
        return path

    def listener(self, watch: Watch | None, process: int, processes: int) -> Heard:
        """What hands on to ``watch`` what worker ``process`` of ``processes`` says of its work."""

        def heard(header: Mapping[str, Any]) -> None:
            # Workers speak before every block; only now and then with something to show.
            if watch is not None and ("ratios" in header or header["stage"] != "timing"):
                ratios = tuple((value, low, high) for value, low, high in header.get("ratios", ()))
                watch(Estimate(self.name, header["stage"], process, processes, ratios))

        return heard

    def launch(self) -> Launch:
        """How a worker process is started: its command and its environment."""
        return local_launch(int(self.values.get("threads", 1)))

    def start_worker(self, *, afresh: bool = False) -> WorkerProcess:
        """Start a worker with this target's runtime; ``afresh``: it answers every request in a process of its own."""
        setup = {
            "runtime": self.runtime, "settings": dict(self.values), "threads": int(self.values.get("threads", 1)),
            "afresh": afresh,
        }  # fmt: skip
        return WorkerProcess(setup, self.launch(), patience=self.patience, memory_limit=self.memory_limit)

    def ask_scorer(
        self,
        header: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
        heard: Heard = lambda _: None,
    ) -> Any:
        """The reply of the process that is kept, started where there is none; errors as in ``ask_worker``."""
        if self.scorer is None or not self.scorer.alive:
            self.close()
            self.scorer = self.start_worker()
        return self.ask_worker(self.scorer, header, arrays, heard)

    def ask_worker(
        self,
        worker: WorkerProcess,
        header: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
        heard: Heard = lambda _: None,
    ) -> Any:
        """The worker's reply; errors name the target, and the command that installs a runtime that is missing."""
        try:
            return worker.ask(header, arrays, heard)
        except TargetUnavailable as error:
            remedy = f"; install it with: {self.install}" if self.install else ""
            raise TargetUnavailable(f"target {self.base!r}: its runtime is missing ({error}){remedy}") from None
        except MeasurementError as error:
            raise type(error)(f"{self.name}: {error}") from None


def load_order(count: int, process: int) -> list[int]:
    """The order in which a process loads the models: as given, turned over, then pairs of shuffled and turned."""
    order = list(range(count))
    if process >= 2:
        random.Random(process // 2).shuffle(order)
    return order[::-1] if process % 2 else order


def _enough(answers: Sequence[Sequence[dict[str, Any]]], protocol: Protocol, spent: float) -> bool:
    """Whether the processes asked for are through, and every ratio is as narrow as asked or no more may be added."""
    if answers and protocol.total is not None and spent >= protocol.total:
        return True
    if len(answers) < protocol.processes:
        return False
    if len(answers) >= max(protocol.processes, protocol.most):
        return True
    samples = [[_samples(answer[index]["samples"]) for answer in answers] for index in range(len(answers[0]))]
    return all(measuring.paired_ratio(one).half_width <= protocol.width for one in samples)


def check_request(paths: Sequence[Path], protocol: Protocol) -> None:
    """Raise ModelError where there is no model to measure, TargetError for a protocol that makes no sense."""
    if not paths:
        raise ModelError("no model to measure")
    if protocol.processes < 1 or protocol.rounds < 1 or min(protocol.seconds, protocol.block, protocol.width) <= 0:
        raise TargetError(f"{protocol}: processes and rounds must be at least 1, seconds, block and width above 0")


@dataclass(frozen=True)
class Given:
    """What models are given to be measured, by input name: arrays, some samples of each, and shapes."""

    arrays: dict[str, np.ndarray]
    shapes: dict[str, list[int]]

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ModelError for an array, TargetError for a shape, that is none of ``names``, all models' inputs."""
        check_names(names, self.arrays, "values")
        check_names(names, self.shapes, "shape", TargetError)


def given(inputs: Mapping[str, np.ndarray] | None, shapes: Mapping[str, tuple[int, ...]] | None) -> Given:
    """What ``Target.measure`` is called with; raises TargetError for what is no shape."""
    return Given({name: first_samples(array) for name, array in (inputs or {}).items()}, checked_shapes(shapes or {}))


def first_samples(array: np.ndarray) -> np.ndarray:
    """Enough samples for any static batch that is likely, without sending a whole data set."""
    array = np.asarray(array)
    return array[:64] if array.ndim else array


def _measurement(path: Path, target: str, answers: Sequence[dict[str, Any]], protocol: Protocol) -> Measurement:
    samples = tuple(_samples(answer["samples"]) for answer in answers)
    grown = [answer["memory"] for answer in answers if answer["memory"] is not None]
    return Measurement(
        path=path,
        target=target,
        size=path.stat().st_size,
        latency=measuring.latency(samples),
        memory=int(median(grown)) if grown else None,
        first=median(one.first for one in samples),
        load_seconds=median(one.load_seconds for one in samples),
        settled=measuring.paired_ratio(samples).half_width <= protocol.width,
        samples=samples,
    )


def _samples(document: Mapping[str, Any]) -> Samples:
    known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in document.items()}
    return Samples(**known)


def pieces(arrays: Mapping[str, np.ndarray], batch: int) -> list[dict[str, np.ndarray]]:
    """The samples in parts of bounded size, a multiple of ``batch`` each."""
    count = sample_count(arrays)
    each = sum(array.nbytes for array in arrays.values()) / max(count, 1)
    step = batch * max(1, int(PIECE / max(each * batch, 1)))
    return [
        {name: array[start : start + step] for name, array in arrays.items()} for start in range(0, max(count, 1), step)
    ]

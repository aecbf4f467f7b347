"""A target whose device is somewhere else than the worker that asks: files go there, numbers come back.

Ratios of two machines may not be mixed in one front, so what is trained on many nodes of a cluster is measured and
scored on one device. Whoever holds the device answers one request at a time, so it is leased to one measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from targets.target import Capabilities, Layer, Measurement, Protocol, Target, Watch

Files = tuple[tuple[str, bytes], ...]
"""Files that are sent: (name, content)."""


@dataclass(frozen=True)
class DeviceRequest:
    """One thing that is asked of a device: ``measure``, ``run``, ``audit`` or ``convert``."""

    target: str
    operation: str
    files: Files
    arrays: Mapping[str, np.ndarray]
    more: Mapping[str, Any]


@dataclass(frozen=True)
class TargetFacts:
    """What a target says of itself, so that it need not be asked again."""

    name: str
    counted: bool
    deterministic: bool
    cost_quantity: str
    capabilities: Capabilities
    described: dict[str, Any]
    cost_by_weights: bool = False


Ask = Callable[[DeviceRequest], Any]
"""Sends a request to the device and waits for the answer; raises what the target raises there."""


def facts_of(target: Target) -> TargetFacts:
    """Name, abilities and description of ``target``, asked of it once so that they can be sent to workers."""
    return TargetFacts(
        target.name, target.counted, target.deterministic, target.cost_quantity, target.capabilities(),
        target.describe(), target.cost_by_weights,
    )  # fmt: skip


class ForwardedTarget(Target):
    """Stands for a target that somebody else holds."""

    # It was probed where it is.
    probed = False

    def __init__(self, facts: TargetFacts, ask: Ask) -> None:
        self.facts, self.ask = facts, ask
        self.name, self.counted, self.deterministic = facts.name, facts.counted, facts.deterministic
        self.cost_by_weights = facts.cost_by_weights

    @property
    def cost_quantity(self) -> str:
        """The quantity that stands for speed there."""
        return self.facts.cost_quantity

    def capabilities(self) -> Capabilities:
        """What the target can do, as it said."""
        return self.facts.capabilities

    def describe(self) -> dict[str, Any]:
        """The target and its device, as it said: what is measured is kept under the device's key, not the worker's."""
        return self.facts.described

    def measure(
        self,
        models: Sequence[Path],
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        protocol: Protocol | None = None,
        watch: Watch | None = None,  # noqa: ARG002  what it is doing there is not told here
    ) -> list[Measurement]:
        """Measured there, in order against ``models[0]`` (see ``Target``)."""
        more = {"shapes": dict(shapes or {}), "protocol": asdict(protocol or Protocol())}
        request = DeviceRequest(self.name, "measure", _read(models), dict(inputs or {}), more)
        found: list[Measurement] = self.ask(request)
        return [replace(one, path=Path(model)) for one, model in zip(found, models, strict=True)]

    def run(self, model: Path, inputs: Mapping[str, np.ndarray], *, batch: int = 64) -> list[np.ndarray]:
        """Outputs for all samples, computed there (see ``Target``)."""
        found: list[np.ndarray] = self.ask(
            DeviceRequest(self.name, "run", _read([model]), dict(inputs), {"batch": batch})
        )
        return found

    def audit(self, model: Path) -> tuple[Layer, ...] | None:
        """The products of the graph that is executed there; None where the runtime does not show it."""
        found: tuple[Layer, ...] | None = self.ask(DeviceRequest(self.name, "audit", _read([model]), {}, {}))
        return found

    def convert(self, model: Path, precision: str, samples: Mapping[str, np.ndarray], made: Path) -> Path | None:
        """Write what the target takes in place of a float ``.onnx`` file, converted there (see ``Target``)."""
        more = {"precision": precision}
        found: bytes | None = self.ask(DeviceRequest(self.name, "convert", _read([model]), dict(samples), more))
        if found is None:
            return None
        made.write_bytes(found)
        return made


def answer(target: Target, request: DeviceRequest) -> Any:
    """What the device says to a request; raises what the target raises."""
    with TemporaryDirectory(prefix="paretopress-device-") as folder:
        paths = []
        for number, (name, content) in enumerate(request.files):
            path = Path(folder) / str(number) / name
            path.parent.mkdir()
            path.write_bytes(content)
            paths.append(path)
        if request.operation == "measure":
            protocol = Protocol(**request.more["protocol"])
            return target.measure(paths, inputs=request.arrays, shapes=request.more["shapes"], protocol=protocol)
        if request.operation == "run":
            return target.run(paths[0], request.arrays, batch=request.more["batch"])
        if request.operation == "convert":
            made = target.convert(paths[0], request.more["precision"], request.arrays, Path(folder) / "made.tflite")
            return None if made is None else made.read_bytes()
        return target.audit(paths[0])


def _read(models: Sequence[Path]) -> Files:
    return tuple((Path(model).name, Path(model).read_bytes()) for model in models)

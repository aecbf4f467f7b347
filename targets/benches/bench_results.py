"""What ``bench`` gives back: the models, what was found on each target, and all of it as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from targets.benches.comparing import Comparison
from targets.model_files.onnx_files import FileFacts
from targets.target import Layer, Protocol

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Model:
    """A file to be timed: its hash, and what it says about itself (None where it cannot be read)."""

    path: Path
    sha256: str
    facts: FileFacts | None


@dataclass(frozen=True)
class OnTarget:
    """What was found on one target: the timings, what the target is, and which products ran in integers."""

    comparison: Comparison
    description: Mapping[str, Any]
    counted: bool
    audits: tuple[tuple[Layer, ...] | None, ...]
    """Per model, in order; None where it is not known."""
    seconds: float
    """What all of it took."""
    remarks: tuple[str, ...] = ()
    """What the target says of its device (``Target.remarks``)."""


@dataclass(frozen=True)
class Bench:
    """Several models on several targets, the first model being the reference on each."""

    models: tuple[Model, ...]
    found: tuple[OnTarget, ...]
    shapes: Shapes
    given: tuple[str, ...]
    """Inputs whose values were given."""
    protocol: Protocol
    environment: Mapping[str, Any] = field(repr=False)
    warnings: list[str] = field(default_factory=list)
    """What a reader should know, one line each, with its cure."""

    def to_json(self, *, samples: bool = False) -> dict[str, Any]:
        """The document of ``paretopress bench --json``; with the raw samples that of ``--save``."""
        results: list[dict[str, Any]] = []
        for here in self.found:
            entries = zip(
                here.comparison.to_json(), self.models, here.audits, here.comparison.measurements, strict=True
            )
            for entry, model, layers, measured in entries:
                entry |= {"sha256": model.sha256, "audit": _counted(layers)}
                if samples:
                    entry["samples"] = [asdict(one) for one in measured.samples]
                results.append(entry)
        return {
            "schema": 1,
            "environment": dict(self.environment),
            "targets": {here.comparison.measurements[0].target: dict(here.description) for here in self.found},
            "asked": {
                "shapes": {name: list(shape) for name, shape in self.shapes.items()},
                "inputs": list(self.given),
                "protocol": asdict(self.protocol),
            },
            "results": results,
            "warnings": list(self.warnings),
        }


def _counted(layers: Sequence[Layer] | None) -> dict[str, int] | None:
    if layers is None:
        return None
    found = {"integer": sum(one.integer for one in layers), "layers": len(layers)}
    placed = [one.on_npu for one in layers if one.on_npu is not None]
    return {**found, "npu": sum(placed)} if placed else found

"""What int8 costs each layer and operator of a baseline, and saves by it: why int8 loses, and what to keep in float."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compress.baseline.steps import ALL_THE_TIME, PROFILING, QUANTIZED_ONLY, TIMING, Steps
from compress.float_models.plain_models import read_plain
from compress.onnx_files import graphs
from compress.precision import calibration_samples, quantizer
from compress.precision.damage import locate
from compress.precision.fidelity import checker
from compress.precision.layer_costs import (
    LOSSY,
    SECONDS,
    Saving,
    files_timed,
    float_order,
    layer_errors,
    layer_savings,
    operator_errors,
)
from compress.precision.ranges import collect_ranges
from compress.run_folder.caching import Cache
from compress.values.candidates import LayerDamage
from targets.documents import file_hash
from targets.errors import MeasurementError, ModelError, QuantizeError, StageError
from targets.target import Capabilities, Target

VERSION = 5
_ALONE = ("trying each layer alone in int8", "which stay in float is told from one look at all of them")
_SAVED = ("timing what int8 saves by each layer", "those that lose most stay in float first")


class _TooLong(Exception):
    """Trying each layer takes more time than there is."""


@dataclass(frozen=True)
class Int8Profile:
    """What int8 does to a file."""

    order: tuple[int | str, ...] = ()
    """Positions of the layers, and names of lossy operators, that which is kept in float first before the others."""
    lossy: tuple[str, ...] = ()
    """Operators, other than products, that lose much."""
    damage: tuple[LayerDamage, ...] = ()
    """A row for each layer and each other operator, the worst first."""


def digest(samples: Mapping[str, np.ndarray]) -> str:
    """Hash of some arrays, in their order."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in samples.values())).hexdigest()[:16]


@dataclass
class _Tried:
    """A file's layers and operators in int8, each alone where there is time for that."""

    path: Path
    names: Sequence[str]
    """Of the layers."""
    samples: Mapping[str, np.ndarray]
    capabilities: Capabilities
    steps: Steps
    share: float
    """Of the time of a call, for trying each layer alone."""
    once: float = 0.0
    """Seconds that making one int8 file took; 0 where the cache had all."""
    begun: float = field(default_factory=time.monotonic)

    def errors(self, cache: Cache, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """``errors`` and ``sqnr`` by layer, ``operators`` by name; raises as making and running int8 files does."""
        try:
            return cache.stage("sensitivity", VERSION, inputs, self._compute).info
        except _TooLong:
            once = partial(self._compute, each=False)
            return cache.stage("sensitivity", VERSION, {**inputs, "each": False}, once).info

    def _compute(self, _: Path, *, each: bool = True) -> dict[str, Any]:
        with _ranges(self.path, self.samples) as (ranges, folder):
            of = (self.path, ranges, "minmax", self.samples, self.capabilities, folder)
            made = folder / "int8.onnx"
            start = time.monotonic()
            quantizer.quantize_static(self.path, made, ranges, "minmax", self.capabilities)
            self.once = time.monotonic() - start
            batch = next(iter(calibration_samples.Batches(read_plain(self.path), self.samples)))
            inside = {}
            with contextlib.suppress(ModelError, MeasurementError):  # as a whole it may not even run
                inside = {one.layer: one for one in locate(self.path, made, batch, checker())}
            # Making a file is most of what a layer takes; running it is the rest.
            expected = time.monotonic() - self.begun + 1.5 * self.once * len(self.names)
            if each and not self.steps.fits(expected, self.share, *_ALONE):
                raise _TooLong
            alone = layer_errors(*of) if each else [inside[n].added if n in inside else 0.0 for n in self.names]
            sqnr = [inside[name].sqnr if name in inside else None for name in self.names]
            return {"errors": alone, "operators": operator_errors(*of), "sqnr": sqnr}


def profile_int8(
    cache: Cache,
    path: Path,
    calibration: Mapping[str, np.ndarray],
    capabilities: Capabilities,
    timed_on: tuple[Target, Any] | None,
    steps: Steps = ALL_THE_TIME,
    *,
    quantized_only: bool = False,
) -> Int8Profile:
    """What int8 costs each layer and operator and saves by it; empty where nothing can be quantized.

    Where ``steps`` leave no time to try each layer alone, one look at all of them in int8 says which lose most; they
    leave more where the network is ``quantized_only``, since nothing of it can be cut.
    """
    profiling, timing = (QUANTIZED_ONLY, QUANTIZED_ONLY) if quantized_only else (PROFILING, TIMING)
    names = quantizer.quantizable_layers(path)
    if not names:
        return Int8Profile()
    samples = {name: x[: calibration_samples.BATCH * 2] for name, x in calibration.items()}
    inputs = {
        "baseline": graphs.structure_hash(path), "weights": file_hash(path), "calibration": digest(samples),
        "format": capabilities.int8_format, "reduce_range": capabilities.reduce_range,
        "quantizer": quantizer.VERSION,
    }  # fmt: skip
    tried = _Tried(path, names, samples, capabilities, steps, profiling)
    try:
        found = tried.errors(cache, inputs)
    except (QuantizeError, ModelError, MeasurementError):
        return Int8Profile()  # every int8 file of it fails for the same reason, which is then said
    operators = {name: _worst(error) for name, error in found["operators"].items()}
    lossy = tuple(name for name, error in operators.items() if not error <= LOSSY)
    costs = [_worst(error) for error in found["errors"]]
    units: list[int | str] = [*range(len(names)), *lossy]
    expected = files_timed(len(names), len(lossy)) * 1.5 * tried.once + SECONDS
    if timed_on is not None and not steps.fits(expected, timing, *_SAVED):
        timed_on = None
    saved = _savings(cache, path, samples, capabilities, timed_on, inputs, lossy)
    order = tuple(units[i] for i in float_order([*costs, *(operators[name] for name in lossy)], saved))
    by_unit = dict(zip(units, saved, strict=False))
    return Int8Profile(order, lossy, _damages(path, names, costs, found["sqnr"], operators, by_unit))


def _savings(
    cache: Cache, path: Path, samples: Mapping[str, np.ndarray], capabilities: Capabilities,
    timed_on: tuple[Target, Any] | None, inputs: Mapping[str, Any], lossy: tuple[str, ...],
) -> list[Saving]:  # fmt: skip
    """What int8 saves by each layer, then by each lossy operator; empty where it is not timed, or cannot be."""
    if timed_on is None:
        return []
    target, description = timed_on

    def compute(_: Path) -> dict[str, Any]:
        with _ranges(path, samples) as (ranges, folder):
            saved = layer_savings(path, ranges, "minmax", samples, capabilities, target, folder, lossy)
            return {"savings": [[one.value, one.noise] for one in saved]}

    inputs = {**inputs, "target": target.name, "device": description, "operators": list(lossy)}
    try:
        return [Saving(*one) for one in cache.stage("savings", VERSION, inputs, compute).info["savings"]]
    except (StageError, ModelError):
        return []  # a network that is not to be timed in int8 keeps its most sensitive layers in float


def _damages(
    path: Path, names: Sequence[str], costs: Sequence[float], inside: Sequence[float | None],
    operators: Mapping[str, float], saved: Mapping[int | str, Saving],
) -> tuple[LayerDamage, ...]:  # fmt: skip
    """A row for each layer and each other operator, that which costs most alone first."""
    kinds = {node.name: node.op_type for node in read_plain(path).graph.node}
    rows = [
        (cost, LayerDamage(name, kinds.get(name, ""), sqnr, _decibels(cost), _value(saved.get(i))))
        for i, (name, cost, sqnr) in enumerate(zip(names, costs, inside, strict=True))
    ]
    rows += [
        (cost, LayerDamage(f"every {name}", name, None, _decibels(cost), _value(saved.get(name))))
        for name, cost in operators.items()
    ]
    return tuple(row for _, row in sorted(rows, key=lambda pair: -pair[0]))


def _value(saving: Saving | None) -> float | None:
    return None if saving is None else round(saving.value, 5)


def _worst(error: float | None) -> float:
    """An error that is not finite was stored as null: the worst."""
    return float("inf") if error is None else error


def _decibels(error: float) -> float | None:
    """An error as a share of the signal, in decibels of signal to noise, at most 200."""
    if not np.isfinite(error):
        return None
    return 200.0 if error <= 1e-20 else round(float(-10 * np.log10(error)), 2)


@contextlib.contextmanager
def _ranges(path: Path, samples: Mapping[str, np.ndarray]) -> Iterator[tuple[Path, Path]]:
    """The file's ranges, and a folder to work in, both gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        collect_ranges(path, samples, "minmax", folder / "ranges.json")
        yield folder / "ranges.json", folder

"""A quantized file against the float file that it was made of: both are run on samples, in a worker process.

The measure is the signal to quantization noise ratio of an output in decibels, 10 log10(sum x^2 / sum (x - q)^2):
40 dB are an error of one percent, 20 dB of ten, 0 dB one as large as the output. A file that does not run, gives other
shapes or numbers that are not finite is broken. One with a low ratio is not, since decisions may still be right, but it
is said.
"""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import onnx

import targets
from compress.float_models.plain_models import LEAST_OPSET, read_plain
from compress.onnx_files.contents import inputs_of, opset_of
from compress.onnx_files.graphs import read_unchecked
from compress.precision.calibration_samples import BATCH, Batches
from compress.precision.damage import Damage, locate
from compress.values.error_lines import one_line
from targets.errors import CompressError, QuantizeError
from targets.target import Target

VERSION = 1
_CHECKER = "ort-cpu:opt=basic"
"""The target that files are compared on: quantized layers are computed in floats there, so that no kernel saturates."""
_FEWEST, _NUMBERS = 4, 1_000_000
"""Files are compared on as many samples as have so many numbers, four at least and a batch at most."""
FLOOR = 10.0
"""Decibels; an output with less is said to have lost most of what it says."""
_MOST = 200.0
"""Decibels of equal outputs."""
_SAME = 60.0
"""Decibels that a file converted to another opset must have: rounding of floats leaves more than 100."""


@dataclass(frozen=True)
class Fidelity:
    """How near a quantized file is to its float source."""

    sqnr: Mapping[str, float] = field(default_factory=dict)
    """Output of floats -> decibels; at most 200, where nothing differs."""
    cause: tuple[Damage, ...] = ()
    """Where an output is below FLOOR: the layers that lose most, the worst first."""

    @property
    def lowest(self) -> float | None:
        """Decibels of the worst output; None where nothing was compared."""
        return min(self.sqnr.values(), default=None)

    def said(self) -> str:
        """A sentence on what is lost and where; empty where every output is above FLOOR."""
        if self.lowest is None or self.lowest >= FLOOR:
            return ""
        worst = min(self.sqnr, key=lambda name: self.sqnr[name])
        where = f"; most of it is lost in {self.cause[0].operator} {self.cause[0].layer!r}" if self.cause else ""
        return f"output {worst!r} has {self.lowest:.1f} dB of signal to noise, below {FLOOR:g} dB{where}"


@cache
def checker() -> Target:
    """The target that files are compared on; its one process serves all comparisons, until ``close_checker``."""
    atexit.register(close_checker)
    return targets.get(_CHECKER)


def close_checker() -> None:
    """End the process that files are compared in, if there is one; the next comparison starts another."""
    if checker.cache_info().currsize:
        checker().close()


def compare_quantized(source: Path, made: Path, samples: Mapping[str, np.ndarray]) -> Fidelity:
    """How near ``made`` is to ``source`` on the first of ``samples``, arrays by input name, samples first.

    On a batch of them, or on as many as have a million numbers: long sounds take a second each.

    Raises QuantizeError where ``made`` does not run, gives other shapes or other numbers than finite ones where
    ``source`` does not, or where converting an old opset has changed what the file computes.
    """
    model = read_unchecked(source)
    each = sum(x[:1].size for x in samples.values())
    batch = next(iter(Batches(model, samples, min(BATCH, max(_FEWEST, _NUMBERS // max(1, each))))))
    size = max((len(x) for x in batch.values() if x.ndim), default=1)
    try:
        expected = checker().run(source, batch, batch=size)
    except CompressError as error:
        raise QuantizeError(f"{source.name} does not run on the samples: {one_line(error)}") from None
    if opset_of(model) < opset_of(read_unchecked(made)):
        _check_conversion(source, opset_of(model), expected, batch)
    try:
        found = checker().run(made, batch, batch=size)
    except CompressError as error:
        raise QuantizeError(f"the quantized file of {source.name} does not run: {one_line(error)}") from None
    names = [value.name for value in model.graph.output]
    broken = _broken(names, expected, found)
    sqnr = _ratios(names, expected, found)
    if not broken and min(sqnr.values(), default=_MOST) >= FLOOR:
        return Fidelity(sqnr)
    cause = locate(source, made, batch, checker())
    if broken:
        where = f"; it begins at {cause[0].operator} {cause[0].layer!r}" if cause else ""
        raise QuantizeError(f"the quantized file of {source.name} is broken: {broken}{where}")
    return Fidelity(sqnr, cause)


def compare_outputs(
    source: Path, made: Path, names: Sequence[str], samples: Mapping[str, np.ndarray], target: Target
) -> Fidelity:
    """How near ``made``, of another kind and run by ``target``, is to ``source`` on a few samples.

    ``names``: of the outputs. Raises QuantizeError as ``compare_quantized`` does; where it loses is not looked for.
    """
    size = max((len(x) for x in samples.values() if x.ndim), default=1)
    try:
        expected = checker().run(source, samples, batch=size)
        found = target.run(made, samples, batch=size)
    except CompressError as error:
        raise QuantizeError(f"the converted file of {source.name} does not run: {one_line(error)}") from None
    broken = _broken(names, expected, found)
    if broken:
        raise QuantizeError(f"the converted file of {source.name} is broken: {broken}")
    return Fidelity(_ratios(names, expected, found))


def made_up_samples(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """A few seeded samples for the inputs of ``model``: normal numbers, and small integers; open axes are short."""
    random = np.random.default_rng(0)
    samples = {}
    for value in inputs_of(model):
        kind = value.type.tensor_type
        axes = [axis.dim_value for axis in kind.shape.dim]
        shape = [size or (4 if i == 0 else 32 if len(axes) > 3 else 8) for i, size in enumerate(axes)]
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        whole = dtype.kind in "iub"
        samples[value.name] = (random.integers(0, 2, shape) if whole else random.normal(size=shape)).astype(dtype)
    return samples


def decibels(expected: np.ndarray, found: np.ndarray) -> float:
    """The signal to noise ratio of ``found``, within 200 dB either way; what is not finite is left out."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(a) & np.isfinite(b)
    signal, noise = float(np.square(a[finite]).sum()), float(np.square(a[finite] - b[finite]).sum())
    if noise == 0.0:
        return _MOST
    return float(np.clip(10 * np.log10(signal / noise) if signal > 0 else -_MOST, -_MOST, _MOST))


def _ratios(names: Sequence[str], expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> dict[str, float]:
    """Decibels by output, of the outputs of floats: a whole number is a decision, right or not."""
    return {
        name: round(decibels(a, b), 2)
        for name, a, b in zip(names, expected, found, strict=False)
        if np.issubdtype(a.dtype, np.floating) and a.shape == b.shape
    }


def _broken(names: Sequence[str], expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> str:
    """What makes a quantized file useless; empty where nothing does."""
    if len(expected) != len(found):
        return f"it has {len(found)} outputs, not {len(expected)}"
    for name, a, b in zip(names, expected, found, strict=True):
        if a.shape != b.shape:
            return f"output {name!r} has shape {b.shape}, not {a.shape}"
        if np.issubdtype(a.dtype, np.floating) and not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return f"output {name!r} has NaN or infinite values where the float file has none"
    return ""


def _check_conversion(
    source: Path, opset: int, expected: Sequence[np.ndarray], batch: Mapping[str, np.ndarray]
) -> None:
    """Raise QuantizeError where the file, converted to the opset that int8 needs, computes something else."""
    size = max((len(x) for x in batch.values() if x.ndim), default=1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "converted.onnx"
        onnx.save(read_plain(source, LEAST_OPSET), path)
        try:
            found = checker().run(path, batch, batch=size)
        except CompressError as error:
            reason = one_line(error)
            found = []
        else:
            reason = "its outputs change"
    pairs = zip(expected, found, strict=False)
    if len(found) != len(expected) or any(a.shape != b.shape or decibels(a, b) < _SAME for a, b in pairs):
        raise QuantizeError(
            f"{source.name} is of opset {opset}, and cannot be converted to {LEAST_OPSET} ({reason}); export it anew "
            f"with opset {LEAST_OPSET} or newer"
        )

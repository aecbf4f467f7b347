"""Lower precision: static int8 (QDQ), dynamic int8, and int8 with the most sensitive layers left in float.

ONNX Runtime's quantizer does the rewriting; what is decided here is the format (the target's), the layers, and that
a network is calibrated once: ranges are a file of their own that every variant reads.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import targets
from compress.onnx_files.exporting import check_folder
from compress.onnx_files.graphs import load_model, read_unchecked
from compress.onnx_files.isolation import blaming, kept_worker
from compress.precision.calibration_samples import named
from compress.precision.fidelity import Fidelity, close_checker, compare_quantized, made_up_samples
from compress.precision.quantizer import (
    Quantized,
    quantizable_layers,
    quantize_dynamic,
    quantize_static,
)
from compress.precision.ranges import collect_ranges
from compress.precision.refining import refine
from compress.precision.schemes import refused
from compress.precision.stored_weights import write_stored
from compress.values.configs import CALIBRATIONS, OPERATORS, QAT, SCHEMES, STORED, PrecisionSettings, is_refined
from targets.errors import QuantizeError, RequestError
from targets.target import Capabilities


def quantize(
    source: str | Path,
    destination: str | Path,
    precision: str = "int8",
    calibration: Any = None,
    target: str | targets.Target = "ort-cpu",
    *,
    method: str = "minmax",
    keep_float: tuple[str, ...] = (),
    operators: str = OPERATORS[0],
    adaround: bool = False,
    correct_bias: bool = False,
) -> Quantized:
    """Write ``source`` in another precision, in the format whose integer kernels run on ``target``.

    ``precision``: ``int8`` (static, QDQ), ``mixed`` (static, with ``keep_float``), ``int8-dynamic``, or weights alone:
    ``fp16``, ``int8-weights``, ``int4-weights``. ``calibration``: an array, samples first, or a dict of them by input
    name, or samples one by one (``calibration_samples.named``); the static schemes need it. ``method``: ``minmax``,
    ``percentile`` or ``search`` (for the percentile with the smallest error). ``keep_float``: names of layers that stay
    in float, or of operators (``Softmax``), all of whose nodes do. ``operators``: what static int8 quantizes, ``all``,
    convolutions and matrix ``products``, or ``convolutions``. ``adaround``, ``correct_bias``: refinements before it.

    The file that was made is run on the samples (or on made-up ones) and compared with ``source``, in a worker process:
    the result's ``sqnr`` says how near each output is, and a warning where one has less than 10 dB, and by which layer.

    Raises ModelError for a file that cannot be read, RequestError for what cannot be asked, QuantizeError where the
    quantizer fails or makes a file that does not run, gives other shapes or numbers that are not finite; then nothing
    is written.
    """
    source, destination = Path(source), Path(destination)
    with kept_worker(), blaming(source), contextlib.ExitStack() as opened:
        opened.callback(close_checker)
        return _quantize(
            source,
            destination,
            precision,
            calibration,
            target,
            method,
            keep_float,
            adaround,
            correct_bias,
            operators,
        )


def _quantize(
    source: Path,
    destination: Path,
    precision: str,
    calibration: np.ndarray | Mapping[str, np.ndarray] | None,
    target: str | targets.Target,
    method: str,
    keep_float: tuple[str, ...],
    adaround: bool,
    correct_bias: bool,
    operators: str,
) -> Quantized:
    """As ``quantize``, where a worker is kept."""
    original = source
    model = load_model(source)
    check_folder(destination)
    samples = _check_request(model, source.name, precision, method, operators, calibration)
    capabilities = _capabilities(target)
    with tempfile.TemporaryDirectory(prefix=".quantizing-", dir=destination.parent) as folder:
        made, ranges = Path(folder) / "model.onnx", Path(folder) / "ranges.json"
        if precision in STORED:
            found = _stored(source, made, precision, capabilities)
        elif precision == "int8-dynamic":
            found = quantize_dynamic(source, made, capabilities)
        else:
            settings = PrecisionSettings(
                calibration=method, adaround=adaround, correct_bias=correct_bias, int8_operators=operators
            )
            if is_refined(settings):
                refined = Path(folder) / source.name
                onnx.save(refine(source, samples, capabilities, settings, keep_float), refined)
                source = refined
            collect_ranges(source, samples, method, ranges, capabilities)
            found = quantize_static(
                source, made, ranges, method, capabilities, keep_float=keep_float, operators=operators
            )
        near = _checked(original, made, samples)
        os.replace(made, destination)
    return replace(found, path=destination, sqnr=dict(near.sqnr))


def _capabilities(target: str | targets.Target) -> Capabilities:
    """What the target can do; one that was named is not kept."""
    found = targets.get(target)
    try:
        return found.capabilities()
    finally:
        if found is not target:
            found.close()


def _checked(source: Path, made: Path, samples: Mapping[str, np.ndarray]) -> Fidelity:
    """The file against its float source; a warning where it has lost much, or nothing could be compared.

    Raises QuantizeError where it is broken.
    """
    model, given = read_unchecked(source), bool(samples)
    try:
        found = compare_quantized(source, made, samples if given else made_up_samples(model))
    except QuantizeError as error:
        if given or "does not run on the samples" not in str(error):
            raise
        warnings.warn(
            f"{source.name}: nothing was compared, it does not run on made-up samples; give calibration", stacklevel=3
        )
        return Fidelity()
    if found.said():
        warnings.warn(f"{source.name}: {found.said()}", stacklevel=3)
    return found


def _stored(source: Path, destination: Path, precision: str, capabilities: Capabilities) -> Quantized:
    """Weights alone in fewer bits; raises RequestError where the target does not run that."""

    if precision in refused(capabilities.refuses, capabilities.lacks):
        raise RequestError(f"precision {precision!r} does not run on the target; use fp16")
    integers = write_stored(source, precision, destination)
    kept = tuple(name for name in quantizable_layers(source) if name not in integers)
    return Quantized(destination, destination.stat().st_size, integers, kept)


def _check_request(
    model: onnx.ModelProto, name: str, precision: str, method: str, operators: str, calibration: Any
) -> dict[str, np.ndarray]:
    """The calibration samples by input name (none where none are needed); RequestError for what cannot be asked."""
    if precision == QAT:
        raise RequestError(f"precision {QAT!r} takes training: use compress.search with qat_epochs=1 or more")
    if precision not in SCHEMES or precision == "fp32":
        offered = ", ".join(one for one in SCHEMES if one not in ("fp32", QAT))
        raise RequestError(f"precision {precision!r}: use one of {offered}")
    if operators not in OPERATORS:
        raise RequestError(f"operators {operators!r}: use one of {', '.join(OPERATORS)}")
    if method not in CALIBRATIONS:
        raise RequestError(f"calibration method {method!r}: use one of {', '.join(CALIBRATIONS)}")
    if calibration is None and (precision == "int8-dynamic" or precision in STORED):
        return {}
    if calibration is None:
        raise RequestError(f"precision {precision!r} needs calibration samples: an array, samples first")
    return named(model, name, calibration)

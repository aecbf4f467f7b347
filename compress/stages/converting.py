"""The stage that writes a network as the ``.tflite`` file of targets that convert: of its float file, with samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compress.baseline.contexts import Context, TargetSet
from compress.onnx_files.graphs import read_unchecked
from compress.precision.fidelity import Fidelity, compare_outputs
from compress.precision.schemes import Variant
from targets.documents import file_hash
from targets.errors import CompressError, QuantizeError
from targets.target import Target

VERSION = 1
MADE = "model.tflite"
_COMPARED = 32
"""Calibration samples on which a converted file is held against its source."""


def converter_of(targets: TargetSet, variant: Variant) -> Target:
    """The first target that a converted variant is made for."""
    return next(one for one in targets.all if one.name in variant.targets)


def converted_file(context: Context, path: Path, variant: Variant) -> Path:
    """The ``.tflite`` file of a float ``.onnx`` file; raises QuantizeError where it cannot be had."""
    target = converter_of(context.targets, variant)
    samples = context.calibration.samples

    def compute(folder: Path) -> dict[str, Any]:
        write_converted(target, path, variant.scheme, samples, folder / MADE)
        return {}

    description = context.targets.describe[target.name]
    inputs = {
        "source": file_hash(path), "scheme": variant.scheme, "format": variant.format,
        "samples": context.calibration.digest, "converter": description.get("installation"),
        "version": description.get("conversion"),
    }  # fmt: skip
    return context.cache.stage("convert", VERSION, inputs, compute).folder / MADE


def write_converted(target: Target, path: Path, scheme: str, samples: Mapping[str, np.ndarray], made: Path) -> None:
    """Write what ``target`` takes in place of ``path``, in a precision; raises QuantizeError where it cannot be had."""
    try:
        if target.convert(path, scheme, samples, made) is None:
            raise QuantizeError(f"{target.name} does not convert files, so it has none in {scheme}")
    except QuantizeError:
        raise
    except CompressError as error:
        raise QuantizeError(str(error)) from None


def compare_converted(
    targets: TargetSet, path: Path, variant: Variant, made: Path, samples: Mapping[str, np.ndarray]
) -> Fidelity:
    """How near a converted file is to its float source, run by the target that it was made for.

    Raises QuantizeError where it does not run, gives other shapes, or numbers that are not finite.
    """
    few = {name: x[:_COMPARED] for name, x in samples.items()}
    names = [value.name for value in read_unchecked(path).graph.output]
    target = converter_of(targets, variant)
    return compare_outputs(path, made, names, few, target)

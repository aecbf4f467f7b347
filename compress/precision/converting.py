"""Networks as the ``.tflite`` files of targets that convert: made of their float files, with samples, and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from compress.onnx_files.graphs import read_unchecked
from compress.precision.fidelity import Fidelity, compare_outputs
from compress.precision.schemes import Variant
from targets.errors import CompressError, QuantizeError
from targets.target import Target

VERSION = 1
MADE = "model.tflite"
_COMPARED = 32
"""Calibration samples on which a converted file is held against its source."""


def converter_of(places: Sequence[Target], variant: Variant) -> Target:
    """The first target that a converted variant is made for."""
    return next(one for one in places if one.name in variant.targets)


def write_converted(target: Target, path: Path, scheme: str, samples: Mapping[str, np.ndarray], made: Path) -> None:
    """Write what ``target`` takes in place of ``path``, in a precision; raises QuantizeError where it cannot be had."""
    try:
        if target.convert(path, scheme, samples, made) is None:
            raise QuantizeError(f"{target.name} does not convert files, so it has none in {scheme}")
    except QuantizeError:
        raise
    except CompressError as error:
        raise QuantizeError(str(error)) from None


def compare_converted(target: Target, path: Path, made: Path, samples: Mapping[str, np.ndarray]) -> Fidelity:
    """How near a converted file is to its float source, run by the target that it was made for.

    Raises QuantizeError where it does not run, gives other shapes, or numbers that are not finite.
    """
    few = {name: x[:_COMPARED] for name, x in samples.items()}
    names = [value.name for value in read_unchecked(path).graph.output]
    return compare_outputs(path, made, names, few, target)

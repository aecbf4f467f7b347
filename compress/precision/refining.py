"""Post-training refinements: a float file is rewritten into another float file that loses less when it is quantized.

First the channels are equalized, which changes no output; then weights are rounded by what they put out; last the
biases make up for what is left. Each is a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from compress.configs import PrecisionSettings
from compress.precision.activations import tensors
from compress.precision.bias_correction import correct_biases
from compress.precision.equalizing import equalize
from compress.precision.rounding import round_weights
from compress.quantizing import read
from targets.errors import QuantizeError
from targets.target import Capabilities

VERSION = 1
_TOLERANCE = 1e-4
"""Largest difference that equalizing may make, as a share of the largest output."""


def refine(
    source: Path,
    samples: Mapping[str, np.ndarray],
    capabilities: Capabilities,
    settings: PrecisionSettings,
    keep_float: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """The model in ``source`` with what ``settings`` ask for; ``samples``: calibration data by input name.

    The nodes in ``keep_float`` will stay in float. Raises QuantizeError where the model does not run.
    """
    model = read(source)
    try:
        if settings.equalize:
            model = _equalized(model, samples)
        if settings.adaround:
            model = round_weights(model, samples, capabilities, keep_float)
        if settings.correct_bias:
            model = correct_biases(model, samples, capabilities, settings.calibration, keep_float)
    except QuantizeError:
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise QuantizeError(f"{source.name} cannot be refined before it is quantized: {text}") from error
    return model


def _equalized(model: onnx.ModelProto, samples: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Equalized, or left as it is where the result does not compute the same."""
    equalized = equalize(model)
    names = [value.name for value in model.graph.output]
    few = {name: x[:8] for name, x in samples.items()}
    for before, after in zip(tensors(model, names, few), tensors(equalized, names, few), strict=True):
        for a, b in zip(before, after, strict=True):
            # `not <=` so that NaN is caught as well.
            if not np.abs(a - b).max(initial=0.0) <= _TOLERANCE * max(1e-6, np.abs(a).max(initial=0.0)):
                return model
    return equalized

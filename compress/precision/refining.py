"""Post-training refinements: a float file is rewritten into another float file that loses less when it is quantized.

First weights are rounded by what they put out, then biases make up for what is left. Each is a file of its own.
Channels are not equalized between layers (Nagel et al. 2019): weights have a scale a channel already, and it bought
nothing in ``benchmarks/refinements.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from compress.float_models.plain_models import read_plain
from compress.precision.adaround import round_weights
from compress.precision.bias_correction import correct_biases
from compress.values.configs import PrecisionSettings
from compress.values.error_lines import one_line
from targets.errors import CompressError, ModelError, QuantizeError
from targets.target import Capabilities

VERSION = 2


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
    model = read_plain(source)
    try:
        if settings.adaround:
            model = round_weights(model, samples, capabilities, keep_float)
        if settings.correct_bias:
            model = correct_biases(
                model, samples, capabilities, settings.calibration, keep_float, settings.int8_operators
            )
    except Exception as error:
        if isinstance(error, CompressError) and not isinstance(error, ModelError):
            raise
        raise QuantizeError(f"{source.name} cannot be refined before it is quantized: {one_line(error)}") from error
    return model

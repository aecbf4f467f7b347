"""The stage that trains a network on in int8, from where fine-tuning left it, with the same losses and teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from compress.baseline.contexts import Context, Say
from compress.onnx_files import exporting
from compress.onnx_files.limits import fit_to_limits
from compress.onnx_import import importer, importing
from compress.precision import qat, quantizer
from compress.precision.schemes import Variant
from compress.stages.finetuning import failing_as, run_training
from compress.training import finetuning
from compress.values.configs import Config, FinetuneSettings
from compress.values.serialization import to_json
from targets.documents import file_hash
from targets.errors import QuantizeError
from targets.target import Capabilities

FLOATS = qat.FLOATS
"""Beside the integer file: the float weights that it was quantized from."""

Ranges = Callable[[Context, Path, str, Capabilities], Path]
"""The calibrated ranges of a float file, by method."""


def trained_file(context: Context, path: Path, variant: Variant, config: Config, ranges: Ranges, say: Say) -> Path:
    """The integer file of the network at ``path`` after training in the variant's format, ``FLOATS`` beside it.

    Raises QuantizeError where it cannot be trained in integers, TrainingError where training fails.
    """
    training = context.training
    if training is None:
        raise QuantizeError(f"{path.name} cannot be trained: the model is an .onnx file that torch cannot rebuild")
    method, settings = config.precision.calibration, qat.settings_of(config)
    start = ranges(context, path, method, variant.capabilities)
    plain = ranges(context, path, "minmax", variant.capabilities)
    samples, limits = context.calibration.samples, context.targets.limits

    def train(network: nn.Module, settings: FinetuneSettings) -> nn.Module:
        # In bf16 the activations would be rounded twice, and not as integer kernels do.
        mode = replace(training.mode, bf16=False)
        with failing_as("training in int8"):
            return run_training(training, network, settings, say, named="train in int8", mode=mode)[0]

    def compute(folder: Path) -> dict[str, Any]:
        integers = folder / "start.onnx"
        operators = config.precision.int8_operators
        quantizer.quantize_static(path, integers, start, method, variant.capabilities, operators=operators)
        floats, learned = qat.train_integers(path, integers, plain, samples, settings, train, folder)
        made = folder / "model.onnx"
        found = quantizer.quantize_static(floats, made, learned, "minmax", variant.capabilities, operators=operators)
        onnx.save(fit_to_limits(exporting.clean(onnx.load(made)), limits), made)
        integers.unlink()
        return {"int8": list(found.int8), "kept": list(found.kept)}

    inputs = {
        **training.key.of_trainings(), "source": file_hash(path), "settings": to_json(settings),
        "format": variant.format, "reduce_range": variant.capabilities.reduce_range,
        "method": method, "operators": config.precision.int8_operators,
        "samples": context.calibration.digest, "limits": to_json(limits),
        "versions": [quantizer.VERSION, finetuning.VERSION],
    }  # fmt: skip
    return context.cache.stage("qat", qat.VERSION, inputs, compute).folder / "model.onnx"


def float_network(floats: Path, example: tuple[Tensor, ...]) -> importing.ImportedNetwork:
    """The module whose weights the float file holds, BatchNorm folded; raises QuantizeError where it cannot be had."""
    try:
        return importing.import_file(floats, example)
    except importer.NotImportable as error:
        raise QuantizeError(f"{floats.name} cannot be rebuilt in torch: {error}") from None

"""The stage that trains a network on in int8, from where fine-tuning left it, with the same losses and teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from compress.baseline.contexts import Context, Say, Training
from compress.onnx_files import exporting, limits
from compress.onnx_import import importer, importing
from compress.precision import qat, quantizer
from compress.precision.schemes import Variant
from compress.training import finetuning
from compress.values.configs import Config, FinetuneSettings
from compress.values.serialization import to_json
from targets.documents import file_hash
from targets.errors import QuantizeError, StageError, TrainingError
from targets.target import Capabilities

FLOATS = qat.FLOATS
"""Beside the integer file: the float weights that it was quantized from."""

Ranges = Callable[[Context, Path, str, Capabilities], Path]
"""The calibrated ranges of a float file, by method."""


def trained(context: Context, path: Path, variant: Variant, config: Config, ranges: Ranges, say: Say) -> Path:
    """The integer file of the network at ``path`` after training in the variant's format, ``FLOATS`` beside it.

    Raises QuantizeError where it cannot be trained in integers, TrainingError where training fails.
    """
    training = context.training
    if training is None:
        raise QuantizeError(f"{path.name} cannot be trained: the model is an .onnx file that torch cannot rebuild")
    method, settings = config.precision.calibration, qat.settings_of(config)
    start = ranges(context, path, method, variant.capabilities)
    plain = ranges(context, path, "minmax", variant.capabilities)

    def train(network: nn.Module, settings: FinetuneSettings) -> nn.Module:
        return _train(context, training, network, settings, say)

    def compute(folder: Path) -> dict[str, Any]:
        integers = folder / "start.onnx"
        quantizer.quantize_static(path, integers, start, method, variant.capabilities)
        floats, learned = qat.train_integers(path, integers, plain, context.calibration, settings, train, folder)
        made = folder / "model.onnx"
        found = quantizer.quantize_static(floats, made, learned, "minmax", variant.capabilities)
        onnx.save(limits.fit_to_limits(exporting.clean(onnx.load(made)), context.limits), made)
        integers.unlink()
        return {"int8": list(found.int8), "kept": list(found.kept)}

    inputs = {
        "source": file_hash(path), "format": variant.format, "reduce_range": variant.capabilities.reduce_range,
        "method": method, "samples": context.calibration_digest, "settings": to_json(settings),
        "limits": to_json(context.limits), **training.key.of_trainings(),
        "versions": [quantizer.VERSION, finetuning.VERSION],
    }  # fmt: skip
    return context.cache.stage("qat", qat.VERSION, inputs, compute).folder / "model.onnx"


def network(floats: Path, example: tuple[Tensor, ...]) -> importing.ImportedNetwork:
    """The module whose weights the float file holds, BatchNorm folded; raises QuantizeError where it cannot be had."""
    try:
        return importing.import_file(floats, example)
    except importer.NotImportable as error:
        raise QuantizeError(f"{floats.name} cannot be rebuilt in torch: {error}") from None


def _train(context: Context, training: Training, network: nn.Module, settings: FinetuneSettings, say: Say) -> nn.Module:
    """By our loop, or the task's own."""
    task = context.task
    try:
        if task.finetune is not None:
            return finetuning.own_finetune(task.finetune, network, task.train, settings, context.seed)
        finetuning.finetune(
            network,
            training.train,
            settings,
            training.objective,
            # In bf16 the activations would be rounded twice, and not as integer kernels do.
            mode=replace(training.mode, bf16=False),
            seed=context.seed,
            teacher=training.teacher,
            optimizer=task.optimizer,
            on_epoch=lambda epoch: say(f"train in int8, epoch {epoch} of {settings.epochs}"),
        )
    except (StageError, KeyboardInterrupt):
        raise
    except Exception as error:
        from compress.tasks.user_code import describe

        raise TrainingError(f"training in int8 failed: {describe(error)}") from error
    return network

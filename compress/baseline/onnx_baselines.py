"""A baseline that is an ``.onnx`` file: made fit to work with, and imported into torch where that can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compress.metrics import metrics
from compress.networks import running
from compress.onnx_files import contents, normalizing
from compress.onnx_import import importer, importing
from compress.tasks.tasks import Task
from targets.errors import TaskError

if TYPE_CHECKING:
    from compress.tasks.splits import Splits

EXAMPLES = 4
"""Samples that networks are tried on."""


def file_source(file: Path, splits: Splits) -> normalizing.NormalizedModel:
    """The file made fit to work with; raises ModelError, and TaskError where the data does not fit its inputs."""
    source = normalizing.read_normalized(file)
    names = list(contents.input_types(source.model))
    check_inputs(names, splits)
    samples = {name: x.numpy() for name, x in zip(names, splits.val.first(EXAMPLES), strict=True)}
    return normalizing.with_free_batch(source, file, samples)


def check_inputs(names: Sequence[str], splits: Splits) -> None:
    """Raise TaskError where the examples have another number of inputs than the model."""
    if len(names) != len(splits.val.inputs):
        raise TaskError(f"val gives {len(splits.val.inputs)} inputs, the model takes {len(names)} ({', '.join(names)})")


def imported(task: Task, splits: Splits, path: Path) -> torch.nn.Module:
    """The file as a network to prune and train; raises NotImportable where that cannot be."""
    if splits.train is None:
        raise importer.NotImportable("there is no train split to recover on")
    metric = metrics.get(task.metric)
    if task.loss is None and task.finetune is None and metric.loss is None:
        raise importer.NotImportable(f"metric {metric.name!r} has no usual loss to train with; give the task a loss=")
    example = splits.val.first(EXAMPLES)
    importing.rehearse(path, example)
    module = importing.import_file(path, example)
    with torch.no_grad():
        outputs = running.outputs_of(module(*example))
    scored = outputs if task.loss is not None or task.finetune is not None else outputs[:1]
    if not any(x.is_floating_point() for x in scored):
        raise importer.NotImportable("its output is a decision without scores, which nothing can be trained by")
    return module


def not_pruned(file: Path, why: Exception) -> str:
    """The warning that a file is quantized only, with the reason."""
    return f"{file.name} is quantized, not pruned: {why}"

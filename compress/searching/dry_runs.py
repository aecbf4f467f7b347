"""``--dry-run``: what would be searched, and how long a trial is likely to take. Nothing is trained."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.baseline import modules, onnx_baselines
from compress.networks import counting
from compress.onnx_files import exporting, sessions
from compress.onnx_files.isolation import kept_worker
from compress.onnx_import.importer import NotImportable
from compress.precision import schemes
from compress.precision.schemes import left_out, offered, offers, wanted
from compress.pruning import blocks as pruning_blocks
from compress.pruning import grouping, pruning
from compress.searching.requests import resolved
from compress.tasks import datasets
from compress.tasks.decoding import task_metric
from compress.tasks.user_code import naming_exits
from compress.training import objectives
from compress.training.training_modes import find_mode
from compress.values.domains import Choice, Float, Int
from compress.values.search_spaces import AUTO, AUTO_EPOCHS
from targets.errors import CompressError, ExportError
from targets.probing.probing import probed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.pruning.groups import Groups
    from compress.searching.requests import Asked
    from compress.tasks.splits import Splits
    from compress.tasks.tasks import Task
    from compress.values.domains import Domain
    from compress.values.search_spaces import SearchSpace
    from targets.target import Target
_NOT_OFFERED = (("unstructured and 2:4 sparsity", "no target here is faster with zeros; channels are removed instead"),)
"""Ways of making a network smaller that are left out, and why."""


def plan(asked: Asked) -> dict[str, Any]:
    """What is prunable and what is not and why, precisions, dimensions and seconds of a trial, as JSON.

    Raises RequestError as a search would; the run's folder is looked at, never touched.
    """

    task, folder = asked.task, asked.folder
    with kept_worker(), naming_exits(), resolved(asked) as wanted:
        splits, space = wanted.splits, wanted.request.space
        found: dict[str, Any] = {
            "schema": 1, "task": task.name, "constraints": list(wanted.request.constraints),
            "warnings": list(splits.warnings), "targets": _targets(wanted.targets, space),
        }  # fmt: skip
        if task.onnx_path is not None:
            found |= _of_file(task, splits, space, task.onnx_path)
        else:
            found |= _of_module(task, splits, space, folder)
        found["warnings"] += _not_converted(asked, splits, wanted.targets)
        return found


def _not_converted(asked: Asked, splits: Splits, places: Sequence[Target]) -> list[str]:
    """Why a network cannot be converted for a target that takes other files; the operator is named."""
    converting = [place for place in places if schemes.converts(place.capabilities())]
    if not converting:
        return []
    import onnx

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"{asked.task.name}.onnx"
        if asked.task.onnx_path is not None:
            onnx.save(onnx_baselines.file_source(asked.task.onnx_path, splits).model, path)
        else:
            module, example = _module(asked.task, asked.folder), splits.val.first(4)
            exporting.export(modules.callable_by_place(module, example, splits.val.names), example, path)
        found = []
        for place in converting:
            try:
                place.run(path, {k: x[:1] for k, x in splits.val.arrays(_input_names(path)).items()}, batch=1)
            except CompressError as error:
                found.append(f"{place.name} cannot run this network: {str(error).replace(f'{path}: ', '')}")
        return found


def _input_names(path: Path) -> list[str]:
    return [node.name for node in sessions.open_session(path).get_inputs()]


def _targets(places: Sequence[Target], space: SearchSpace) -> dict[str, Any]:
    """Target -> the precisions made for it, those left out and why, its int8 format, its widths' steps, its limits."""

    abilities = {place.name: probed(place) for place in places}
    made = offered(wanted(space, [one.precisions for one in abilities.values()]), abilities)
    out = left_out(space, abilities)
    return {
        name: {
            "precisions": [scheme for scheme in made if offers(scheme, one)],
            "left_out": [list(pair) for pair in out[name]],
            "int8_format": one.int8_format,
            "channel_step": one.channel_step,
            "int8_step": one.int8_step,
            "opset": one.opset,
            "ir_version": one.ir_version,
        }
        for name, one in abilities.items()
    }


def _of_file(task: Task, splits: Splits, space: SearchSpace, file: Path) -> dict[str, Any]:
    """A file that cannot be imported is quantized only, and the reason given."""
    import onnx

    source = onnx_baselines.file_source(file, splits)
    warnings = [*splits.warnings, *(f"{file.name}: {note}" for note in source.notes)]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.onnx"
        onnx.save(source.model, path)
        try:
            module = onnx_baselines.imported(task, splits, path)
            return _of_network(module, task, splits, space) | {"warnings": warnings}
        except (NotImportable, ExportError) as error:
            warnings.append(onnx_baselines.not_pruned(file, error))
            return {
                "warnings": warnings, "prunable": [], "kept": [["(whole model)", f"quantized, not pruned: {error}"]],
                "dimensions": {name: str(domain) for name, domain in space.dimensions(()).items()},
                "trial_seconds": None,
            }  # fmt: skip


def _of_module(task: Task, splits: Splits, space: SearchSpace, folder: Path) -> dict[str, Any]:
    from compress.baseline import modules

    module = modules.callable_by_place(_module(task, folder), splits.val.first(4), splits.val.names)
    return _of_network(module, task, splits, space)


def _of_network(module: nn.Module, task: Task, splits: Splits, space: SearchSpace) -> dict[str, Any]:

    example = splits.val.first(4)
    groups, blocks = grouping.find_groups(module, example), pruning_blocks.find_blocks(module, example)
    macs, parameters = counting.macs_and_parameters(module, example)
    names = tuple(group.name for group in groups.prunable)
    return {
        "macs": macs, "parameters": parameters,
        "prunable": [[g.name, g.channels, list(g.members)] for g in groups.prunable],
        "kept": [list(entry) for entry in groups.kept],
        "removable": [[b.name, [*b.served]] for b in blocks.removable],
        "kept_blocks": [list(entry) for entry in blocks.kept],
        "not_offered": [list(entry) for entry in _NOT_OFFERED],
        "dimensions": {name: str(domain) for name, domain in space.dimensions(names, len(blocks.removable)).items()}
        | ({"lr": "found by a range test"} if space.lr == AUTO and task.finetune is None else {}),
        "trial_seconds": _trial_seconds(module, task, splits, space, groups, example),
    }  # fmt: skip


def _module(task: Task, folder: Path) -> nn.Module:
    """The kept baseline where the run has one, else the bare network."""

    if (folder / "baseline" / "weights.pt").exists():
        try:
            return modules.load(task, folder / "baseline")
        except CompressError:
            pass
    return modules.make_module(task, trained=False)


def _trial_seconds(
    module: nn.Module, task: Task, splits: Splits, space: SearchSpace, groups: Groups, example: tuple[Tensor, ...]
) -> float | None:
    """Steps of the longest training times the seconds of one, at half the width, plus an export."""

    if task.finetune is not None or splits.train is None:
        return None
    metric = task_metric(task)
    objective = objectives.make_objective(task.loss, metric.loss, metric.name)
    network = pruning.prune(module, example, 0.5, groups=groups).module if groups.prunable else module
    size = _most(space.batch_size)
    inputs, labels = datasets.sample(splits.train, size, 0)
    _, seconds = find_mode(network, inputs, lambda outputs: objective.value(outputs, labels, 0.0), "cpu")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        exporting.export(network, example, Path(name) / "model.onnx")
    exported = time.perf_counter() - start
    longest = AUTO_EPOCHS if space.epochs == AUTO else space.epochs
    steps = _most(longest) * max(1, len(splits.train) // size)
    return steps * min(seconds.values()) + exported


def _most(domain: Domain) -> int:
    """The largest number in a domain of whole numbers."""

    if isinstance(domain, Choice):
        return max(int(value) for value in domain.values)
    return int(domain.high if isinstance(domain, (Int, Float)) else domain)

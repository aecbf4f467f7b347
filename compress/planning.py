"""``--dry-run``: what would be searched, and how long a trial is likely to take. Nothing is trained."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.durations import format_duration
from targets.errors import CompressError

if TYPE_CHECKING:
    from rich.console import Console

    from compress.tasks import Task


def plan(spec: str, data: str | None, **options: Any) -> dict[str, Any]:
    """What is prunable and what is not and why, precisions, dimensions and seconds of a trial, as JSON."""
    import targets as package
    from compress import baselines, graphs, preparing, pruning, quantities, searching
    from compress.loading import load_task
    from compress.spaces import SearchSpace

    loaded = load_task(spec, data)
    task, space = loaded.task, loaded.space or SearchSpace()
    quantities.parse_objectives(list(options.get("objectives") or loaded.objectives or ("quality", "latency")))
    constraints = [
        quantities.parse_constraint(text).text
        for text in options.get("constraints") or loaded.constraints or ("quality_drop<=0.01",)
    ]
    searching.check_options(**options)
    places = [package.get(name) for name in options.get("targets") or ("ort-cpu",)]
    splits = preparing.read_splits(task)
    schemes = [s for s in space.schemes() if all(s in place.capabilities().precisions for place in places)]
    found: dict[str, Any] = {
        "schema": 1, "task": task.name, "constraints": constraints, "warnings": list(splits.warnings),
        "targets": {place.name: {"precisions": schemes, "channel_step": place.capabilities().channel_step} for place in places},
    }  # fmt: skip
    if task.onnx_path is not None:
        graphs.load_model(task.onnx_path)
        found |= {
            "prunable": [],
            "kept": [["(whole model)", "an .onnx file is quantized, not pruned, in this version"]],
            "dimensions": sorted(space.dimensions(())),
            "trial_seconds": None,
        }
        return found
    folder = Path(options.get("out") or Path("runs") / task.name)
    module = _module(task, folder)
    example = splits.val.first(4)
    groups = pruning.find_groups(module, example)
    macs, parameters = pruning.count(module, example)
    names = tuple(group.name for group in groups.prunable)
    found |= {
        "macs": macs, "parameters": parameters,
        "prunable": [[g.name, g.channels, list(g.members)] for g in groups.prunable],
        "kept": [list(entry) for entry in groups.kept],
        "dimensions": {name: str(domain) for name, domain in space.dimensions(names).items()},
        "trial_seconds": _trial_seconds(module, task, splits, space, groups, example),
    }  # fmt: skip
    baselines.check_module(module, task.name)
    for place in places:
        place.close()
    return found


def print_plan(found: dict[str, Any], console: Console) -> None:
    """The same for people."""
    console.print(
        f"task {found['task']}: {found.get('parameters', '?')} parameters, {found.get('macs', '?')} MACs; constraints {', '.join(found['constraints'])}",
        markup=False,
    )
    for text in found["warnings"]:
        console.print(f"warning: {text}", markup=False)
    for name, target in found["targets"].items():
        console.print(
            f"target {name}: {', '.join(target['precisions'])}; widths in steps of {target['channel_step']}",
            markup=False,
        )
    for name, channels, members in found["prunable"]:
        console.print(
            f"prunable: {name}, {channels} channels (with {', '.join(m for m in members if m != name) or 'nothing else'})",
            markup=False,
        )
    for name, why in found["kept"]:
        console.print(f"left alone: {name}: {why}", markup=False)
    console.print(f"searched: {', '.join(found['dimensions'])}", markup=False)
    seconds = found["trial_seconds"]
    if seconds is not None:
        console.print(f"a trial with half of the channels: about {format_duration(seconds)}", markup=False)


def _module(task: Task, folder: Path) -> Any:
    """The kept baseline where the run has one, else the bare network."""
    from compress import baselines

    if (folder / "baseline" / "weights.pt").exists():
        try:
            return baselines.load(task, folder / "baseline")
        except CompressError:
            pass
    return baselines.make_module(task, trained=False)


def _trial_seconds(module: Any, task: Task, splits: Any, space: Any, groups: Any, example: Any) -> float | None:
    """Steps of the longest training times the seconds of one, at half the width, plus an export."""
    from compress import data, exporting, finetuning, metrics, pruning
    from compress.spaces import Float, Int
    from compress.training_modes import find_mode

    if task.finetune is not None or splits.train is None:
        return None
    metric = metrics.get(task.metric)
    objective = finetuning.make_objective(task.loss, metric.loss, metric.name)
    network = pruning.prune(module, example, 0.5, groups=groups).module if groups.prunable else module
    size = space.batch_size if isinstance(space.batch_size, int) else 64
    inputs, labels = data.sample(splits.train, size, 0)
    mode, seconds = find_mode(network, inputs, lambda outputs: objective.value(outputs, labels, 0.0), "cpu")
    epochs = space.epochs.high if isinstance(space.epochs, (Int, Float)) else int(space.epochs)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        exporting.export(network, example, Path(name) / "model.onnx")
    exported = time.perf_counter() - start
    steps = epochs * max(1, len(splits.train) // size)
    return steps * min(seconds.values()) + exported

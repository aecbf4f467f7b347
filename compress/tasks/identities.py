"""Who a task is: what must be the same for a run to be continued, and a look at that before anything is exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from compress.metrics import metrics
from compress.onnx_files import graphs
from compress.tasks.splits import Splits
from compress.tasks.tasks import Task, TaskIdentity, same_task
from compress.values.serialization import stable_hash
from targets.errors import RunError


def identity(task: Task, splits: Splits, metric: metrics.Metric, graph: str = "") -> TaskIdentity:
    """What makes this task itself; ``graph`` is empty as long as the baseline is not exported."""
    sizes = {"val": len(splits.val), "test": len(splits.test) if splits.test else 0}
    test = splits.test.digest if splits.test else None
    return TaskIdentity(task.name, metric.name, graph, splits.val.digest, test, sizes)


def check_identity(old: TaskIdentity | None, new: TaskIdentity, folder: Path) -> None:
    """Raise RunError where a run belongs to another task."""
    if old is None:
        return
    why = same_task(old, replace(new, graph=new.graph or old.graph))
    if why:
        raise RunError(f"{str(folder)!r} is the run of another task ({why}); choose another --out")


def architecture(task: Task) -> str:
    """What stands for a model before anything is exported: layers and shapes of weights, or the file's graph."""
    if task.onnx_path is not None:
        graphs.load_model(task.onnx_path)
        return graphs.structure_hash(task.onnx_path)
    if not isinstance(task.model, torch.nn.Module):
        return ""
    return stable_hash([str(task.model), {k: list(v.shape) for k, v in task.model.state_dict().items()}])

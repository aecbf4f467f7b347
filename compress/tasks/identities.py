"""What makes a task itself, as hashes: a run belongs to one task, and another one is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from compress.metrics import metrics
from compress.networks.accepted import check_accepted
from compress.networks.fingerprints import state_hash
from compress.networks.plain_copies import unwrap
from compress.onnx_files import graphs
from compress.tasks.fingerprints import source_hash
from compress.tasks.splits import Splits
from compress.tasks.tasks import Task, TaskIdentity, same_task
from compress.tasks.user_code import guarded
from compress.values.serialization import stable_hash
from targets.errors import RunError


def identity(
    task: Task, splits: Splits, metric: metrics.Metric, graph: str = "", weights: str | None = None
) -> TaskIdentity:
    """What makes this task itself; ``graph`` is empty as long as the baseline is not exported.

    ``weights``: their hash where it is known already; otherwise that of the weights the task was given with, if any.
    """
    sizes = {"val": len(splits.val), "test": len(splits.test) if splits.test else 0}
    test = splits.test.digest if splits.test else None
    known = weights_given(task) if weights is None else weights
    return TaskIdentity(task.name, metric.name, graph, splits.val.digest, test, sizes, known, metric_code(metric))


def weights_given(task: Task) -> str:
    """Hash of the weights that the task's model has: a module's, or an ``.onnx`` file's.

    Empty where a function makes the model, and for a module whose weights have no shape yet (which is refused later).
    """
    if task.onnx_path is not None:
        return _hash_of_file(task.onnx_path)
    module = task.model
    if not isinstance(module, torch.nn.Module):
        return ""
    check_accepted(module, f"the model of task {task.name!r}")
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in module.state_dict().values()):
        return ""
    return state_hash(guarded(f"copying the model of task {task.name!r}", lambda: unwrap(module, task.name)))


def _hash_of_file(path: Path) -> str:
    """Of what an ``.onnx`` file computes: its graph with all weights, also those in a file beside it."""
    model = graphs.load_model(path)
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:  # one by one, since a whole model may be too large to be serialized
        digest.update(tensor.SerializeToString(deterministic=True))
    for node in model.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    for function in model.functions:
        digest.update(function.SerializeToString(deterministic=True))
    return digest.hexdigest()[:16]


def metric_code(metric: metrics.Metric) -> str:
    """Hash of the functions of a metric of the task's own, and how it is oriented; empty for one of ours."""
    if metrics.METRICS.get(metric.name) is metric:
        return ""
    functions = [metric.function, metric.per_example, metric.from_decisions, metric.decide]
    told = (metric.higher_is_better, metric.bounded, metric.nan_is_wrong)
    return stable_hash([*map(source_hash, functions), *told])


def check_identity(old: TaskIdentity | None, new: TaskIdentity, folder: Path) -> None:
    """Raise RunError where a run belongs to another task."""
    if old is None:
        return
    why = same_task(old, new)
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

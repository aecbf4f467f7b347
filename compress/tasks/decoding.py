"""A task's metric, and its ``decode``: what a detector puts out made boxes, before they are scored."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from compress.metrics import metrics
from compress.metrics.average_precision import check_installed
from compress.metrics.decisions import Arrays
from compress.metrics.detections import check_detections, check_objects
from compress.metrics.metrics import Prepared, value_prepared
from compress.tasks.labels import RaggedLabels
from compress.tasks.tasks import Task
from compress.tasks.user_code import guarded
from targets.errors import TaskError

BATCH = 64
"""Examples that are decoded at a time."""
_RECENT = 4
"""Outputs whose boxes are kept, since the value, its interval and that of a drop are asked for one after another."""

Decode = Callable[[Any], Any]
"""(outputs of the network: a tensor, or a tuple of tensors, samples first) -> a dict of boxes for each sample."""


class _Recent:
    """What was made ready of the last few outputs."""

    __slots__ = ("_found",)  # no attributes: it is no part of what a function of the user's is made of

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, int], tuple[Any, Prepared]] = OrderedDict()

    def __reduce__(self) -> tuple[type[_Recent], tuple[()]]:
        """Sent to another process, it has seen nothing yet."""
        return _Recent, ()

    def get(self, outputs: Arrays, labels: Any, make: Callable[[], Prepared]) -> Prepared:
        """For these outputs, told by their values, and these very labels."""
        key = _digest(outputs), id(labels)
        if key not in self._found or self._found[key][0] is not labels:
            self._found[key] = labels, make()  # the labels are kept, so that their id stays theirs
            while len(self._found) > _RECENT:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        return self._found[key][1]


def task_metric(task: Task) -> metrics.Metric:
    """The task's metric, on what its ``decode`` gives where it has one.

    Raises TaskError for a name that is none, for boxes without ``decode`` or a library that matches them, and for
    ``decode`` where the metric takes no boxes.
    """
    metric = metrics.get(task.metric)
    if not metric.decoded:
        if task.decode is not None:
            raise TaskError(
                f"task {task.name!r}: decode makes boxes, which metric {metric.name!r} does not take; "
                "use map50 or map50-95"
            )
        return metric
    if task.decode is None:
        raise TaskError(
            f"task {task.name!r}: metric {metric.name!r} takes boxes; give a decode= that makes a dict of 'boxes', "
            "'scores' and 'labels' for each example of the outputs"
        )
    check_installed()
    return _of_decoded(metric, task.decode)


def _of_decoded(metric: metrics.Metric, decode: Decode) -> metrics.Metric:
    if metric.prepare is None:
        raise TaskError(f"metric {metric.name!r} takes boxes but cannot be prepared; use map50 or map50-95")
    prepare = partial(_prepared, metric.prepare, decode, _Recent())
    return replace(metric, function=partial(value_prepared, prepare), prepare=prepare)


def _prepared(
    prepare: Callable[[Any, Any], Prepared], decode: Decode, recent: _Recent, outputs: Arrays, labels: Any
) -> Prepared:
    return recent.get(outputs, labels, lambda: prepare(decoded(decode, outputs), labels))


def decoded(decode: Decode, outputs: Arrays) -> np.ndarray:
    """(n,) what ``decode`` gives for each example, from outputs (n, ...) or a tuple of them.

    It is called with tensors, a batch of examples at a time. Raises TaskError where it raises, or gives anything else
    than one dict for each.
    """
    arrays = outputs if isinstance(outputs, tuple) else (outputs,)
    count = len(arrays[0])
    found = np.empty(count, dtype=object)
    for start in range(0, count, BATCH):
        batch = tuple(torch.from_numpy(np.array(x[start : start + BATCH])) for x in arrays)
        given = guarded("the task's decode", partial(_called, decode, batch if len(batch) > 1 else batch[0]))
        size = len(batch[0])
        if not isinstance(given, (list, tuple)) or len(given) != size:
            got = f"{len(given)} of them" if isinstance(given, (list, tuple)) else type(given).__name__
            raise TaskError(f"decode gave {got} for {size} examples; it must return a list with one dict for each")
        for i, one in enumerate(given):
            found[start + i] = _as_arrays(one)
    return found


def check_decoded(task: Task, outputs: Arrays, split: Any) -> None:
    """Raise TaskError where what ``decode`` makes of the untouched model's outputs cannot be boxes of its images."""
    if task.decode is not None:
        check_detections(decoded(task.decode, outputs), "decode's example", image_size(split.inputs))


def check_labels(task: Task, name: str, split: Any) -> None:
    """Raise TaskError where the labels of a split are not what the task's metric takes."""
    metric, ragged = metrics.get(task.metric), isinstance(split.labels, RaggedLabels)
    if metric.decoded:
        if not ragged:
            raise TaskError(
                f"{name}: metric {metric.name!r} takes a dict of 'boxes' and 'labels' for each example, not labels of "
                f"shape {tuple(split.labels.shape)}"
            )
        check_objects(split.labels.numpy(), f"{name}: the label of example", image_size(split.inputs))
    elif ragged and metrics.METRICS.get(metric.name) is metric:
        raise TaskError(
            f"{name}: the labels are one {type(split.labels[0]).__name__} for each example, and metric "
            f"{metric.name!r} takes one tensor of them; use map50 or map50-95 for boxes, or bring a Metric of your own"
        )


def image_size(inputs: tuple[torch.Tensor, ...]) -> tuple[int, int] | None:
    """(height, width) of the images, where the first input is a batch of them."""
    return (int(inputs[0].shape[2]), int(inputs[0].shape[3])) if inputs and inputs[0].dim() == 4 else None


def _called(decode: Decode, outputs: Any) -> Any:
    with torch.no_grad():
        return decode(outputs)


def _as_arrays(given: Any) -> Any:
    """A dict of tensors as one of arrays; anything else as it is, to be refused."""
    if not isinstance(given, dict):
        return given
    return {key: x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x for key, x in given.items()}


def _digest(outputs: Arrays) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in outputs if isinstance(outputs, tuple) else (outputs,):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

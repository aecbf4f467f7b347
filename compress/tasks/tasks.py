"""The task: what the user brings. Plain frozen data; nothing is loaded or trained when it is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.errors import TaskError

if TYPE_CHECKING:
    from torch import nn

    from compress.metrics.metrics import Metric

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


@dataclass(frozen=True)
class Task:
    """A model, its data and how good is measured.

    ``model``: an ``nn.Module``; a function without parameters that makes (trains) one, called once; or a path to an
    ``.onnx`` file. ``train``, ``val``, ``test``: map-style datasets of (input, label), an input being a tensor, a tuple
    of tensors, or a dict of tensors by the names of forward's arguments; or of dicts of such inputs that hold the label
    as ``labels``, ``label`` or ``label_ids``. train fits weights, val steers the search, test is read once per pick and
    may be None.
    ``metric``: a name from ``compress.metrics`` or a ``Metric``. ``loss(outputs, labels)``: None for the usual one.
    ``finetune(module, train, settings)``: the user's own training loop instead of ours; it trains in place or
    returns the trained module. ``slices``: name -> one label per test example. ``optimizer(parameters, settings)``:
    makes the torch optimizer that our loop uses in place of AdamW; parameters are groups that hold their weight decay.
    ``collate(examples)``: puts examples that differ in length together, as that of a torch ``DataLoader`` does: a list
    of examples as the dataset gives them, to a batch in the same form. ``decode(outputs)``: for the metrics of boxes,
    makes of the outputs of a batch (a tensor, or a tuple of tensors where there are several, samples first) a list with
    a dict for each example: ``boxes`` (k, 4) as left, top, right, bottom, ``scores`` (k,) and ``labels`` (k,). Labels
    are dicts of ``boxes`` and ``labels`` then; dicts and lists as labels are never put together in one tensor.
    """

    name: str
    model: nn.Module | Callable[[], nn.Module] | str | Path
    train: Any = None
    val: Any = None
    test: Any = None
    metric: str | Metric = "accuracy"
    loss: Callable[[Any, Any], Any] | None = None
    finetune: Callable[[Any, Any, Any], Any] | None = None
    slices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    optimizer: Callable[[Any, Any], Any] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    decode: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.match(self.name):
            raise TaskError(
                f"task name {self.name!r}: use letters, digits, '.', '_' and '-' (it names the run's folder)"
            )
        if self.model is None:
            raise TaskError(f"task {self.name!r}: model is None; give an nn.Module, a function or an .onnx path")
        if self.val is None:
            raise TaskError(f"task {self.name!r}: val is None; the search needs validation data to steer by")
        if self.optimizer is not None and self.finetune is not None:
            raise TaskError(f"task {self.name!r}: finetune trains by itself, so optimizer would do nothing; give one")
        if self.optimizer is not None and not callable(self.optimizer):
            raise TaskError(
                f"task {self.name!r}: optimizer is {type(self.optimizer).__name__}; give a function of (parameters, "
                "settings) that makes one, since every trial trains another network"
            )
        if self.collate is not None and not callable(self.collate):
            raise TaskError(
                f"task {self.name!r}: collate is {type(self.collate).__name__}; give a function that makes a batch "
                "of a list of examples"
            )
        if self.decode is not None and not callable(self.decode):
            raise TaskError(
                f"task {self.name!r}: decode is {type(self.decode).__name__}; give a function that makes a list of "
                "boxes of the model's outputs"
            )

    @property
    def onnx_path(self) -> Path | None:
        """The ``.onnx`` file, where the model is one."""
        return Path(self.model) if isinstance(self.model, (str, Path)) else None


@dataclass(frozen=True)
class TaskIdentity:
    """What makes two tasks the same one for a run: a run belongs to one task."""

    name: str
    metric: str
    graph: str
    """Hash of the baseline's ONNX graph, its weights left out; empty before it is exported."""
    val: str
    test: str | None
    """Hashes of the data."""
    sizes: dict[str, int] = field(default_factory=dict)
    weights: str = ""
    """Hash of the model's weights; empty where a function makes the model and was not called yet, and in old runs."""
    metric_code: str = ""
    """Hash of a metric of the task's own; empty for one of ours, and in old runs."""


def same_task(old: TaskIdentity, new: TaskIdentity) -> str | None:
    """Why ``new`` is another task than ``old``, or None. A metric's function is compared by what it gives, later."""
    for name, what in (
        ("name", "another name"),
        ("metric", "another metric"),
        ("val", "another val data"),
        ("test", "another test data"),
        ("graph", "another model"),
        ("weights", "other weights of the model"),
    ):
        before, now = getattr(old, name), getattr(new, name)
        unknown = name in ("graph", "weights") and "" in (before, now)
        if before != now and not unknown:
            detail = f" ({before!r}, not {now!r})" if name in ("name", "metric") else ""
            return f"{what}{detail}"
    return None


def known_of_both(old: TaskIdentity, new: TaskIdentity) -> TaskIdentity:
    """``new``, with what only ``old`` knows filled in: what a run belongs to is never forgotten.

    The metric's function stays the old one until it was compared.
    """
    return replace(new, graph=new.graph or old.graph, weights=new.weights or old.weights, metric_code=old.metric_code)

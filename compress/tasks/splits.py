"""The task's data, read and checked: train, val and test, and whether they share examples."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from compress.metrics import metrics
from compress.tasks import datasets, decoding, examples
from compress.tasks.tasks import Task
from targets.errors import TaskError


@dataclass(frozen=True)
class Splits:
    """The task's data, read and checked."""

    train: datasets.Split | datasets.Stream | None
    val: datasets.Split
    test: datasets.Split | None
    warnings: tuple[str, ...]

    @property
    def in_memory(self) -> dict[str, datasets.Split]:
        """The splits that are held whole, by name."""
        found = {"val": self.val}
        if isinstance(self.train, datasets.Split):
            found["train"] = self.train
        if self.test is not None:
            found["test"] = self.test
        return found


def read_splits(task: Task) -> Splits:
    """Read all splits; overlap between them is no error, but said. Raises TaskError for unusable data."""
    if task.train is None and task.onnx_path is None:
        raise TaskError(f"task {task.name!r}: train is None; fine-tuning needs training data")
    if task.collate is not None:
        train, val, test = _collated(task, task.collate)
    else:
        val = datasets.read(task.val, "val")
        test = None if task.test is None else datasets.read(task.test, "test")
        train = None if task.train is None else datasets.read_train(task.train)
    train, val, test = _in_one_order(task, train, val, test)
    if task.onnx_path is None:  # a file says itself what it takes
        train = replace(train, single=True) if isinstance(train, datasets.Stream) else _single(train)
        val, test = val.in_single_precision(), _single(test)
    for name, values in task.slices.items():
        if test is not None and len(values) != len(test):
            raise TaskError(
                f"slices[{name!r}] has {len(values)} labels, test has {len(test)} examples; one for each is needed"
            )
    splits = Splits(train, val, test, ())
    for name, split in splits.in_memory.items():
        decoding.check_labels(task, name, split)
    metric, labels = metrics.get(task.metric), val.labels
    one_each = isinstance(labels, Tensor) and labels.dim() == 1
    one_class = one_each and len(labels.unique()) == 1  # type: ignore[union-attr]
    if metric.loss == "cross_entropy" and metric.name != "agreement" and task.loss is None and one_each:
        datasets.check_classes(splits.in_memory)
    warnings = [_overlap(a, b, n) for (a, b), n in datasets.overlaps(splits.in_memory).items()]
    if metric.name == "agreement" and one_class:
        warnings.append("the original decides on one class for all of val: that others agree says little")
    if test is None:
        warnings.append("there is no test split: nothing was held out, and no pick can be confirmed")
    return replace(splits, warnings=tuple(warnings))


def _single(split: datasets.Split | None) -> datasets.Split | None:
    return None if split is None else split.in_single_precision()


_Parts = tuple[datasets.Split | datasets.Stream | None, datasets.Split, datasets.Split | None]
"""Train, val and test."""


def _collated(task: Task, collate: examples.Collate) -> _Parts:
    """The splits as the task's ``collate`` puts them together: in one batch, so that all are padded alike."""
    given = {name: data for name, data in (("val", task.val), ("test", task.test)) if data is not None}
    for name, data in given.items():
        datasets.check_size(data, name)
    train = None
    if task.train is not None:
        datasets.check_size(task.train, "train")
        train = datasets.as_stream(
            task.train, collate, tuple(examples.raw_examples(task.val, range(len(task.val)), "val"))
        )
        given |= {"train": task.train} if train is None else {}
    found = datasets.read_collated(given, collate)
    return train or found.get("train"), found["val"], found.get("test")


def _in_one_order(
    task: Task, train: datasets.Split | datasets.Stream | None, val: datasets.Split, test: datasets.Split | None
) -> _Parts:
    """Inputs that are given by name in one order: that of the file where the model is one, else that of val."""
    if task.onnx_path is not None and val.names:
        from compress.onnx_files.contents import input_types
        from compress.onnx_files.normalizing import read_normalized

        names = tuple(input_types(read_normalized(task.onnx_path).model))
    else:
        names = val.names
    if isinstance(train, datasets.Split):
        train = train.reordered(names, "train")
    elif train is not None:
        if set(train.names) != set(names):
            raise TaskError(f"train has the inputs {sorted(train.names)}, val has {sorted(names)}; give the same")
        train = replace(train, names=names)
    return train, val.reordered(names, "val"), None if test is None else test.reordered(names, "test")


def _overlap(a: str, b: str, n: int) -> str:
    used = "trained on" if "train" in (a, b) else "used to steer the search"
    return f"{a} and {b} share {n} examples: those were {used} as well, so what is measured on them flatters"

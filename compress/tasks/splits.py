"""The task's data, read and checked: train, val and test, and whether they share examples."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compress.metrics import metrics
from compress.tasks import datasets
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
    val = datasets.read(task.val, "val")
    test = None if task.test is None else datasets.read(task.test, "test")
    train = None
    if task.train is not None:
        train = datasets.read_train(task.train)
    elif task.onnx_path is None:
        raise TaskError(f"task {task.name!r}: train is None; fine-tuning needs training data")
    for name, labels in task.slices.items():
        if test is not None and len(labels) != len(test):
            raise TaskError(
                f"slices[{name!r}] has {len(labels)} labels, test has {len(test)} examples; one for each is needed"
            )
    splits = Splits(train, val, test, ())
    metric, one_each = metrics.get(task.metric), val.labels.dim() == 1
    if metric.loss == "cross_entropy" and metric.name != "agreement" and task.loss is None and one_each:
        datasets.check_classes(splits.in_memory)
    warnings = [_overlap(a, b, n) for (a, b), n in datasets.overlaps(splits.in_memory).items()]
    if metric.name == "agreement" and one_each and len(val.labels.unique()) == 1:
        warnings.append("the original decides on one class for all of val: that others agree says little")
    if test is None:
        warnings.append("there is no test split: nothing was held out, and no pick can be confirmed")
    return replace(splits, warnings=tuple(warnings))


def _overlap(a: str, b: str, n: int) -> str:
    used = "trained on" if "train" in (a, b) else "used to steer the search"
    return f"{a} and {b} share {n} examples: those were {used} as well, so what is measured on them flatters"

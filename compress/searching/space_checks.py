"""What a search space asks of the data, looked at before anything is trained."""

from __future__ import annotations

from compress.metrics.metrics import get
from compress.tasks import datasets
from compress.tasks.tasks import Task
from compress.training import balancing, mixing
from compress.values.configs import row
from compress.values.domains import corners
from compress.values.search_spaces import AUTO, SearchSpace
from targets.errors import SpaceError, TrainingError


def check_space(space: SearchSpace, task: Task, train: datasets.Split | datasets.Stream | None) -> None:
    """Raise SpaceError where the task's data or its own functions do not allow what ``space`` may ask for."""
    if task.finetune is not None:
        if space.lr == AUTO:
            raise SpaceError(
                "lr='auto' is found with our own loop, but the task has a finetune of its own; give a Float"
            )
        return
    if train is None:
        return
    try:
        _check_mixup(space, train)
        _check_balance(space, task, train)
    except TrainingError as error:
        raise SpaceError(f"{error} in the search space") from None


def _check_mixup(space: SearchSpace, train: datasets.Split | datasets.Stream) -> None:
    if _may(space, "mixup"):
        mixing.check_mixable(datasets.sample(train, 2, 0)[0])


def _check_balance(space: SearchSpace, task: Task, train: datasets.Split | datasets.Stream) -> None:
    if not _may(space, "balance"):
        return

    if "loss" in corners(space.balance):
        if task.loss is not None:
            raise SpaceError("balance='loss' cannot weight a loss of the task's own; use balance='sampler'")
        if get(task.metric).loss != "cross_entropy":
            raise SpaceError(
                f"balance='loss' weights classes, and metric {get(task.metric).name!r} decides on none; "
                "use balance='none'"
            )
    balancing.check_balanceable(train.labels if isinstance(train, datasets.Split) else datasets.sample(train, 2, 0)[1])


def _may(space: SearchSpace, name: str) -> bool:
    """Whether a config of the space may give a setting anything but its neutral value."""
    return any(value != row(name).neutral for value in corners(space.domains()[name]))

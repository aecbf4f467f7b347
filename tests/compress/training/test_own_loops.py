"""A training loop or an optimizer of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.tasks.datasets import Split
from compress.tasks.tasks import Task
from compress.training.finetuning import own_finetune
from compress.values.configs import FinetuneSettings
from targets.errors import TaskError, TrainingError
from training import NAN, linear, tune


def _own(body: Callable[[nn.Module], Any]) -> Callable[[Any, Any, Any], Any]:
    def loop(module: nn.Module, train: Any, settings: FinetuneSettings) -> Any:
        assert len(train) == 3
        assert settings.epochs == 7
        print("my own loop")
        return body(module)

    return loop


def _in_place(module: nn.Module) -> None:
    with torch.no_grad():
        module[1].bias += 1.0
    module.train()


def test_an_own_loop_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    module = linear()
    trained = own_finetune(_own(_in_place), module, [1, 2, 3], FinetuneSettings(epochs=7), 0)
    assert trained is module
    assert not trained.training
    assert torch.equal(trained[1].bias, linear()[1].bias + 1.0)
    assert capsys.readouterr() == ("", "my own loop\n")
    other = linear()
    assert own_finetune(_own(lambda _: other), module, [1, 2, 3], FinetuneSettings(epochs=7), 0) is other


def test_an_own_loop_is_seeded() -> None:
    drawn: list[tuple[float, float]] = []

    def loop(module: nn.Module, train: Any, settings: Any) -> None:  # noqa: ARG001
        drawn.append((float(torch.rand(())), float(np.random.random())))

    for seed in (1, 1, 2):
        own_finetune(loop, linear(), None, FinetuneSettings(), seed)
    assert drawn[0] == drawn[1] != drawn[2]


def _nan(module: nn.Module) -> None:
    with torch.no_grad():
        module[1].weight[0, 0] = NAN


def _exit(_: nn.Module) -> None:
    raise SystemExit("usage")


def _fail(_: nn.Module) -> None:
    raise ValueError("no more data\nsecond line")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (_fail, r"the task's finetune raised ValueError: no more data \(.*test_own_loops.py:\d+\)$"),
        (_exit, r"raised SystemExit: usage \(.*test_own_loops.py:\d+\)$"),
        (_nan, r"left NaN or infinite values in 1.weight"),
        (lambda _: nn.Linear(2, 2), r"gave back another network: '1.weight' has shape None"),
        (
            lambda _: nn.Sequential(nn.Flatten(), nn.Linear(64, 33), nn.ReLU(), nn.Linear(33, 10)),
            r"'1.weight' has shape .*33",
        ),
    ],
)
def test_an_own_loop_that_fails_ends_the_trial_in_one_line(body: Any, said: str) -> None:
    with pytest.raises(TrainingError, match=said) as caught:
        own_finetune(_own(body), linear(), [1, 2, 3], FinetuneSettings(epochs=7), 0)
    assert "\n" not in str(caught.value)


def test_an_own_optimizer_takes_the_steps_on_our_schedule(few: Split) -> None:
    """Plain gradient descent, one batch of all: its step can be written down."""
    given: list[Any] = []

    def optimizer(parameters: Any, settings: FinetuneSettings) -> torch.optim.Optimizer:
        given.append((parameters, settings))
        return torch.optim.SGD(parameters, lr=settings.lr)

    module, expected = linear(), linear()
    loss = F.cross_entropy(expected(few.inputs[0]), few.labels)
    loss.backward()  # type: ignore[no-untyped-call]
    tune(module, few, epochs=1, batch_size=128, lr=0.1, weight_decay=0.01, optimizer=optimizer)
    ((groups, settings),) = given
    assert settings.lr == 0.1
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert [p.dim() for group in groups for p in group["params"]] == [2, 2, 1, 1]
    for mine, theirs in zip(module.parameters(), expected.parameters(), strict=True):
        assert theirs.grad is not None
        step = 0.1 * (theirs.grad + (0.01 * theirs if theirs.dim() > 1 else 0.0))
        assert torch.allclose(mine, theirs - step, atol=1e-6)


def test_rates_that_differ_between_groups_stay_in_proportion(few: Split) -> None:
    made: list[torch.optim.Optimizer] = []

    def optimizer(parameters: Any, settings: FinetuneSettings) -> torch.optim.Optimizer:
        parameters[1]["lr"] = 10 * settings.lr
        made.append(torch.optim.SGD(parameters, lr=settings.lr))
        return made[0]

    tune(linear(), few, epochs=3, lr=0.01, schedule="linear", optimizer=optimizer)
    first, second = (group["lr"] for group in made[0].param_groups)
    assert 0 < first < 0.01
    assert second == pytest.approx(10 * first)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (lambda _p, _s: 1 / 0, r"the task's optimizer raised ZeroDivisionError: .*\(.*test_own_loops.py:\d+\)$"),
        (lambda _p, _s: "adam", r"the task's optimizer returned str, not a torch.optim.Optimizer; for example: lambda"),
    ],
)
def test_an_own_optimizer_that_is_none_ends_the_training_in_one_line(few: Split, optimizer: Any, said: str) -> None:
    with pytest.raises(TrainingError, match=said) as caught:
        tune(linear(), few, epochs=1, optimizer=optimizer)
    assert "\n" not in str(caught.value)


def test_a_task_has_a_loop_or_an_optimizer() -> None:
    function: Any = lambda *_: None  # noqa: E731
    with pytest.raises(TaskError, match="finetune trains by itself, so optimizer would do nothing"):
        Task("mine", nn.Linear(2, 2), val=[1], finetune=function, optimizer=function)
    made: Any = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(TaskError, match=r"optimizer is SGD; give a function of \(parameters, settings\)"):
        Task("mine", nn.Linear(2, 2), val=[1], optimizer=made)

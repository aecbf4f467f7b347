"""What determines a training is in its key: in a run that goes on, nothing is taken for what it is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import compress
from compress.baseline import profiling
from compress.baseline.contexts import Training
from compress.pruning.grouping import find_groups
from compress.results import Result
from compress.run_folder.caching import Cache
from compress.stages.finetuning import Validation, finetuned
from compress.tasks.datasets import Split
from compress.tasks.tasks import Task
from compress.training.distilling import make_teacher
from compress.training.objectives import Objective
from compress.training.training_key import make_key
from compress.training.training_modes import TrainingMode
from compress.values.configs import FinetuneSettings
from compress.values.domains import Choice
from compress.values.search_spaces import SearchSpace

Search = Callable[..., Result]


def twice(outputs: Tensor, labels: Tensor) -> Tensor:
    """Another loss than the usual one, with other losses for every cut."""
    return 2.0 * F.cross_entropy(outputs, labels)


def squared(outputs: Tensor, labels: Tensor) -> Tensor:
    """A third one."""
    return (outputs.softmax(1) - F.one_hot(labels, 10)).square().sum()


def own_loop(module: nn.Module, train: Any, settings: Any) -> nn.Module:  # noqa: ARG001 - as loops are called
    """A training loop of the task's own."""
    return module


METRIC = compress.Metric("m", lambda outputs, labels: float((outputs.argmax(1) == labels).mean()))


class Block(nn.Module):
    """A residual block that can be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def residual() -> nn.Module:
    """(batch, 1, 8, 8) -> (batch, 10), with two blocks."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 10),
    ).eval()  # fmt: skip


def training_of(few: Split, loss: Any = None, module: nn.Module | None = None, **changes: Any) -> Training:
    """What a search would train with."""
    network = residual() if module is None else module
    objective = Objective(None, "cross_entropy") if loss is None else Objective(loss, "own")
    task = Task("t", network, train=few, val=few, loss=loss)
    key = make_key(task, "baseline", few.digest, objective, TrainingMode(), 0)
    teacher = make_teacher(copy.deepcopy(network), few, TrainingMode())
    made = Training(
        network, key, few, few.first(4), objective, teacher, TrainingMode(), None, None, None  # type: ignore[arg-type] - no graph is needed here
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture
def computed() -> list[str]:
    """Names of the stages that were really computed."""
    return []


@pytest.fixture
def cache(tmp_path: Path, computed: list[str]) -> Cache:
    return Cache(tmp_path / "cache", lambda name, cached, _: None if cached else computed.append(name))


def test_the_scans_of_another_loss_are_other_scans(few: Split, cache: Cache, computed: list[str]) -> None:
    found = []
    for loss in (None, twice, twice):
        training = training_of(few, loss)
        groups = find_groups(training.module, training.example)
        found.append((profiling.block_losses(cache, training), profiling.damages(cache, training, groups)))
    assert found[1] == found[2]
    for name, value in found[0][0].items():
        assert found[1][0][name] == pytest.approx(2.0 * value), "of the very loss, not of the one before"
    for name, curve in found[0][1].items():
        for (_, rise), (_, doubled) in zip(curve, found[1][1][name], strict=True):
            assert doubled == pytest.approx(2.0 * rise, abs=1e-6)
    each = 1 + 1 + len(profiling._CURVE)
    assert computed == ["profile"] * 2 * each, "for two losses, not three times"


def test_a_training_gives_a_module_and_leaves_what_it_began_with(few: Split, cache: Cache, computed: list[str]) -> None:
    training = training_of(few)
    groups = find_groups(training.module, training.example)
    pruned = compress.prune(training.module, training.example, 0.5)
    before = copy.deepcopy(pruned.module.state_dict())
    assert groups.prunable
    arguments = (cache, training, Validation(few, METRIC), {"baseline": "x"}, pruned)
    settings = FinetuneSettings(epochs=1, lr=1e-2)
    fresh, again = (finetuned(*arguments, settings, lambda _: None) for _ in range(2))
    assert computed == ["finetune"]
    for name, x in pruned.module.state_dict().items():
        assert torch.equal(x, before[name])
    assert any(not torch.equal(x, before[name]) for name, x in fresh.module.state_dict().items())
    for name, x in fresh.module.state_dict().items():
        assert torch.equal(x, again.module.state_dict()[name]), "from the cache as fresh"
    more = finetuned(*arguments, settings, lambda _: None, fresh)
    assert computed == ["finetune", "finetune"]
    assert any(not torch.equal(x, fresh.module.state_dict()[name]) for name, x in more.module.state_dict().items())


def test_each_part_of_the_key_tells_trainings_apart(few: Split) -> None:
    task = Task("t", residual(), train=few, val=few)
    objective, mode = Objective(None, "cross_entropy"), TrainingMode()

    def sgd(parameters: Any, settings: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=settings.lr)

    keys = [
        make_key(task, "a", "b", objective, mode, 0),
        make_key(task, "x", "b", objective, mode, 0),
        make_key(task, "a", "x", objective, mode, 0),
        make_key(task, "a", "b", Objective(None, "mse"), mode, 0),
        make_key(task, "a", "b", Objective(squared, "own"), mode, 0),
        make_key(replace(task, finetune=own_loop), "a", "b", objective, mode, 0),
        make_key(replace(task, optimizer=sgd), "a", "b", objective, mode, 0),
        make_key(task, "a", "b", objective, replace(mode, bf16=True), 0),
        make_key(task, "a", "b", objective, mode, 1),
    ]
    assert len({str(key.of_trainings()) for key in keys}) == len(keys)
    assert keys[0].of_losses() == keys[-1].of_losses() == keys[6].of_losses(), "nothing is trained for a loss"
    assert len({str(key.of_losses()) for key in keys}) == 5


def test_in_a_run_that_goes_on_another_loss_scans_and_trains_anew(search: Search, task: compress.Task) -> None:
    space = SearchSpace(epochs=1, l1=0.0, precision="fp32")
    first = search(trials=2, space=space).report["stages"]
    same = search(trials=2, space=space).report["stages"]
    assert same["profile"]["count"] == first["profile"]["count"]
    other = search(trials=3, space=space, task=replace(task, loss=twice)).report["stages"]
    assert other["profile"]["count"] == first["profile"]["count"] + 1
    assert other["finetune"]["count"] > first["finetune"]["count"]


def test_training_in_int8_takes_the_tasks_own_optimizer(search: Search, task: compress.Task) -> None:
    given: list[tuple[int, float]] = []

    def optimizer(parameters: Any, settings: FinetuneSettings) -> torch.optim.Optimizer:
        given.append((settings.epochs, settings.lr))
        return torch.optim.SGD(parameters, lr=settings.lr)

    space = SearchSpace(epochs=2, l1=0.0, lr=1e-2, precision=Choice("fp32", "int8"), qat_epochs=1, qat_lr=0.5)
    report = search(task=replace(task, optimizer=optimizer), space=space, trials=2).report
    assert report["stages"]["qat"]["count"] == 2
    assert given.count((1, 0.005)) == 2, "for each of the two networks"


class Augmented:
    """The digits, brighter or darker at random."""

    def __init__(self, images: Tensor, labels: Tensor, strength: float) -> None:
        self.images, self.labels, self.strength = images, labels, strength

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index] * (1.0 + self.strength * torch.rand(())), self.labels[index]


def test_another_augmentation_trains_anew(search: Search, task: compress.Task) -> None:
    assert isinstance(task.train, TensorDataset)
    images, labels = (x[:128] for x in task.train.tensors)
    space = SearchSpace(
        epochs=1, l1=0.0, lr=1e-3, weight_decay=0.0, dropout=0.0, label_smoothing=0.0, distill_weight=0.0,
        temperature=1.0, prune_ratio=0.5, prune_skew=0.0, prune_delta=0.0, precision="fp32",
    )  # fmt: skip
    counts = []
    for strength in (0.1, 0.1, 0.5):
        changed = replace(task, train=Augmented(images, labels, strength))
        report = search(task=changed, space=replace(space, epochs=Choice(1)), trials=1 + len(counts)).report
        counts.append(report["stages"]["finetune"]["count"])
    assert counts[1] == counts[0], "the very same training is found"
    assert counts[2] > counts[1]

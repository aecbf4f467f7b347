"""Training a cut network again: it recovers, every setting does what it says, and nothing goes wrong in silence."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from compress.tasks.datasets import Split, read, read_train
from compress.training.distilling import make_teacher, predict
from compress.training.finetuning import History
from compress.training.objectives import Objective
from compress.training.training_modes import TrainingMode
from compress.values.configs import FinetuneSettings
from targets.errors import TrainingError
from training import CPU, NAN, accuracy, linear, same, tune


@pytest.fixture(scope="session")
def train(digits: Any) -> Split:
    return read(TensorDataset(*digits.train), "train")


def test_half_a_network_recovers(half: nn.Module, train: Split, digits: Any) -> None:
    before = accuracy(half, digits.test)
    told: list[int] = []
    history = tune(half, train, epochs=4, lr=3e-3, on_epoch=told.append)
    assert len(history.loss) == 4
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert history.kept_epoch == 4
    assert told == [1, 2, 3, 4]
    assert accuracy(half, digits.test) > max(0.9, before + 0.05)


@pytest.mark.parametrize(
    "mode",
    [CPU, TrainingMode(channels_last=True), TrainingMode(bf16=True), TrainingMode(channels_last=True, bf16=True)],
    ids=["plain", "channels last", "bf16", "both"],
)
def test_every_mode_leaves_an_ordinary_network(half: nn.Module, few: Split, mode: TrainingMode) -> None:
    threads = torch.get_num_threads()
    teacher = make_teacher(copy.deepcopy(half), few, mode)
    history = tune(half, few, epochs=2, mode=mode, teacher=teacher, distill_weight=0.5)
    assert all(math.isfinite(value) for value in history.loss)
    assert not any(m.training for m in half.modules())
    for tensor in half.state_dict().values():
        assert tensor.is_contiguous()
        assert tensor.dtype in (torch.float32, torch.int64)
        assert tensor.device.type == "cpu"
    assert torch.get_num_threads() == threads


def test_the_seed_decides_every_bit(few: Split, half: nn.Module) -> None:
    def tuned(seed: int) -> nn.Module:
        module = copy.deepcopy(half)
        torch.rand(seed + 3)  # whatever was drawn before
        tune(module, few, seed, epochs=2, dropout=0.3)
        return module

    assert same(tuned(1), tuned(1))
    assert not same(tuned(1), tuned(2))


class Noisy(Dataset[Any]):
    """Augmented by numpy's and torch's global generators."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.images[i] + 0.05 * torch.randn(1, 8, 8) + float(np.random.normal(0, 0.05)), self.labels[i]


def test_neutral_settings_are_plain_adamw(few: Split) -> None:
    """Step by step what this has always been: whatever else can be switched on costs and changes nothing."""
    module, expected = linear(), linear()
    history = tune(module, few, seed=5, epochs=2, batch_size=32, lr=1e-2, weight_decay=1e-3)
    matrices = [p for p in expected.parameters() if p.dim() > 1]
    vectors = [p for p in expected.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 1e-3}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2
    )
    generator = torch.Generator().manual_seed(5)
    for step in range(8):
        if step % 4 == 0:
            order = torch.randperm(128, generator=generator)
        chunk = order[32 * (step % 4) : 32 * (step % 4 + 1)]
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1.0 if step < 1 else 0.5 * (1.0 + math.cos(math.pi * (step - 1) / 7)))
        optimizer.zero_grad()
        F.cross_entropy(expected(few.inputs[0][chunk]), few.labels[chunk]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert same(module, expected)
    assert history.features == []


@pytest.mark.parametrize("mode", [CPU, TrainingMode(channels_last=True)], ids=["plain", "channels last"])
@pytest.mark.parametrize("balance", ["loss", "sampler"])
def test_everything_at_once(half: nn.Module, cnn: nn.Module, train: Split, balance: str, mode: TrainingMode) -> None:
    teacher = make_teacher(cnn, train, mode)
    settings = {
        "epochs": 3, "lr": 3e-3, "weight_decay": 1e-3, "l1": 1e-6, "dropout": 0.1, "label_smoothing": 0.1,
        "distill_weight": 0.5, "temperature": 2.0, "patience": 2, "ema": 0.95, "mixup": 0.2, "feature_weight": 0.5,
        "balance": balance,
    }  # fmt: skip

    def quality(network: nn.Module) -> float:
        (found,) = predict(network, train.first(200), mode)
        return float((found.argmax(1) == train.labels[:200]).float().mean())

    def optimizer(parameters: Any, settings: FinetuneSettings) -> torch.optim.Optimizer:
        return torch.optim.NAdam(parameters, lr=settings.lr)

    modules = [copy.deepcopy(half) for _ in range(2)]
    found = [
        tune(m, train, mode=mode, teacher=teacher, val_quality=quality, optimizer=optimizer, **settings)
        for m in modules
    ]
    assert found[0] == found[1]
    assert same(*modules)
    assert found[0].val[-1] > 0.9
    assert found[0].features
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (*modules, cnn) for m in n.modules())
    assert all(x.is_contiguous() for x in modules[0].state_dict().values())


def test_augmented_data_train_and_repeat(half: nn.Module, digits: Any) -> None:
    data = read_train(Noisy(*(x[:256] for x in digits.train)))
    assert not isinstance(data, Split)
    teacher = make_teacher(copy.deepcopy(half), data, CPU)
    a, b = copy.deepcopy(half), copy.deepcopy(half)
    history = tune(a, data, epochs=3, lr=3e-3, teacher=teacher, distill_weight=0.3)
    assert history.loss[-1] < history.loss[0]
    np.random.normal()
    tune(b, data, epochs=3, lr=3e-3, teacher=teacher, distill_weight=0.3)
    assert same(a, b)


def _scripted(scores: list[float], kept: list[dict[str, Tensor]]) -> Callable[[nn.Module], float]:
    values = iter(scores)

    def quality(module: nn.Module) -> float:
        kept.append(copy.deepcopy(module.state_dict()))
        return next(values)

    return quality


@pytest.mark.parametrize(
    ("scores", "patience", "ran", "best"),
    [
        ([0.5, 0.7, 0.6, 0.6, 0.9], 2, 4, 2),
        ([0.5, 0.7, 0.6, 0.8, 0.7], 2, 5, 4),
        ([0.9, 0.8], 1, 2, 1),
        ([0.5, 0.5, 0.5], 5, 3, 3),
        ([NAN, 0.5, 0.4], 3, 3, 2),
        ([0.5, NAN, NAN, 0.9], 2, 3, 1),
    ],
)
def test_patience_stops_early_and_keeps_the_best(
    few: Split, scores: list[float], patience: int, ran: int, best: int
) -> None:
    module, kept = linear(), list[dict[str, Tensor]]()
    history = tune(module, few, epochs=len(scores), patience=patience, val_quality=_scripted(scores, kept))
    assert len(history.loss) == len(history.val) == ran
    assert history.kept_epoch == best
    assert all(torch.equal(x, kept[best - 1][name]) for name, x in module.state_dict().items())
    assert ran == best or not torch.equal(kept[-1]["1.weight"], module.state_dict()["1.weight"])


def test_without_a_val_score_patience_keeps_the_last(few: Split) -> None:
    history = tune(linear(), few, epochs=3, patience=1)
    assert (len(history.loss), history.val, history.kept_epoch) == (3, [], 3)


def test_zero_epochs_take_the_statistics_anew_and_nothing_else(cnn: nn.Module, few: Split) -> None:
    before = copy.deepcopy(cnn.state_dict())
    first = cnn[0]
    cnn[1].running_mean += 3.0
    momentum = cnn[1].momentum
    assert tune(cnn, few, epochs=0, dropout=0.5) == History()
    for name, tensor in cnn.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, before[name]), name
    with torch.no_grad():
        x = first(few.inputs[0])
    assert torch.allclose(cnn[1].running_mean, x.mean((0, 2, 3)), atol=1e-5)
    per_batch = []
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    for chunk in order.split(64):
        per_batch.append(x[chunk].var((0, 2, 3)))
    assert torch.allclose(cnn[1].running_var, torch.stack(per_batch).mean(0), atol=1e-5)
    assert cnn[1].momentum == momentum
    assert not any(m.training for m in cnn.modules())


def test_zero_epochs_without_batchnorm_change_nothing(few: Split) -> None:
    module = linear()
    tune(module, few, epochs=0)
    assert same(module, linear())


@pytest.mark.parametrize(
    ("loss", "said"), [(lambda y, _: y.sum() * NAN, "nan"), (lambda y, _: y.sum().abs() / 0, "inf")]
)
def test_a_loss_that_is_no_number_ends_the_training(few: Split, loss: Any, said: str) -> None:
    module = linear()
    with pytest.raises(TrainingError, match=rf"the loss became {said} in epoch 1 at lr=0.003; a lower lr") as caught:
        tune(module, few, objective=Objective(loss, "own"), epochs=2, lr=3e-3)
    assert "\n" not in str(caught.value)
    assert not module.training


def test_a_loss_that_grows_without_bound_ends_the_training(few: Split) -> None:
    with pytest.raises(TrainingError, match=r"training diverged: mean loss .* in epoch \d, .* at the start"):
        tune(linear(), few, epochs=3, lr=100.0, schedule="constant")


def test_weights_that_break_in_the_last_step_are_noticed(few: Split) -> None:
    """The loss of the only batch is fine; its gradient is not."""

    def loss(y: Tensor, _: Tensor) -> Tensor:
        return (y * 0).sum().sqrt()

    with pytest.raises(
        TrainingError, match=r"weight became NaN or infinite in epoch 1 at lr=0.001; a lower lr may help"
    ):
        tune(linear(), few, objective=Objective(loss, "own"), epochs=1, batch_size=128)


def test_a_last_batch_of_one_is_left_out(digits: Any) -> None:
    """BatchNorm over a single value cannot be trained; 65 = 64 + 1."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    sizes: list[int] = []
    module[1].register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    data = read(TensorDataset(*(x[:65] for x in digits.train)), "train")
    history = tune(module, data, epochs=2, batch_size=64)
    assert sizes == [64, 64]
    assert all(math.isfinite(value) for value in history.loss)
    sizes.clear()
    tune(module, data, epochs=0, batch_size=64)
    assert sizes == [64]


def test_batches_of_one_train_where_they_were_asked_for(digits: Any) -> None:
    data = read(TensorDataset(*(x[:20] for x in digits.train)), "train")
    module = linear()
    assert len(tune(module, data, epochs=1, batch_size=1).loss) == 1
    assert not same(module, linear())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules(few: Split, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    tune(linear(), few, epochs=10, batch_size=16, lr=0.01, schedule=schedule)
    assert len(rates) == 80
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    falling = all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert falling
    expected = {"cosine": 0.005, "linear": 0.005, "constant": 0.01}[schedule]
    assert rates[4 + 38] == pytest.approx(expected, rel=0.01)
    assert rates[-1] == pytest.approx({"cosine": 4.3e-6, "linear": 1.3e-4, "constant": 0.01}[schedule], rel=0.05)

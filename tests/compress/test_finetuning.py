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

from compress import prune
from compress.configs import FinetuneSettings
from compress.data import Split, read, read_train
from compress.finetuning import History, Objective, finetune, make_objective, make_teacher, own_finetune, predict
from compress.training_modes import TrainingMode
from targets.errors import TaskError, TrainingError

CPU = TrainingMode()
CROSS = Objective(None, "cross_entropy")


@pytest.fixture(scope="session")
def train(digits: Any) -> Split:
    return read(TensorDataset(*digits.train), "train")


@pytest.fixture(scope="session")
def few(digits: Any) -> Split:
    """128 train examples: two batches."""
    return read(TensorDataset(*(x[:128] for x in digits.train)), "train")


@pytest.fixture
def half(cnn: nn.Module, digits: Any) -> nn.Module:
    """The trained CNN with half of its channels, not trained again."""
    return prune(cnn, digits.val[0][:4], 0.5).module


def _accuracy(module: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((module.eval()(data[0]).argmax(1) == data[1]).float().mean())


def _tune(module: nn.Module, train: Any, seed: int = 0, objective: Objective = CROSS, **settings: Any) -> History:
    keywords = {n: settings.pop(n) for n in ("mode", "teacher", "val_quality", "on_epoch") if n in settings}
    return finetune(module, train, FinetuneSettings(**settings), objective, **{"mode": CPU, **keywords}, seed=seed)


def _weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.dim() > 1])


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_half_a_network_recovers(half: nn.Module, train: Split, digits: Any) -> None:
    before = _accuracy(half, digits.test)
    told: list[int] = []
    history = _tune(half, train, epochs=4, lr=3e-3, on_epoch=told.append)
    assert len(history.loss) == 4
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert history.kept_epoch == 4
    assert told == [1, 2, 3, 4]
    assert _accuracy(half, digits.test) > max(0.9, before + 0.05)


@pytest.mark.parametrize(
    "mode",
    [CPU, TrainingMode(channels_last=True), TrainingMode(bf16=True), TrainingMode(channels_last=True, bf16=True)],
    ids=["plain", "channels last", "bf16", "both"],
)
def test_every_mode_leaves_an_ordinary_network(half: nn.Module, few: Split, mode: TrainingMode) -> None:
    threads = torch.get_num_threads()
    teacher = make_teacher(copy.deepcopy(half), few, mode)
    history = _tune(half, few, epochs=2, mode=mode, teacher=teacher, distill_weight=0.5)
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
        _tune(module, few, seed, epochs=2, dropout=0.3)
        return module

    assert _same(tuned(1), tuned(1))
    assert not _same(tuned(1), tuned(2))


class Noisy(Dataset[Any]):
    """Augmented by numpy's and torch's global generators."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.images[i] + 0.05 * torch.randn(1, 8, 8) + float(np.random.normal(0, 0.05)), self.labels[i]


def test_augmented_data_train_and_repeat(half: nn.Module, digits: Any) -> None:
    data = read_train(Noisy(*(x[:256] for x in digits.train)))
    assert not isinstance(data, Split)
    teacher = make_teacher(copy.deepcopy(half), data, CPU)
    a, b = copy.deepcopy(half), copy.deepcopy(half)
    history = _tune(a, data, epochs=3, lr=3e-3, teacher=teacher, distill_weight=0.3)
    assert history.loss[-1] < history.loss[0]
    np.random.normal()
    _tune(b, data, epochs=3, lr=3e-3, teacher=teacher, distill_weight=0.3)
    assert _same(a, b)


def test_l1_makes_weights_smaller(few: Split) -> None:
    free, bound = _linear(), _linear()
    _tune(free, few, epochs=5, lr=1e-2)
    _tune(bound, few, epochs=5, lr=1e-2, l1=0.1)
    assert _weights(bound).abs().mean() < 0.8 * _weights(free).abs().mean()


def test_weight_decay_shrinks_norms_but_not_biases(few: Split) -> None:
    free, bound = _linear(), _linear()
    for module in (free, bound):
        nn.init.constant_(module[3].bias, 1.0)
        _tune(module, few, epochs=3, weight_decay=0.0 if module is free else 10.0, lr=1e-2)
    assert _weights(bound).norm() < 0.9 * _weights(free).norm()
    assert bound[3].bias.mean() > 0.9, "ten per cent a step would have left 0.5"


class Recorded(nn.Module):
    """Hands on what it gets, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, x.detach().clone()))
        return x


def test_the_rate_of_own_dropout_layers_is_the_configs(few: Split) -> None:
    record = Recorded()
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Dropout(0.1), record, nn.Linear(64, 10))
    nn.init.constant_(module[1].bias, 5.0)
    hooks = len(module[4]._forward_pre_hooks)
    _tune(module, few, epochs=1, dropout=0.6)
    zeros = torch.cat([(x == 0).float().flatten() for training, x in record.seen if training])
    assert float(zeros.mean()) == pytest.approx(0.6, abs=0.05)
    assert module[2].p == 0.1
    record.seen.clear()
    _tune(module, few, epochs=1, dropout=0.0)
    assert all((x != 0).any() and (x == 0).float().mean() < 0.01 for _, x in record.seen)
    assert module[2].p == 0.1
    assert len(module[4]._forward_pre_hooks) == hooks, "its own layers are enough"


class Seen(nn.Linear):
    """A linear layer that keeps what it gets."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, x.detach().clone()))
        return super().forward(x)


def test_without_dropout_layers_it_acts_before_the_last_linear_layer(few: Split) -> None:
    first, last = Seen(64, 64), Seen(64, 10)
    module = nn.Sequential(nn.Flatten(), first, last)
    nn.init.constant_(first.bias, 5.0)
    _tune(module, few, epochs=1, dropout=0.4)
    share = [float((x == 0).float().mean()) for training, x in last.seen if training]
    assert sum(share) / len(share) == pytest.approx(0.4, abs=0.05)
    assert sum(float((x == 0).sum()) for _, x in first.seen) == float((few.inputs[0] == 0).sum()), "only there"
    assert not last._forward_pre_hooks
    last.seen.clear()
    module.train()(few.inputs[0])
    assert (last.seen[0][1] != 0).float().mean() > 0.99, "gone afterwards"


def test_dropout_is_put_back_where_training_fails(few: Split) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))
    bare = _linear()
    for network in (module, bare):
        with pytest.raises(ZeroDivisionError):
            _tune(network, few, objective=Objective(lambda *_: 1 / 0, "own"), epochs=1, dropout=0.5)  # type: ignore[arg-type, return-value]
        assert not network.training
    assert module[1].p == 0.2
    assert not bare[3]._forward_pre_hooks


def test_label_smoothing_changes_the_loss(few: Split) -> None:
    outputs, labels = torch.randn(9, 10), torch.arange(9)
    for smoothing in (0.0, 0.2):
        expected = F.cross_entropy(outputs, labels, label_smoothing=smoothing)
        assert CROSS.value(outputs, labels, smoothing) == expected
    sharp, smooth = _linear(), _linear()
    a = _tune(sharp, few, epochs=1)
    b = _tune(smooth, few, epochs=1, label_smoothing=0.3)
    assert a.loss != b.loss
    assert not _same(sharp, smooth)


@pytest.mark.parametrize("kind", ["cross_entropy", "mse", "own"])
def test_distillation_alone_pulls_towards_the_teacher(few: Split, cnn: nn.Module, kind: str) -> None:
    """With weight 1 the labels do not count: they are all wrong here."""
    wrong = Split(few.inputs, (few.labels + 1) % 10, "")
    student = _linear()
    x = few.inputs[0]
    teacher = make_teacher(cnn, few, CPU)

    def distance(module: nn.Module) -> float:
        with torch.no_grad():
            a, b = module(x), cnn(x)
            kl = F.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean")
            return float(kl if kind == "cross_entropy" else F.mse_loss(a, b))

    before = distance(student)
    objective = Objective((lambda y, t: F.cross_entropy(y, t)) if kind == "own" else None, kind)
    settings = {"epochs": 40, "batch_size": 32, "lr": 1e-2, "distill_weight": 1.0, "temperature": 2.0}
    _tune(student, wrong, objective=objective, teacher=teacher, **settings)
    assert distance(student) < 0.2 * before
    assert _accuracy(student, (x, few.labels)) > 0.8


def test_the_loss_is_the_formula(few: Split, cnn: nn.Module) -> None:
    """(1 - w) * cross-entropy + w * T^2 * KL(teacher / T, student / T), on one batch of all, before any step."""
    student = _linear()
    x, y = few.inputs[0], few.labels
    with torch.no_grad():
        p, q = F.softmax(cnn(x) / 3.0, 1), F.softmax(student(x) / 3.0, 1)
        expected = 0.25 * F.cross_entropy(student(x), y) + 0.75 * 9.0 * (p * (p / q).log()).sum(1).mean()
    teacher = make_teacher(cnn, few, CPU)
    history = _tune(student, few, epochs=1, batch_size=128, teacher=teacher, distill_weight=0.75, temperature=3.0)
    assert history.loss[0] == pytest.approx(float(expected), rel=1e-4)


def test_the_teacher_is_not_asked_where_its_share_is_nothing(few: Split, cnn: nn.Module) -> None:
    a, b = _linear(), _linear()
    _tune(a, few, epochs=1, teacher=make_teacher(cnn, few, CPU), distill_weight=0.0)
    _tune(b, few, epochs=1)
    assert _same(a, b)
    _tune(a, few, epochs=1, distill_weight=1.0)  # without a teacher the labels are all there is
    assert not _same(a, b)


def _scripted(scores: list[float], kept: list[dict[str, Tensor]]) -> Callable[[nn.Module], float]:
    values = iter(scores)

    def quality(module: nn.Module) -> float:
        kept.append(copy.deepcopy(module.state_dict()))
        return next(values)

    return quality


NAN = float("nan")


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
    module, kept = _linear(), list[dict[str, Tensor]]()
    history = _tune(module, few, epochs=len(scores), patience=patience, val_quality=_scripted(scores, kept))
    assert len(history.loss) == len(history.val) == ran
    assert history.kept_epoch == best
    assert all(torch.equal(x, kept[best - 1][name]) for name, x in module.state_dict().items())
    assert ran == best or not torch.equal(kept[-1]["1.weight"], module.state_dict()["1.weight"])


def test_without_a_val_score_patience_keeps_the_last(few: Split) -> None:
    history = _tune(_linear(), few, epochs=3, patience=1)
    assert (len(history.loss), history.val, history.kept_epoch) == (3, [], 3)


def test_zero_epochs_take_the_statistics_anew_and_nothing_else(cnn: nn.Module, few: Split) -> None:
    before = copy.deepcopy(cnn.state_dict())
    first = cnn[0]
    cnn[1].running_mean += 3.0
    momentum = cnn[1].momentum
    assert _tune(cnn, few, epochs=0, dropout=0.5) == History()
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
    module = _linear()
    _tune(module, few, epochs=0)
    assert _same(module, _linear())


@pytest.mark.parametrize(
    ("loss", "said"), [(lambda y, _: y.sum() * NAN, "nan"), (lambda y, _: y.sum().abs() / 0, "inf")]
)
def test_a_loss_that_is_no_number_ends_the_training(few: Split, loss: Any, said: str) -> None:
    module = _linear()
    with pytest.raises(TrainingError, match=rf"the loss became {said} in epoch 1 at lr=0.003; a lower lr") as caught:
        _tune(module, few, objective=Objective(loss, "own"), epochs=2, lr=3e-3)
    assert "\n" not in str(caught.value)
    assert not module.training


def test_a_loss_that_grows_without_bound_ends_the_training(few: Split) -> None:
    with pytest.raises(TrainingError, match=r"training diverged: mean loss .* in epoch \d, .* at the start"):
        _tune(_linear(), few, epochs=3, lr=100.0, schedule="constant")


def test_weights_that_break_in_the_last_step_are_noticed(few: Split) -> None:
    """The loss of the only batch is fine; its gradient is not."""

    def loss(y: Tensor, _: Tensor) -> Tensor:
        return (y * 0).sum().sqrt()

    with pytest.raises(
        TrainingError, match=r"weight became NaN or infinite in epoch 1 at lr=0.001; a lower lr may help"
    ):
        _tune(_linear(), few, objective=Objective(loss, "own"), epochs=1, batch_size=128)


class OneNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("kind", ["mse", "l1", "own"])
@pytest.mark.parametrize("column", [True, False])
def test_regression(kind: str, column: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 3.0]) + 1
    data = read(TensorDataset(x, y[:, None].double() if column else y), "train")
    module = OneNumber()
    history = _tune(module, data, objective=Objective(None, kind), epochs=40, lr=0.1)
    assert history.loss[-1] < 0.05 * history.loss[0]
    assert torch.allclose(module(x)[:, 0], y, atol=0.3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_class_numbers_of_any_whole_type(few: Split, dtype: torch.dtype) -> None:
    history = _tune(_linear(), Split(few.inputs, few.labels.to(dtype), ""), epochs=3)
    assert history.loss[-1] < history.loss[0]


def test_an_unknown_loss_is_no_number_rather_than_a_wrong_one() -> None:
    own = Objective(None, "own")
    assert math.isnan(own.value(torch.zeros(4, 3), torch.zeros(4, 7), 0.0))
    outputs, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert own.value(outputs, labels, 0.0) == F.cross_entropy(outputs, labels)
    assert own.value(torch.ones(4, 1), torch.tensor([1, 1, 0, 0]), 0.0) == 0.5


def test_objectives() -> None:
    assert make_objective(None, "mse", "mse") == Objective(None, "mse")
    loss = F.cross_entropy
    assert make_objective(loss, "mse", "mse") == Objective(loss, "own")
    with pytest.raises(TaskError, match="metric 'mine' has no usual loss to train with; give the task a loss="):
        make_objective(None, None, "mine")


def test_a_last_batch_of_one_is_left_out(digits: Any) -> None:
    """BatchNorm over a single value cannot be trained; 65 = 64 + 1."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    sizes: list[int] = []
    module[1].register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    data = read(TensorDataset(*(x[:65] for x in digits.train)), "train")
    history = _tune(module, data, epochs=2, batch_size=64)
    assert sizes == [64, 64]
    assert all(math.isfinite(value) for value in history.loss)
    sizes.clear()
    _tune(module, data, epochs=0, batch_size=64)
    assert sizes == [64]


def test_batches_of_one_train_where_they_were_asked_for(digits: Any) -> None:
    data = read(TensorDataset(*(x[:20] for x in digits.train)), "train")
    module = _linear()
    assert len(_tune(module, data, epochs=1, batch_size=1).loss) == 1
    assert not _same(module, _linear())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules(few: Split, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    _tune(_linear(), few, epochs=10, batch_size=16, lr=0.01, schedule=schedule)
    assert len(rates) == 80
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    falling = all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert falling
    expected = {"cosine": 0.005, "linear": 0.005, "constant": 0.01}[schedule]
    assert rates[4 + 38] == pytest.approx(expected, rel=0.01)
    assert rates[-1] == pytest.approx({"cosine": 4.3e-6, "linear": 1.3e-4, "constant": 0.01}[schedule], rel=0.05)


def test_predictions_are_of_eval_mode_for_all_inputs(cnn: nn.Module, digits: Any) -> None:
    cnn.train()
    before = copy.deepcopy(cnn.state_dict())
    (found,) = predict(cnn, (digits.val[0],), CPU, batch=77)
    assert cnn.training
    assert all(torch.equal(x, before[name]) for name, x in cnn.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(found, cnn.eval()(digits.val[0]), atol=1e-5)


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
    module = _linear()
    trained = own_finetune(_own(_in_place), module, [1, 2, 3], FinetuneSettings(epochs=7), 0)
    assert trained is module
    assert not trained.training
    assert torch.equal(trained[1].bias, _linear()[1].bias + 1.0)
    assert capsys.readouterr() == ("", "my own loop\n")
    other = _linear()
    assert own_finetune(_own(lambda _: other), module, [1, 2, 3], FinetuneSettings(epochs=7), 0) is other


def test_an_own_loop_is_seeded() -> None:
    drawn: list[tuple[float, float]] = []

    def loop(module: nn.Module, train: Any, settings: Any) -> None:  # noqa: ARG001
        drawn.append((float(torch.rand(())), float(np.random.random())))

    for seed in (1, 1, 2):
        own_finetune(loop, _linear(), None, FinetuneSettings(), seed)
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
        (_fail, r"the task's finetune raised ValueError: no more data \(.*test_finetuning.py:\d+\)$"),
        (_exit, r"raised SystemExit: usage \(.*test_finetuning.py:\d+\)$"),
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
        own_finetune(_own(body), _linear(), [1, 2, 3], FinetuneSettings(epochs=7), 0)
    assert "\n" not in str(caught.value)

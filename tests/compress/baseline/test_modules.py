"""The baseline: made once, kept, loaded without running anything that a file brings."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.baseline.modules import load, make_module, save
from compress.networks.fingerprints import state_hash
from compress.tasks.fingerprints import source_hash
from compress.tasks.tasks import Task
from targets.errors import RunError, TaskError


class Net(nn.Module):
    """A class of the user's own, with a submodule and a plain attribute."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.scale = 2.0
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.body(x)


class Activated(Net):
    """Holds a function: its file needs more than classes."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = F.layer_norm


class Touch:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def _task(model: Any) -> Task:
    return Task("mine", model, val=[(torch.zeros(3), 0), (torch.zeros(3), 1)])


def _counted(make: Callable[[], Any] = Net) -> tuple[Callable[[], Any], list[int]]:
    calls: list[int] = []

    def function() -> Any:
        calls.append(1)
        return make()

    return function, calls


def test_a_module_is_copied_and_put_into_eval_mode() -> None:
    net = Net().train()
    made = make_module(_task(net))
    assert not made.training
    assert net.training
    with torch.no_grad():
        made.body[0].weight.zero_()
    assert net.body[0].weight.abs().sum() > 0


def test_a_function_is_given_the_same_seed_every_time() -> None:
    before = torch.random.get_rng_state()
    assert state_hash(make_module(_task(Net))) == state_hash(make_module(_task(Net)))
    assert torch.equal(torch.random.get_rng_state(), before), "the user's own random numbers go on"


def test_a_dry_run_asks_for_the_bare_network() -> None:
    asked: list[bool] = []

    def function(trained: bool = True) -> nn.Module:
        asked.append(trained)
        return Net()

    make_module(_task(function))
    make_module(_task(function), trained=False)
    assert asked == [True, False]


@pytest.mark.parametrize(
    "module",
    [
        Net,
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, activation="gelu"),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, activation=F.silu),
    ],
)
def test_what_a_function_made_comes_back_without_calling_it(tmp_path: Path, module: Callable[[], nn.Module]) -> None:
    function, calls = _counted(module)
    task = _task(function)
    made = make_module(task)
    save(made, tmp_path / "baseline", whole=True)
    again = load(task, tmp_path / "baseline")
    assert calls == [1]
    assert state_hash(again) == state_hash(made)
    assert not again.training


def test_the_forward_pass_is_the_same_after_loading(tmp_path: Path) -> None:
    made = make_module(_task(Net))
    save(made, tmp_path, whole=True)
    x = torch.randn(5, 3)
    assert torch.equal(load(_task(Net), tmp_path)(x), made(x))


def test_a_module_of_the_tasks_gets_the_stored_weights(tmp_path: Path) -> None:
    first, second = Net(), Net()
    save(first, tmp_path, whole=False)
    assert not (tmp_path / "module.pt").exists()
    assert state_hash(load(_task(second), tmp_path)) == state_hash(first)


@pytest.mark.parametrize("local", [True, False], ids=["a class within a function", "a function as attribute"])
def test_what_cannot_be_stored_is_made_again(tmp_path: Path, local: bool, capsys: pytest.CaptureFixture[str]) -> None:
    class Local(Net):
        pass

    function, calls = _counted(Local if local else Activated)
    task = _task(function)
    made = make_module(task)
    save(made, tmp_path, whole=True)
    assert capsys.readouterr().err.count("\n") == (1 if local else 0)
    assert state_hash(load(task, tmp_path)) == state_hash(made)
    assert calls == [1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == (["weights.pt"] if local else ["module.pt", "weights.pt"])


def test_a_network_that_is_made_again_is_not_trained_again(tmp_path: Path) -> None:
    asked: list[bool] = []

    def function(trained: bool = True) -> nn.Module:
        asked.append(trained)
        return Activated()

    made = make_module(_task(function))
    save(made, tmp_path, whole=True)
    assert state_hash(load(_task(function), tmp_path)) == state_hash(made)
    assert asked == [True, False]


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "within a module"])
def test_an_evil_file_is_not_run(tmp_path: Path, form: str) -> None:
    function, calls = _counted()
    task = _task(function)
    made = make_module(task)
    save(made, tmp_path, whole=True)
    touched, path = tmp_path / "touched", tmp_path / "module.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Touch(touched)))
    elif form == "within a module":
        made.evil = Touch(touched)
        torch.save(made, path)
    else:
        torch.save(Touch(touched), path, _use_new_zipfile_serialization=form == "torch")
    again = load(task, tmp_path)
    assert not touched.exists()
    assert isinstance(again, Net)
    assert calls == [1, 1]
    # The file would have done it: otherwise this shows nothing.
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert touched.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 torn"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    function, calls = _counted()
    save(make_module(_task(function)), tmp_path, whole=True)
    (tmp_path / "module.pt").write_bytes(content)
    assert isinstance(load(_task(function), tmp_path), Net)
    assert calls == [1, 1]
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(RunError, match=r"weights.pt' cannot be read") as caught:
        load(_task(function), tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path) -> None:
    save(Net(4), tmp_path, whole=False)
    with pytest.raises(RunError, match=r"another model: .*size mismatch.*choose another --out") as caught:
        load(_task(Net(5)), tmp_path)
    assert "\n" not in str(caught.value)


def _with(value: float) -> nn.Module:
    net = Net()
    with torch.no_grad():
        net.body[3].weight[0, 0] = value
    return net


def _statistic() -> nn.Module:
    net = Net()
    net.body[1].running_var[0] = float("nan")
    return net


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (_with(float("nan")), r"weight 'body.3.weight' holds NaN"),
        (_with(float("inf")), "NaN or infinite"),
        (_statistic(), "running_var"),
        (nn.Sequential(nn.LazyLinear(3)), r"weight '0.weight' has no shape yet"),
        (nn.Sequential(nn.ReLU()), "no parameters"),
        (lambda: 5, "returned int, not an nn.Module"),
        (lambda: None, "returned NoneType"),
        (lambda: _with(float("nan")), "holds NaN"),
        (lambda: 1 / 0, r"raised ZeroDivisionError: division by zero \(.*test_modules.py:\d+\)"),
        (lambda x: x, "missing 1 required positional argument"),
        (5, "model is int"),
        (torch.relu, r"the model function of task '.*' raised TypeError"),
    ],
)
def test_models_that_cannot_be_worked_with(model: Any, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where the stack trace goes
    with pytest.raises(TaskError, match=said) as caught:
        make_module(_task(model))
    assert "\n" not in str(caught.value)


def test_what_a_model_function_prints_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def function() -> nn.Module:
        print("epoch 1")
        return Net()

    make_module(_task(function))
    assert capsys.readouterr() == ("", "epoch 1\n")


def _loss_a(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).abs().mean()


def _loss_b(outputs: Tensor, labels: Tensor, power: float = 2.0) -> Tensor:
    return (outputs - labels).abs().pow(power).mean()


def _made(alpha: float, weight: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return alpha * _loss_a(outputs, labels) * (1 if weight is None else weight)

    return loss


class Called:
    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.alpha * _loss_a(outputs, labels)

    def method(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self(outputs, labels)


MAKERS: list[Callable[[], Any]] = [
    lambda: _loss_a,
    lambda: _loss_b,
    lambda: functools.partial(_loss_b, power=2.0),
    lambda: functools.partial(_loss_b, power=3.0),
    lambda: _made(1.0),
    lambda: _made(2.0),
    lambda: _made(2.0, torch.ones(2)),
    lambda: _made(2.0, torch.zeros(2)),
    lambda: Called(1.0),
    lambda: Called(2.0),
    lambda: Called(1.0).method,
    lambda: nn.CrossEntropyLoss(),
    lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    lambda: nn.CrossEntropyLoss(weight=torch.ones(3)),
    lambda: nn.CrossEntropyLoss(weight=torch.arange(3.0)),
    lambda: nn.MSELoss(),
]


def test_a_function_is_known_by_its_source_and_by_what_it_was_made_with() -> None:
    assert source_hash(None) is None
    hashes = [source_hash(make()) for make in MAKERS]
    assert hashes == [source_hash(make()) for make in MAKERS], "made anew, the same"
    assert len(set(hashes)) == len(hashes)


def test_the_state_hash_is_of_weights_and_buffers() -> None:
    net = Net()
    before = state_hash(net)
    net.body[1].running_mean += 1
    assert state_hash(net) != before


class Masked(Net):
    """Has buffers: a causal mask of -inf, and whatever it is given."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.triu(torch.full((4, 4), float("-inf")), 1))
        for name, value in buffers.items():
            self.register_buffer(name, value)


def test_a_mask_of_infinities_is_no_broken_weight() -> None:
    module = make_module(_task(Masked()))
    assert torch.isinf(module.state_dict()["mask"]).any()


def _statistic(value: float) -> nn.Module:
    module = Masked()
    module.body[1].running_var[0] = value
    return module


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (lambda: Masked(scale_of=torch.tensor([1.0, float("nan")])), "scale_of"),
        (lambda: _statistic(float("inf")), "body.1.running_var"),
        (lambda: _statistic(float("nan")), "body.1.running_var"),
    ],
)
def test_buffers_that_are_broken_are_refused(module: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(TaskError, match=f"weight '{name}' holds NaN or infinite"):
        make_module(_task(module()))

"""Every way in which people hold a network: it works, or one line says what it is and what to give instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import compress
from targets.errors import CompressError, TaskError
from targets.runtimes.fake.fake_target import FakeTarget

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


class Around(nn.Module):
    """A wrapper as libraries have them: it only passes the call on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class WithScripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = torch.jit.script(nn.Linear(6, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


class FullyShardedDataParallel(Around):
    """By its name what torch's own is, which needs a process group."""


class WholeNumbers(nn.Linear):
    """As libraries for int8 weights keep them."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.weight = nn.Parameter(torch.ones(3, 6, dtype=torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.float().T


class Packed(torch.Tensor):
    """A weight in parts, as libraries for quantization and sharding keep theirs."""

    @staticmethod
    def __new__(cls, whole: Tensor) -> Tensor:
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=whole.dtype)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole

    def __tensor_flatten__(self) -> Any:
        return ["whole"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, *_: Any) -> Tensor:
        return Packed(inner["whole"])

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return Packed(args[0].whole.detach())
        return function(*(x.whole if isinstance(x, Packed) else x for x in args), **(kwargs or {}))


def packed() -> nn.Module:
    module = plain()
    module[2].weight = nn.Parameter(Packed(torch.ones(3, 16)))
    return module


def dynamically_quantized() -> Any:
    return torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear})


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "script": (lambda: torch.jit.script(plain()), "TorchScript module"),
    "trace": (lambda: torch.jit.trace(plain(), X[:4]), "TorchScript module"),
    "scripted layer": (WithScripted, "layer 'inner' of the model.* is a TorchScript module"),
    "program": (lambda: torch.export.export(plain(), (X[:4],)), "program of torch.export"),
    "module of a program": (lambda: torch.export.export(plain(), (X[:4],)).module(), "torch.export program"),
    "packed": (packed, "weight 'weight' of layer '2' of the model.* is a Packed, not a plain tensor"),
    "sharded": (lambda: FullyShardedDataParallel(plain()), "FSDP"),
    "quantized": (dynamically_quantized, "quantized already"),
    "whole numbers": (lambda: nn.Sequential(nn.ReLU(), WholeNumbers()), "layer '1' of the model.* weights of int8"),
}


def never(graph: Any, inputs: Any) -> Any:  # noqa: ARG001  what a compiler is given
    """A compiler that must not be asked: it would be, for every width that is tried."""
    raise AssertionError("a layer was compiled")


TAKEN: dict[str, Callable[[], nn.Module]] = {
    "data parallel": lambda: nn.DataParallel(plain()),
    "compiled": lambda: torch.compile(plain(), backend=never),
    "compiled within": lambda: nn.Sequential(torch.compile(plain(), backend=never)),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(plain()),
    "wrapped": lambda: Around(plain()),
    "fx": lambda: torch.fx.symbolic_trace(plain()),
}
pytestmark = pytest.mark.filterwarnings("ignore")


def searched(model: Any, folder: Path) -> None:
    space = compress.SearchSpace(epochs=1, prune_ratio=0.5, precision="fp32")
    data: Any = TensorDataset(X, Y)
    task = compress.Task("kind", model, data, data, None)
    limits = ["quality_drop<=1"]
    result = compress.search(task, FakeTarget(), trials=1, space=space, out=folder / "run", constraints=limits)
    assert not result.report["failures"]
    assert len(result.candidates()) == 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_layers_to_work_with_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, said = REFUSED[name]
    model = make()
    calls = (
        lambda: compress.prune(model, X[:4]),
        lambda: compress.find_groups(model, X[:4]),
        lambda: compress.export(model, X[:4], tmp_path / "m.onnx"),
        lambda: searched(model, tmp_path),
    )
    for call in calls:
        with pytest.raises(CompressError, match=said) as caught:
            call()
        assert isinstance(caught.value, TaskError)
        assert "\n" not in str(caught.value)
        assert "give" in str(caught.value)


def twice(x: Tensor) -> Tensor:
    return x * 2


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (twice, "the model is function: give an nn.Module"),
        (torch.jit.script(twice), "the model is a TorchScript function, which has no layers to work with: give"),
    ],
)
def test_functions_are_no_modules(function: Any, said: str) -> None:
    """In a task a function stands for the module that it makes; nowhere else."""
    for call in (compress.prune, compress.find_groups):
        with pytest.raises(TaskError, match=said):
            call(function, X[:4])


@pytest.mark.parametrize("name", TAKEN)
def test_wrappers_are_no_obstacle(name: str, tmp_path: Path) -> None:
    model = TAKEN[name]()
    small = compress.prune(model, X[:4], 0.5)
    assert [tuple(row[1:]) for row in small.pruned] == [(16, 8)]
    assert compress.export(model, X[:4], tmp_path / "m.onnx").max_abs < 1e-5
    assert compress.export(small.module, X[:4], tmp_path / "small.onnx").max_abs < 1e-5


@pytest.mark.parametrize(
    "name", ["wrapped", *(pytest.param(n, marks=pytest.mark.slow) for n in TAKEN if n != "wrapped")]
)
def test_wrapped_networks_are_searched(name: str, tmp_path: Path) -> None:
    searched(TAKEN[name](), tmp_path)

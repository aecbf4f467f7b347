"""Networks that are called, or answer, in ways that a graph does not know: exported right, their names kept."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compress
from compress.networks.running import outputs_of
from compress.onnx_files.parity import open_session
from targets.errors import ExportError

Pair = namedtuple("Pair", ["scores", "hidden"])


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None
    states: tuple[Tensor, ...] = ()


class Output(OrderedDict):  # type: ignore[type-arg]
    """What libraries return: a dict whose entries are attributes as well."""

    logits = property(lambda self: self["logits"])


@dataclass
class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As libraries have it: a data class that is also a dict, of those of its fields that are not None."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past: Any = None
    hidden_states: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if value is not None:
                super().__setitem__(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self:
            super().__setitem__(name, value)
        super().__setattr__(name, value)


class Cache:
    """What a network keeps for the next call: no output."""

    def __init__(self, key: Tensor) -> None:
        self.key = key


class Returns(nn.Module):
    """Gives what ``form`` makes of its scores and hidden values."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.form = nn.Linear(6, 16), nn.Linear(16, 3), form

    def forward(self, x: Tensor) -> Any:
        hidden = self.a(x).relu()
        return self.form(self.b(hidden), hidden)


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[str] | None]] = {
    "none": (lambda s, _: (s, None), None),
    "none first": (lambda s, _: (None, s), None),
    "dict": (lambda s, h: {"scores": s, "hidden": h}, ["scores", "hidden"]),
    "dict with none": (lambda s, _: {"loss": None, "logits": s}, ["logits"]),
    "dict of dicts": (lambda s, h: {"out": {"a": s, "b": h}, "c": [h * 2]}, ["out.a", "out.b", "c.0"]),
    "named tuple": (Pair, ["scores", "hidden"]),
    "data class": (lambda s, h: Answer(s, None, (h, h + 1)), ["logits", "states.0", "states.1"]),
    "model output": (lambda s, h: Output(logits=s, hidden_states=(h,)), ["logits", "hidden_states.0"]),
    "a data class that is a dict": (
        lambda s, h: ModelOutput(logits=s, past=Cache(h), hidden_states=(h, h + 1)),
        ["logits", "hidden_states.0", "hidden_states.1"],
    ),
    "namespace": (lambda s, h: SimpleNamespace(logits=s, aux=None, inner={"h": h}), ["logits", "inner.h"]),
    "nested tuples": (lambda s, h: (s, (h, (h + 1, None))), None),
    "one value twice": (lambda s, _: {"first": s, "second": s}, ["first", "second"]),
    "a number beside": (lambda s, _: {"logits": s, "layers": 2}, ["logits"]),
    "named as input and weight": (lambda s, h: {"x": s, "a.weight": h}, ["x_1", "a.weight_1"]),
}


def made(form: Callable[[Tensor, Tensor], Any]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Returns(form).eval(), torch.randn(4, 6)


def run(path: Path, **inputs: Tensor) -> list[np.ndarray]:
    return list(open_session(path).run(None, {name: x.numpy() for name, x in inputs.items()}))


@pytest.mark.parametrize("name", FORMS)
def test_whatever_is_returned_comes_out_as_tensors_with_their_names(name: str, tmp_path: Path) -> None:
    form, names = FORMS[name]
    network, x = made(form)
    compress.export(network, x, tmp_path / "m.onnx")
    for found, expected in zip(run(tmp_path / "m.onnx", x=x), outputs_of(network(x)), strict=True):
        assert np.allclose(found, expected.detach().numpy(), atol=1e-5)
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert names is None or [value.name for value in graph.output] == names
    assert {"a.weight", "b.weight", "b.bias"} <= {t.name for t in graph.initializer} | {"a.weight"}
    small = compress.prune(network, x, 0.5)
    assert compress.export(small.module, x, tmp_path / "small.onnx").max_abs < 1e-5


def test_a_network_that_returns_no_tensor_is_refused(tmp_path: Path) -> None:
    network, x = made(lambda _, __: None)
    with pytest.raises(ExportError, match="without a tensor"):
        compress.export(network, x, tmp_path / "m.onnx")


class Normalises(nn.Module):
    """Writes to its input, or to a view of it."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.write = nn.Linear(6, 16), nn.Linear(16, 3), write

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.write(x)).relu())


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "normalised": lambda x: x.sub_(0.5).div_(0.2),
    "masked": lambda x: x.masked_fill_(x < 0, 0.0),
    "a view": lambda x: (x[:, :2].mul_(3.0), x)[1],
    "relu in place": lambda x: F.relu(x, inplace=True),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_a_network_writes_to_is_not_the_callers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Normalises(WRITES[name]).eval(), torch.randn(4, 6)
    before = x.clone()
    expected = network(x.clone()).detach().numpy()
    compress.export(network, x, tmp_path / "m.onnx")
    assert torch.equal(x, before)
    assert np.allclose(run(tmp_path / "m.onnx", x=before)[0], expected, atol=1e-4)
    assert len(onnx.load(tmp_path / "m.onnx").graph.output) == 1
    small = compress.prune(network, x, 0.5)
    assert torch.equal(x, before)
    assert [row[0] for row in small.pruned] == ["a"]


RANDOM: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "seldom": lambda x: F.dropout(x, 0.05),
    "noise": lambda x: x + 0.1 * torch.rand_like(x),
    "a layer made on the way": lambda x: nn.Dropout(0.3)(x),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.8)),
    "numpy": lambda x: x * float(np.random.rand()),
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_network_that_is_random_in_eval_mode_is_told_so(name: str, tmp_path: Path) -> None:
    network, x = Normalises(RANDOM[name]).eval(), torch.randn(4, 6)
    with pytest.raises(ExportError, match="random in eval mode") as caught:
        compress.export(network, x, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()
    small = compress.prune(network, x, 0.5)
    assert not small.pruned
    assert all("random in eval mode" in why for _, why in small.kept)
    assert "random in eval mode" in compress.find_blocks(network, x).kept[0][1]


def test_dropout_that_training_needs_is_no_chance(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    assert compress.export(network, torch.randn(4, 6), tmp_path / "m.onnx").max_abs < 1e-5
    assert network.training


class Mixed(nn.Module):
    """An embedding of whole numbers beside real ones, and a buffer."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(10, 8), nn.Linear(14, 16), nn.Linear(16, 3)
        self.register_buffer("offset", torch.ones(16))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.b(self.a(torch.cat([x, self.embed(ids)], 1)).relu() + self.offset)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_written_as_float32(kind: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Mixed().to(kind).eval()
    x, ids = torch.randn(4, 6).to(kind), torch.randint(0, 10, (4,))
    assert compress.export(network, (x, ids), tmp_path / "m.onnx").max_abs < 1e-5
    found = run(tmp_path / "m.onnx", x=x.float(), ids=ids)[0]
    assert found.dtype == np.float32
    assert np.allclose(found, network(x, ids).detach().float().numpy(), atol=3e-2)
    assert network.b.weight.dtype == kind
    small = compress.prune(network, (x, ids), 0.5)
    assert [row[0] for row in small.pruned] == ["embed", "a"]
    assert small.module.get_parameter("b.weight").dtype == kind
    assert compress.export(small.module, (x, ids), tmp_path / "small.onnx").max_abs < 1e-5


def test_a_buffer_in_double_precision_alone(tmp_path: Path) -> None:
    network = Mixed().eval()
    network.offset = network.offset.double()
    x, ids = torch.randn(4, 6), torch.randint(0, 10, (4,))
    network.b = network.b.double()
    assert compress.export(network, (x, ids), tmp_path / "m.onnx").max_abs < 1e-5

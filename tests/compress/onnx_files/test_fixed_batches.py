"""Networks whose code makes a number of the batch size, or that one exporter cannot take: exported all the same.

A free batch where that can be had, else a fixed one, which is said; whatever is written computes what the network does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import compress
from compress.networks.running import forward
from compress.onnx_files.exporters import fixed_batch
from compress.onnx_files.sessions import open_session
from targets.errors import ExportError
from targets.runtimes.fake.fake_target import FakeTarget


class Small(nn.Module):
    """Two layers; ``middle`` stands between them."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.middle = nn.Linear(6, 16), nn.Linear(16, 3), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.middle(self.a(x).relu()))


class Anchors(nn.Module):
    """Keeps a grid for the shape that it met last, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.shape = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1), torch.Size()

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.a(x).relu())
        if self.shape != x.shape:
            self.shape = x.shape
            rows = torch.meshgrid(torch.arange(y.shape[2]), torch.arange(y.shape[3]), indexing="ij")
            self.grid = torch.stack(rows).flatten(1).float()
        return y.flatten(2)[:, :2] + self.grid


class Packed(nn.Module):
    """A recurrent layer over packed sequences, which the exporter of programs does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((x.shape[0],), x.shape[1])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(out.mean(1))


class Gridded(nn.Module):
    """An input that holds samples beside one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(2, 8)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return self.a(x).relu() @ self.b(grid).relu().T


def numpy_ones(x: Tensor) -> Tensor:
    return x * torch.from_numpy(np.ones((x.shape[0], 1), np.float32))


FREE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "view by numbers": (lambda: Small(lambda y: y.view(int(y.shape[0]), 4, -1).flatten(1)), (4, 6)),
    "counts samples": (lambda: Small(lambda y: y[torch.arange(len(y))]), (4, 6)),
    "anchors": (Anchors, (4, 3, 8, 8)),
    "packed": (Packed, (4, 5, 6)),
}
FIXED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "one by one": (lambda y: torch.stack([one * 2 for one in y]), 1),
    "another for one": (lambda y: y * 2 if y.shape[0] == 1 else y, 1),
    "another for many": (lambda y: y * 2 if y.shape[0] > 4 else y, 1),
    "through numpy": (numpy_ones, 1),
    "insists on four": (lambda y: y.view(4, 16), 4),
}


def run(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    session = open_session(path)
    names = [item.name for item in session.get_inputs()]
    return session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})


@pytest.mark.parametrize("name", FREE)
def test_the_batch_is_free_where_that_can_be_had(name: str, tmp_path: Path, capsys: Any) -> None:
    kind, shape = FREE[name]
    torch.manual_seed(0)
    network, x = kind().eval(), torch.randn(shape)
    assert compress.export(network, x, tmp_path / "m.onnx").max_abs < 1e-5
    assert capsys.readouterr() == ("", "")
    for size in (1, 4, 9):
        given = torch.randn(size, *shape[1:])
        assert np.allclose(run(tmp_path / "m.onnx", given)[0], forward(network, (given,))[0], atol=1e-5)
    assert fixed_batch(onnx.load(tmp_path / "m.onnx")) is None


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_batch_is_said_and_right(name: str, tmp_path: Path, capsys: Any) -> None:
    middle, size = FIXED[name]
    torch.manual_seed(0)
    network = Small(middle).eval()
    assert compress.export(network, torch.randn(4, 6), tmp_path / "m.onnx").max_abs < 1e-5
    assert fixed_batch(onnx.load(tmp_path / "m.onnx")) == size
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"the file of Small takes {'one sample' if size == 1 else f'{size} samples'} at a time: ")
    x = torch.randn(size, 6)
    assert np.allclose(run(tmp_path / "m.onnx", x)[0], forward(network, (x,))[0], atol=1e-5)


@pytest.mark.parametrize(
    "middle", [lambda y: y.relu() if y.sum() > 0 else y, lambda y: y[:, : int(y.max()) + 8]], ids=["branch", "number"]
)
def test_what_depends_on_values_is_frozen_in_no_file(middle: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    network = Small(middle).eval()
    with pytest.raises(ExportError, match="cannot be exported to ONNX") as caught:
        compress.export(network, torch.rand(4, 6), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_input_without_samples_keeps_its_size(tmp_path: Path) -> None:
    network = Gridded().eval()
    compress.export(network, (torch.randn(4, 6), torch.randn(7, 2)), tmp_path / "m.onnx")
    x, grid = torch.randn(9, 6), torch.randn(7, 2)
    assert np.allclose(run(tmp_path / "m.onnx", x, grid)[0], forward(network, (x, grid))[0], atol=1e-5)
    shapes = [value.type.tensor_type.shape.dim for value in onnx.load(tmp_path / "m.onnx").graph.input]
    assert [dims[0].dim_value for dims in shapes] == [0, 7]


def test_a_search_scores_such_a_network_one_example_at_a_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Small(lambda y: torch.stack([one * 2 for one in y]))
    x = torch.randn(60, 6)
    data: Any = TensorDataset(x, (x.mean(1) > 0).long())
    space = compress.SearchSpace(epochs=1, prune_ratio=0.5, precision="int8")
    task = compress.Task("one-by-one", network, data, data, None)
    run = {"trials": 1, "space": space, "out": tmp_path / "run"}
    result = compress.search(task, FakeTarget(), constraints=["quality_drop<=1"], **run)
    assert not result.report["failures"]
    assert {one.id for one in result.candidates()} == {"baseline", "0000-int8"}
    for path in (tmp_path / "run").glob("candidates/*/model.onnx"):
        assert fixed_batch(onnx.load(path)) == 1


def test_training_in_int8_says_that_it_needs_a_free_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Small(lambda y: torch.stack([one * 2 for one in y])), torch.randn(60, 6)
    data: Any = TensorDataset(x, (x.mean(1) > 0).long())
    space = compress.SearchSpace(epochs=1, qat_epochs=1, prune_ratio=0.5, precision="int8-qat")
    task = compress.Task("one-by-one", network, data, data, None)
    run = {"trials": 1, "space": space, "out": tmp_path / "run"}
    result = compress.search(task, FakeTarget(), constraints=["quality_drop<=1"], **run)
    [failure] = result.report["failures"]
    assert "takes 1 sample(s) at a time" in failure["cause"]

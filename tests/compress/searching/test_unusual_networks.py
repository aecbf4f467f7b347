"""Searches of networks whose forward is unlike others: what they write to, what types they compute in, chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import compress
from compress.results import Result
from targets.errors import CompressError
from targets.runtimes.fake.fake_target import FakeTarget

X = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
SPACE = compress.SearchSpace(epochs=1, prune_ratio=0.5, precision=compress.Choice("fp32", "int8"), distill_weight=0.5)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.sub_(0.5).div_(0.2)).relu())


class Chance(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(self.a(x), 0.5).relu())


def searched(network: nn.Module, data: Any, folder: Path, **changes: Any) -> Result:
    task = compress.Task("unusual", network, data, data, None, **changes)
    limits = ["quality_drop<=1"]
    result = compress.search(task, FakeTarget(), trials=1, space=SPACE, out=folder / "run", constraints=limits)
    assert not result.report["failures"]
    return result


def test_a_network_that_writes_to_its_input_does_not_harm_the_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, data = InPlace().eval(), TensorDataset(X.clone(), Y)
    expected = float((network(X.clone()).argmax(1) == Y).float().mean())
    result = searched(network, data, tmp_path)
    assert torch.equal(data.tensors[0], X)
    for _ in range(2):
        quality = result.report["candidates"][0]["measured"]["fake"]["quality"]["val"]
        assert quality["value"] == pytest.approx(expected)
        result = searched(network, data, tmp_path)
    small = next(one for one in result.candidates() if one.id != "baseline").module()
    x = X.clone()
    small(x)
    assert not torch.equal(x, X), "handed out, it is what it was: nothing is copied for it"


def test_a_network_that_is_random_in_eval_mode_is_not_searched(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="random in eval mode"):
        searched(Chance(), TensorDataset(X, Y), tmp_path)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_modules_and_data_of_other_floating_types(kind: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)).to(kind)
    result = searched(network, TensorDataset(X.to(kind), Y), tmp_path)
    assert len(result.candidates()) >= 3
    graph = onnx.load(result.candidates()[0].path).graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert next(iter(network.parameters())).dtype == kind


def test_data_in_double_precision_for_a_network_in_single(tmp_path: Path) -> None:
    arrays = [(np.asarray(x, np.float64), int(y)) for x, y in zip(X, Y, strict=True)]
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    assert searched(network, arrays, tmp_path).candidates()

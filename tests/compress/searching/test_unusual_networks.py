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
from compress.tasks.onnx_tasks import onnx_task
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


def sigmoid_network() -> nn.Sequential:
    """Right about everything."""
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network[0].weight[0, 0], network[0].weight[1, 0] = 1.0, -1.0
        network[2].weight[0, 0], network[2].weight[0, 1] = 20.0, -20.0
        network[0].weight[2:] = 0.01 * torch.randn(14, 6)
    return network


def test_sigmoid_outputs_are_scored_as_probabilities_and_said_to_be(tmp_path: Path) -> None:
    data = TensorDataset(X, Y[:, None])
    for _ in range(2):
        result = searched(sigmoid_network(), data, tmp_path, metric="multilabel_accuracy")
        quality = result.report["candidates"][0]["measured"]["fake"]["quality"]["val"]
        assert (quality["metric"], quality["value"]) == ("multilabel_accuracy", 1.0)
        said = [text for text in result.report["environment"]["warnings"] if "probabilities" in text]
        assert len(said) == 1
    assert all(one.quality.value > 0.8 for one in result.candidates() if one.id == "baseline")


def test_a_file_that_ends_in_a_sigmoid_with_yes_and_no_as_labels(tmp_path: Path) -> None:
    compress.export(sigmoid_network(), X[:4], tmp_path / "yes.onnx")
    np.savez(tmp_path / "data.npz", input=X.numpy(), labels=Y.numpy())
    task = onnx_task(tmp_path / "yes.onnx", tmp_path / "data.npz")
    result = compress.search(task, FakeTarget(), trials=1, space=SPACE, out=tmp_path / "run")
    quality = result.report["candidates"][0]["measured"]["fake"]["quality"]["val"]
    assert (quality["metric"], quality["value"]) == ("multilabel_accuracy", 1.0)
    assert any("probabilities" in text for text in result.report["environment"]["warnings"])


def test_a_softmax_is_trained_by_its_logits(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2), nn.Softmax(-1))
    result = searched(network, TensorDataset(X, Y), tmp_path)
    assert any("probabilities (softmax)" in text for text in result.report["environment"]["warnings"])
    other = searched(network, TensorDataset(X, Y), tmp_path / "own", loss=lambda a, b: F.nll_loss(a.log(), b))
    assert not any("probabilities" in text for text in other.report["environment"]["warnings"])

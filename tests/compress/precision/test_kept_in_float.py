"""Layers that are kept in float: they stay so in what the runtime really executes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch

import targets
from compress.onnx_files.exporting import export
from compress.precision.quantizer import quantizable_layers
from compress.precision.quantizing import quantize


class Between(torch.nn.Module):
    """Products with and without a ReLU behind them, each between quantized ones, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv2d(2 if i == 0 else 8, 8, 3, padding=1, bias=i % 2 == 0) for i in range(4)
        )
        self.first, self.second, self.third = (torch.nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c, d = self.convolutions
        x = torch.relu(a(x))
        x = torch.nn.functional.relu6(d(x + c(torch.relu(b(x)))))
        return self.third(torch.relu(self.second(self.first(x.mean((2, 3))))))


def test_every_layer_can_be_kept_in_float(tmp_path: Path) -> None:
    """ONNX Runtime quantizes float weights itself where they stand between quantized values."""
    torch.manual_seed(0)
    x = torch.randn(16, 2, 8, 8)
    export(Between(), x, tmp_path / "m.onnx")
    target = targets.get("ort-cpu")
    for name in quantizable_layers(tmp_path / "m.onnx"):
        found = quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", "mixed", x.numpy(), target, keep_float=(name,))
        audited = {layer.name: layer.integer for layer in target.audit(found.path) or ()}
        assert [other for other, integer in audited.items() if not integer] == [name]
        same, weight = (_weight(path, name) for path in (tmp_path / "m.onnx", found.path))
        assert np.array_equal(same, weight)
    target.close()


def _weight(path: Path, name: str) -> np.ndarray:
    graph = onnx.load(path).graph
    node = next(node for node in graph.node if node.name == name)
    return onnx.numpy_helper.to_array(next(t for t in graph.initializer if t.name == node.input[1]))

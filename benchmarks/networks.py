"""Ten networks to time, with random weights (time does not depend on them): three sizes each of a CNN, a depthwise
CNN and a transformer encoder, and a recurrent one. Written as ONNX in fp32 and, where asked, in int8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import compress
import targets
from compress.precision.converting import write_converted
from compress.precision.schemes import converts

SIZES = {"small": 1, "medium": 2, "large": 4}


@dataclass(frozen=True)
class Network:
    """A network's name, its file and a sample to run it with, batch first."""

    name: str
    path: Path
    sample: np.ndarray


def _cnn(size: int) -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((16 * size, 1), (16 * size, 1), (32 * size, 2), (32 * size, 1), (64 * size, 2)):
        layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)), torch.randn(
        8, 3, 32, 32
    )


def _depthwise(size: int) -> tuple[nn.Module, Tensor]:
    width = 32 * size
    layers: list[nn.Module] = [nn.Conv2d(1, width, (10, 4), 2, (5, 1)), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 12)), torch.randn(
        8, 1, 49, 40
    )


def _transformer(size: int) -> tuple[nn.Module, Tensor]:
    width = 48 * size
    return _Encoder(width), torch.randn(8, 32, width)


class _Encoder(nn.Module):
    """Two encoder blocks with separate projections, as exporters see them: (batch, length, width) -> (batch, 10)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                **{name: nn.Linear(width, width) for name in ("q", "k", "v", "out")},
                "up": nn.Linear(width, 4 * width), "down": nn.Linear(4 * width, width),
                "first": nn.LayerNorm(width), "second": nn.LayerNorm(width),
            })
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> (batch, 10)."""
        for block in self.blocks:
            normal = block["first"](x)
            q, k, v = (block[name](normal).unflatten(-1, (4, -1)).transpose(1, 2) for name in ("q", "k", "v"))
            scores = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
            x = x + block["out"]((scores @ v).transpose(1, 2).flatten(2))
            x = x + block["down"](torch.relu(block["up"](block["second"](x))))
        return self.head(x.mean(1))


class _Recurrent(nn.Module):
    """Two convolutions and a GRU: (batch, 1, 40, 64) -> (batch, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU())
        self.gru = nn.GRU(64 * 10, 64, batch_first=True)
        self.head = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, 40, 64) -> (batch, 12)."""
        found, _ = self.gru(self.front(x).permute(0, 3, 1, 2).flatten(2))
        return self.head(found[:, -1])


def names() -> list[str]:
    """The names of all ten networks: three kinds in three sizes each, and the recurrent one."""
    return [*(f"{kind}-{size}" for kind in ("cnn", "depthwise", "transformer") for size in SIZES), "recurrent"]


def make_networks(folder: Path, wanted: Iterable[str] | None = None) -> Iterator[Network]:
    """Write the networks that are wanted (all) as fp32 ONNX files with a dynamic batch."""
    makers = {"cnn": _cnn, "depthwise": _depthwise, "transformer": _transformer}
    for name in wanted or names():
        torch.manual_seed(0)
        kind, _, size = name.partition("-")
        module, sample = makers[kind](SIZES[size]) if kind in makers else (_Recurrent(), torch.randn(8, 1, 40, 64))
        path = folder / f"{name}.onnx"
        compress.export(module.eval(), sample, path)
        yield Network(name, path, sample.numpy())


def quantized(network: Network, target: str) -> Path:
    """The network in static int8, in the target's format."""
    if takes_tflite(target):
        return converted(network, target, "int8")
    path = network.path.with_name(f"{network.name}.int8.onnx")
    compress.quantize(network.path, path, precision="int8", calibration=network.sample, target=target)
    return path


def takes_tflite(target: str) -> bool:
    """Whether the target runs ``.tflite`` files, and makes them of ``.onnx`` ones."""
    return converts(targets.get(target).capabilities())


def converted(network: Network, target: str, precision: str) -> Path:
    """The network as the ``.tflite`` file that the target makes of it."""
    path = network.path.with_name(f"{network.name}.{precision}.tflite")
    [name] = [value.name for value in onnx.load(network.path).graph.input]
    write_converted(targets.get(target), network.path, precision, {name: network.sample}, path)
    return path

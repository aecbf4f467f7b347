"""What each post-training refinement buys: small networks trained on scikit-learn's digits, static int8 with every one.

Prints, for each network and setting, what int8 does to the outputs on held-out images (squared error over squared
output, in 1e-4; the geometric mean over seeds), how many decisions differ from the float network's and how many more
are wrong, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import compress
from compress.onnx_files.parity import open_session
from compress.precision.quantizer import quantize_static
from compress.precision.ranges import collect_ranges
from compress.precision.refining import refine
from compress.values.configs import PrecisionSettings, is_refined
from targets.target import Capabilities

SETTINGS = {
    "minmax": PrecisionSettings(),
    "percentile (99.99)": PrecisionSettings(calibration="percentile"),
    "search": PrecisionSettings(calibration="search"),
    "adaround": PrecisionSettings(adaround=True),
    "correct_bias": PrecisionSettings(correct_bias=True),
    "adaround, correct_bias": PrecisionSettings(adaround=True, correct_bias=True),
    "both, search": PrecisionSettings(calibration="search", adaround=True, correct_bias=True),
}


def _block(a: int, b: int, *, depthwise: bool = False) -> nn.Module:
    first = [nn.Conv2d(a, a, 3, 1, 1, groups=a, bias=False), nn.BatchNorm2d(a), nn.ReLU()] if depthwise else []
    kernel = 1 if depthwise else 3
    return nn.Sequential(*first, nn.Conv2d(a, b, kernel, 1, kernel // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU())


def _cnn() -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 32, 10))
    return nn.Sequential(_block(1, 16), _block(16, 16), nn.MaxPool2d(2), _block(16, 32), _block(32, 32), *head)


def _depthwise() -> nn.Module:
    body = [_block(32, 32, depthwise=True) for _ in range(4)]
    return nn.Sequential(_block(1, 32), *body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 32, 10))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = _block(1, 24), nn.Linear(24, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(_block(24, 24), nn.Conv2d(24, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, 8, 8) -> (batch, 10)."""
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class _Transformer(nn.Module):
    """Rows of the image as words."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(0.02 * torch.randn(8, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "first": nn.LayerNorm(width), "qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width),
                "second": nn.LayerNorm(width), "up": nn.Linear(width, 2 * width), "down": nn.Linear(2 * width, width),
            })
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, 8, 8) -> (batch, 10)."""
        x = self.embed(x.flatten(1, 2)) + self.place
        for block in self.blocks:
            q, k, v = block["qkv"](block["first"](x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            seen = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v
            x = x + block["out"](seen.transpose(1, 2).flatten(2))
            x = x + block["down"](nn.functional.gelu(block["up"](block["second"](x))))
        return self.head(x.mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": _mlp, "cnn": _cnn, "resnet": _Residual, "depthwise": _depthwise, "transformer": _Transformer,
}  # fmt: skip


def trained(make: Callable[[], nn.Module], seed: int, epochs: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network, and (train, test, labels of test)."""
    torch.manual_seed(seed)
    digits = load_digits()
    x = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    network = make().train()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-3)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - epoch / epochs)
        for batch in torch.randperm(900).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval(), (x[:900], x[900:], y[900:])


def outputs(path: Path, x: Tensor) -> np.ndarray:
    """Of the file, computed as integer kernels that do not saturate do."""
    session = open_session(path)
    name = session.get_inputs()[0].name
    found: np.ndarray = session.run(None, {name: x.numpy()})[0]
    return found


def quantized(path: Path, samples: dict[str, np.ndarray], settings: PrecisionSettings, able: Capabilities) -> Path:
    """Quantize the file to static int8 under these settings, beside it, and return where it is."""
    source = path.with_name("refined.onnx")
    if is_refined(settings):
        onnx.save(refine(path, samples, able, settings), source)
    else:
        source = path
    ranges, made = path.with_name("ranges.json"), path.with_name("int8.onnx")
    collect_ranges(source, samples, settings.calibration, ranges, able)
    quantize_static(source, made, ranges, settings.calibration, able)
    return made


def rows(network: str, seeds: int, epochs: int, able: Capabilities) -> Iterator[dict[str, object]]:
    """Train a network once for each seed, quantize it under every setting, and yield one row of errors per setting."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in SETTINGS}
    for seed in range(seeds):
        module, (train, test, labels) = trained(NETWORKS[network], seed, epochs)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            compress.export(module, train[:4], path)
            samples = {open_session(path).get_inputs()[0].name: train[:256].numpy()}
            expected = outputs(path, test)
            right = expected.argmax(1) == labels.numpy()
            for name, settings in SETTINGS.items():
                got = outputs(quantized(path, samples, settings, able), test)
                error = float(np.mean((got - expected) ** 2) / np.mean(expected**2))
                moved = float((got.argmax(1) != expected.argmax(1)).mean())
                found[name].append((error, moved, float(right.mean() - (got.argmax(1) == labels.numpy()).mean())))
    for name, values in found.items():
        error, moved, drop = np.array(values).T
        yield {
            "network": network, "setting": name, "bits": 7 if able.reduce_range else 8,
            "error": float(np.exp(np.log(error).mean())), "low": float(error.min()), "high": float(error.max()),
            "moved": float(moved.mean()), "drop": float(drop.mean()),
        }  # fmt: skip


def main() -> None:
    """Measure every network at every width of weights and print a table, then the same rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--bits", type=int, choices=(7, 8), action="append", help="of the weights; 7 before VNNI")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    everything = []
    print("| weights | network | setting | error, 1e-4 | least to most | decisions moved | accuracy lost |")
    print("|--:|---|---|--:|--:|--:|--:|")
    for bits in arguments.bits or (8, 7):
        for network in arguments.network or NETWORKS:
            able = Capabilities(reduce_range=bits == 7)
            for row in rows(network, arguments.seeds, arguments.epochs, able):
                everything.append(row)
                error, low, high = (1e4 * float(str(row[name])) for name in ("error", "low", "high"))
                print(
                    f"| {bits} bit | {network} | {row['setting']} | {error:.2f} | {low:.2f}-{high:.2f} "
                    f"| {100 * float(str(row['moved'])):.2f} % | {100 * float(str(row['drop'])):+.2f} % |",
                    flush=True,
                )
    print(json.dumps(everything))


if __name__ == "__main__":
    main()

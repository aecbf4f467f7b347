"""What int8 loses, over all outputs: none drowns another, and a network's order of float layers goes by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import targets
from compress.onnx_files.exporting import export
from compress.precision import layer_costs, quantizer, ranges
from compress.precision.noise import noise_share

RNG = np.random.default_rng(0)
BOXES, SCORES = RNG.normal(100, 50, (8, 4, 30)), RNG.normal(0, 1, (8, 10, 30))


def test_outputs_count_alike_whatever_they_are_measured_in() -> None:
    assert noise_share([BOXES, SCORES], [BOXES, 0 * SCORES]) == 0.5
    assert noise_share([BOXES, SCORES], [0 * BOXES, SCORES]) == 0.5
    assert noise_share([BOXES], [BOXES]) == 0.0


def test_channels_of_one_output_count_alike() -> None:
    both = np.concatenate([BOXES, SCORES], axis=1)
    lost = np.concatenate([BOXES, 0 * SCORES], axis=1)
    assert np.isclose(noise_share([both], [lost]), 10 / 14)
    assert np.isclose(noise_share([both.swapaxes(1, 2)], [lost.swapaxes(1, 2)]), 10 / 14)
    tiny = np.concatenate([BOXES, 1e-9 * SCORES], axis=1)
    assert np.isclose(noise_share([tiny], [np.concatenate([BOXES, np.ones_like(SCORES)], axis=1)]), 10 / 14)


def test_decisions_are_left_out_and_what_is_not_finite_is_the_worst() -> None:
    assert noise_share([np.array([1, 2])], [np.array([1, 3])]) == 0.0
    assert noise_share([SCORES], [np.where(SCORES > 1, np.inf, SCORES)]) == np.inf
    masked = np.where(SCORES > 1, -np.inf, SCORES)
    assert noise_share([masked], [masked]) == 0.0


class Detector(nn.Module):
    """Two outputs: large numbers that int8 hardly harms, and scores of channels that differ a thousand times."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(1, 8, 3, padding=1)
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.trunk(x))
        return self.boxes(x) * 100, self.scores(x)


def test_the_second_output_decides_what_stays_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Detector().eval()
    with torch.no_grad():
        # What the last layer needs is a thousandth of what its input's range is spent on.
        module.scores[0].weight[0] *= 1000
        module.scores[1].weight[:, 0] /= 1000
    images = torch.randn(16, 1, 6, 6)
    path, samples = tmp_path / "m.onnx", {"x": images.numpy()}
    export(module, images[:2], path)
    ranges.collect_ranges(path, samples, "minmax", tmp_path / "ranges.json")
    able = targets.get("ort-cpu").capabilities()
    errors = layer_costs.layer_errors(path, tmp_path / "ranges.json", "minmax", samples, able, tmp_path)
    names = quantizer.quantizable_layers(path)
    order = layer_costs.float_order(errors, ())
    # Its range is put on by the layer before and read by the layer itself; trunk and boxes lose next to nothing.
    assert len(order) == 4
    assert min(errors[i] for i in order[:2]) > 10 * max(errors[i] for i in order[2:])
    worst = tuple(names[i] for i in order[:2])
    made = tmp_path / "mixed.onnx"
    quantizer.quantize_static(path, made, tmp_path / "ranges.json", "minmax", able, keep_float=worst)
    whole = tmp_path / "int8.onnx"
    quantizer.quantize_static(path, whole, tmp_path / "ranges.json", "minmax", able)
    expected, mixed, int8 = (quantizer.outputs(file, quantizer_model(path), samples) for file in (path, made, whole))
    assert noise_share(expected, mixed) < 0.5 * noise_share(expected, int8)


def quantizer_model(path: Path) -> object:
    from compress.float_models.plain_models import read_plain

    return read_plain(path)

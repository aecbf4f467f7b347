"""Refinements before int8: rounding gives the learned integers, means come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import compress
from compress.float_models.plain_models import read_plain
from compress.precision.activations import inner_values
from compress.precision.adaround import columns, round_weights, scaled_rows
from compress.precision.bias_correction import correct_biases
from compress.precision.products import find_products
from compress.precision.quantizer import outputs, quantize_static
from compress.precision.ranges import collect_ranges
from compress.precision.refining import refine
from compress.values.configs import PrecisionSettings
from targets.errors import QuantizeError, RequestError, SpaceError
from targets.target import Capabilities

SEVEN, EIGHT = Capabilities(reduce_range=True), Capabilities()


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, 2, (1, 0), bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.mixed = nn.Conv2d(8, 12, (1, 3), groups=4)
        self.slope = nn.PReLU(12)
        self.head = nn.Linear(12 * 2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(nn.functional.leaky_relu(self.stem(x), 0.1)))
        return self.head(nn.functional.avg_pool2d(self.slope(self.mixed(x)), (2, 1)).flatten(1))


class Flat(nn.Module):
    """Convolution, pooling, flattening with several values a channel, two linear layers; one with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(2, 6, 3), nn.Linear(6 * 9, 7), nn.Linear(7, 5)
        self.again = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2).flatten(1)
        x = self.second(torch.relu(self.first(x)))
        return x + self.again(torch.relu(x))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 16), nn.Linear(16, 8, bias=False), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x.mean(1))[:, 1:7])))).mean(1)


def uneven(module: nn.Module) -> nn.Module:
    """Channels of very different size, as training with BatchNorm leaves them."""
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                scale = 10 ** torch.empty(len(layer.weight)).uniform_(-1, 1)
                layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    return module.eval()


@pytest.fixture(scope="module", params=[Depthwise, Flat, Words])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    torch.manual_seed(0)
    # Neighbouring pixels are alike, as in images: only then is there something to choose between two roundings.
    x = 0.3 * torch.rand(64, 2, 8, 8) + torch.rand(64, 2, 1, 1)
    path = tmp_path_factory.mktemp("networks") / f"{request.param.__name__}.onnx"
    compress.export(uneven(request.param()), x[:4], path)
    return path, x.numpy()


def _samples(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    return {onnx.load(path).graph.input[0].name: x}


def _run(model: onnx.ModelProto, samples: dict[str, np.ndarray], name: str = "") -> np.ndarray:
    return np.concatenate([x for (x,) in inner_values(model, [name or model.graph.output[0].name], samples)])


def _integers(
    model: onnx.ModelProto, folder: Path, samples: dict[str, np.ndarray], able: Capabilities
) -> onnx.ModelProto:
    onnx.save(model, folder / "f.onnx")
    collect_ranges(folder / "f.onnx", samples, "minmax", folder / "r.json")
    quantize_static(folder / "f.onnx", folder / "q.onnx", folder / "r.json", "minmax", able)
    return onnx.load(folder / "q.onnx")


@pytest.mark.parametrize("able", [SEVEN, EIGHT])
def test_rounded_weights_become_the_learned_integers(
    network: tuple[Path, np.ndarray], able: Capabilities, tmp_path: Path
) -> None:
    path, _ = network
    model, samples = read_plain(path), _samples(*network)
    rounded = round_weights(model, samples, able)
    before, after = find_products(model), find_products(rounded)
    stored = {
        t.name: onnx.numpy_helper.to_array(t) for t in _integers(rounded, tmp_path, samples, able).graph.initializer
    }
    turned = 0
    for product in before.products:
        rows = product.rows(before.array(product.weight))
        exact, scale = scaled_rows(rows.reshape(len(rows), -1), 64 if able.reduce_range else 127)
        found = product.rows(after.array(product.weight)).reshape(len(rows), -1) / scale[:, None]
        assert np.abs(found - np.rint(found)).max() < 1e-3
        assert np.abs(found - exact).max() < 1
        integers = product.rows(stored[f"{product.weight}_quantized"]).reshape(len(rows), -1)
        assert np.array_equal(integers, np.rint(found))
        turned += int((np.rint(found) != np.rint(exact)).sum())
    assert turned > 0


def test_rounding_lowers_each_layers_error(network: tuple[Path, np.ndarray]) -> None:
    """Of the first layer, whose input is the same: against rounding to the nearest, on the samples it has seen."""
    path, _ = network
    model, samples = read_plain(path), _samples(*network)
    graph = find_products(model)
    product = graph.products[0]
    rows = product.rows(graph.array(product.weight))
    exact, scale = scaled_rows(rows.reshape(len(rows), -1), 64)
    plain = read_plain(path)
    find_products(plain).write(product.weight, product.rows((np.rint(exact) * scale[:, None]).reshape(rows.shape)))
    name = product.node.output[0]
    expected = _run(model, samples, name)
    by_output = _run(round_weights(model, samples, SEVEN), samples, name)
    assert np.square(by_output - expected).sum() < 0.9 * np.square(_run(plain, samples, name) - expected).sum()


def test_columns_are_what_a_convolution_multiplies() -> None:
    """Against torch's own convolution, with padding, strides, dilation and groups."""
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((2, 4, 9, 7)).astype("f"), random.standard_normal((6, 2, 3, 2)).astype("f")
    node = onnx.helper.make_node(
        "Conv", ["x", "w"], ["y"], name="c", group=2, pads=[1, 0, 2, 1], strides=[2, 1], dilations=[2, 3]
    )
    shapes = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", shapes[:1], shapes[1:], [onnx.numpy_helper.from_array(weight, "w")])
    product = find_products(onnx.helper.make_model(graph)).products[0]
    found = columns(x, product, (3, 2), 10**6)
    made = (weight.reshape(2, 3, -1) @ found).reshape(6, 2, -1).transpose(1, 0, 2)
    padded = nn.functional.pad(torch.tensor(x), (0, 1, 1, 2))
    expected = nn.functional.conv2d(padded, torch.tensor(weight), stride=(2, 1), dilation=(2, 3), groups=2)
    assert np.allclose(made, expected.flatten(2).numpy(), atol=1e-5)
    few = columns(x, product, (3, 2), 10)
    assert few.shape[2] <= 10
    assert np.array_equal(few, found[:, :, :: -(-found.shape[2] // 10)])


def test_corrected_biases_bring_the_means_back(network: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, _ = network
    model, samples = read_plain(path), _samples(*network)
    corrected = correct_biases(model, samples, SEVEN)
    shifts = []
    for one in (model, corrected):
        made = _integers(one, tmp_path, samples, SEVEN)
        shifts.append(np.abs((_run(made, samples) - _run(model, samples)).mean(0)).mean())
    assert shifts[1] < 0.7 * shifts[0]
    names = [t.name for t in corrected.graph.initializer]
    read_by = {name for node in corrected.graph.node for name in node.input}
    assert set(names) <= read_by, "nothing is left over"


def test_layers_kept_in_float_keep_their_weights(network: tuple[Path, np.ndarray]) -> None:
    path, _ = network
    model, samples = read_plain(path), _samples(*network)
    first, *others = find_products(model).products
    rounded = find_products(round_weights(model, samples, EIGHT, (first.name,)))
    graph = find_products(model)
    assert np.array_equal(rounded.array(first.weight), graph.array(first.weight))
    assert all(not np.array_equal(rounded.array(p.weight), graph.array(p.weight)) for p in others)


@pytest.mark.parametrize("asked", [{"adaround": True}, {"correct_bias": True}])
def test_each_refinement_helps_an_uneven_network(
    asked: dict[str, bool], network: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, x = network
    expected = outputs(path, read_plain(path), _samples(path, x))[0]
    errors = []
    for settings in ({}, asked):
        made = compress.quantize(path, tmp_path / "q.onnx", calibration=x, target="ort-cpu", **settings).path
        errors.append(np.square(outputs(made, read_plain(path), _samples(path, x))[0] - expected).mean())
    assert errors[1] < errors[0]


def test_a_search_takes_the_percentile_that_leaves_least(tmp_path: Path) -> None:
    """One sample in a thousand is huge: cut off, the steps of all others are fine enough."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(512, 8)
    compress.export(net, x[:4], tmp_path / "m.onnx")
    samples = _samples(tmp_path / "m.onnx", np.where(np.arange(512)[:, None] == 7, 1.3 * x.numpy(), x.numpy()))
    errors = {}
    for method in ("minmax", "percentile", "search"):
        collect_ranges(tmp_path / "m.onnx", samples, method, tmp_path / "r.json", EIGHT)
        quantize_static(tmp_path / "m.onnx", tmp_path / "q.onnx", tmp_path / "r.json", method, EIGHT)
        model = read_plain(tmp_path / "m.onnx")
        expected = outputs(tmp_path / "m.onnx", model, samples)[0]
        errors[method] = np.square(outputs(tmp_path / "q.onnx", model, samples)[0] - expected).mean()
    assert errors["search"] <= errors["percentile"]
    assert errors["search"] < 1.05 * errors["minmax"]


def test_a_model_that_does_not_run_is_refused_in_one_line(network: tuple[Path, np.ndarray]) -> None:
    path, x = network
    with pytest.raises(QuantizeError, match=r"\.onnx cannot be refined before it is quantized") as caught:
        refine(path, _samples(path, x[:, :, :2, :2]), EIGHT, PrecisionSettings(adaround=True))
    assert "\n" not in str(caught.value)


def test_a_layer_that_is_not_there_is_named_as_everywhere(network: tuple[Path, np.ndarray]) -> None:
    path, x = network
    with pytest.raises(RequestError, match=r"keep_float names \['none'\], which .* lacks; it has"):
        refine(path, _samples(path, x), EIGHT, PrecisionSettings(correct_bias=True), ("none",))


def test_a_refinement_is_on_or_off() -> None:
    with pytest.raises(SpaceError, match=r"adaround=0\.5: must be True or False"):
        PrecisionSettings(adaround=0.5)  # type: ignore[arg-type]
    space = compress.SearchSpace(adaround=compress.Choice(True, False))
    assert space.config({"adaround": True}).precision == PrecisionSettings(adaround=True)
    assert space.config({}).precision.correct_bias is False
    with pytest.raises(SpaceError, match="correct_bias"):
        compress.SearchSpace(correct_bias=2)

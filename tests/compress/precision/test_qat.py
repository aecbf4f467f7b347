"""Training in int8: the network in torch is the integer file, before it is trained and after."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import compress
import targets
from compress.onnx_files.exporting import export
from compress.onnx_files.parity import open_session
from compress.precision import qat
from compress.precision.fake_quantization import ActivationQuantizer, WeightQuantizer
from compress.precision.quantizer import quantize_static
from compress.precision.ranges import collect_ranges
from compress.results import Result
from compress.tasks.datasets import Split
from compress.training import finetuning
from compress.training.objectives import make_objective
from compress.training.training_modes import TrainingMode
from compress.values.configs import Config, FinetuneSettings, PrecisionSettings
from compress.values.domains import Choice
from compress.values.search_spaces import SearchSpace
from targets.errors import QuantizeError, SpaceError
from targets.target import Capabilities

Search = Callable[..., Result]
SEVEN_BITS = Capabilities(int8_format="u8s8", reduce_range=True)


@dataclass(frozen=True)
class Quantized:
    """A float file, its integer file, and what was calibrated."""

    floats: Path
    integers: Path
    ranges: Path
    samples: dict[str, np.ndarray]


def _quantized(floats: Path, folder: Path, images: torch.Tensor, capabilities: Capabilities) -> Quantized:
    name = onnx.load(floats).graph.input[0].name
    found = Quantized(floats, folder / "int8.onnx", folder / "ranges.json", {name: images.numpy()})
    collect_ranges(floats, found.samples, "minmax", found.ranges)
    quantize_static(floats, found.integers, found.ranges, "minmax", capabilities)
    return found


def _run(path: Path, images: torch.Tensor) -> np.ndarray:
    session = open_session(path)
    outputs: np.ndarray = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    return outputs


def _accuracy(path: Path, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float((_run(path, data[0]).argmax(1) == data[1].numpy()).mean())


def _train(digits: Any, settings: FinetuneSettings) -> Callable[[nn.Module, FinetuneSettings], nn.Module]:
    def train(network: nn.Module, asked: FinetuneSettings) -> nn.Module:
        assert asked == settings
        split = Split((digits.train[0],), digits.train[1], "digits")
        objective = make_objective(None, "cross_entropy", "accuracy")
        finetuning.finetune(network, split, asked, objective, mode=TrainingMode(), seed=0)
        return network

    return train


def spoiled(module: nn.Module) -> nn.Module:
    """The same function with one channel 300 times as large behind the first ReLU: no range fits all channels."""
    with torch.no_grad():
        norm, following = module.get_submodule("1"), module.get_submodule("3")
        for name in ("weight", "bias"):
            getattr(norm, name)[0] *= 300
        following.get_parameter("weight")[:, 0] /= 300
    return module


# -- one quantizer


def test_a_range_is_quantized_as_onnx_runtime_does_it(tmp_path: Path) -> None:
    x = torch.linspace(-2, 3, 997)
    constants = [("s", np.float32(3 / 255)), ("z", np.uint8(85))]
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
         helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "q.onnx")
    found = ActivationQuantizer("x", -1.0, 2.0, 0, 255)(x)
    np.testing.assert_allclose(found.detach().numpy(), _run(tmp_path / "q.onnx", x), atol=1e-6)


def test_what_is_cut_off_pulls_at_the_range_and_what_is_inside_is_passed_on() -> None:
    quantizer = ActivationQuantizer("x", 0.0, 1.0, 0, 255)
    x = torch.tensor([-1.0, 0.5, 4.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 0.0]
    assert quantizer.log_high.grad is not None
    assert quantizer.log_high.grad.item() == pytest.approx(10.0, abs=0.1), "of the one value above it"
    with torch.no_grad():
        quantizer.log_low += 0.2
        quantizer.log_high += 0.1
    low, high = quantizer.limits()
    assert low.item() == 0.0, "a folded ReLU stays one"
    assert high.item() == pytest.approx(np.e)


def test_weights_are_rounded_by_output_channel_and_learn_as_if_they_were_not() -> None:
    weight = torch.tensor([[1.0, 0.3], [100.0, -31.0]], requires_grad=True)
    found = WeightQuantizer(0, 64)(weight)
    expected = torch.tensor([[64, 19], [64, -20]]) * torch.tensor([[1.0], [100.0]]) / 64
    torch.testing.assert_close(found, expected)
    (found * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 2.0], [3.0, 4.0]]


# -- a network


@pytest.mark.parametrize("int8_format", ["u8s8", "s8s8"])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_the_network_decides_as_the_integer_file_does(
    exported: Path, digits: Any, tmp_path: Path, int8_format: str, reduce_range: bool
) -> None:
    capabilities = Capabilities(int8_format=int8_format, reduce_range=reduce_range)
    made = _quantized(exported, tmp_path, digits.train[0][:128], capabilities)
    network = qat.make_network(made.floats, made.integers, made.samples).eval()
    assert {layer.most for layer in network.layers} == {64 if reduce_range else 127}
    expected, found = _run(made.integers, digits.test[0]), network(digits.test[0]).detach().numpy()
    assert (expected.argmax(1) == found.argmax(1)).mean() >= 0.99
    assert np.abs(expected - found).mean() < 0.02 * np.abs(expected).mean()
    # Untrained, it goes back to the very same integers.
    qat.write_floats(network, made.floats, tmp_path / "floats.onnx")
    qat.write_ranges(network, made.ranges, tmp_path / "learned.json")
    quantize_static(
        tmp_path / "floats.onnx", tmp_path / "again.onnx", tmp_path / "learned.json", "minmax", capabilities
    )
    np.testing.assert_array_equal(_run(tmp_path / "again.onnx", digits.test[0]), expected)


def test_training_regains_what_quantization_loses_and_the_file_is_integer_throughout(
    cnn: nn.Module, digits: Any, tmp_path: Path
) -> None:
    export(spoiled(cnn), digits.val[0][:4], tmp_path / "floats.onnx")
    made = _quantized(tmp_path / "floats.onnx", tmp_path, digits.train[0][:128], SEVEN_BITS)
    exact, lost = _accuracy(made.floats, digits.test), _accuracy(made.integers, digits.test)
    assert lost < exact - 0.04, "there must be something to regain"
    finetune = FinetuneSettings(lr=3e-2, dropout=0.3, l1=1e-4)
    config = Config(finetune=finetune, precision=PrecisionSettings(qat_epochs=8))
    settings = qat.settings_of(config)
    assert (settings.epochs, settings.lr, settings.dropout, settings.l1) == (8, pytest.approx(3e-3), 0.0, 0.0)
    networks: list[nn.Module] = []

    def train(network: nn.Module, asked: FinetuneSettings) -> nn.Module:
        networks.append(_train(digits, settings)(network, asked))
        return networks[0]

    floats, learned = qat.train_integers(
        made.floats, made.integers, made.ranges, made.samples, settings, train, tmp_path
    )
    final = tmp_path / "trained.onnx"
    quantize_static(floats, final, learned, "minmax", SEVEN_BITS)
    assert _accuracy(final, digits.test) > lost + 0.6 * (exact - lost)
    # What was trained is what runs.
    found = networks[0](digits.test[0]).detach().numpy()
    assert (_run(final, digits.test[0]).argmax(1) == found.argmax(1)).mean() >= 0.99
    before, after = (json.loads(path.read_text())["data"] for path in (made.ranges, learned))
    assert any(before[name] != after[name] for name in before), "ranges are learned"
    ort = targets.get("ort-cpu")
    try:
        layers = ort.audit(final)
    finally:
        ort.close()
    assert layers
    assert all(layer.integer for layer in layers), layers


def test_statistics_that_could_not_be_folded_stay_as_they_are(digits: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # A BatchNorm in front of the convolution, as in pre-activation networks.
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    module(digits.train[0][:64])
    export(module.eval(), digits.val[0][:4], tmp_path / "floats.onnx")
    made = _quantized(tmp_path / "floats.onnx", tmp_path, digits.train[0][:64], SEVEN_BITS)
    network = qat.make_network(made.floats, made.integers, made.samples)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    network.train()
    assert network.training
    assert not any(norm.training for norm in norms)
    trainable = {name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad}
    assert all(name.startswith(("layer", "range")) for name in trainable)


def _product(path: Path, node: onnx.NodeProto, weight: np.ndarray, rows: list[str | int]) -> Path:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*rows, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*rows, 3])],
        [onnx.numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_what_cannot_be_trained_is_refused_in_one_line(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 6, 3))
    path = _product(
        tmp_path / "floats.onnx", helper.make_node("MatMul", ["x", "w"], ["y"], "cube"), weight, ["n", 4, 2]
    )
    made = _quantized(path, tmp_path, torch.randn(64, 4, 2, 6), SEVEN_BITS)
    with pytest.raises(QuantizeError, match="cube is not quantized by channel"):
        qat.make_network(made.floats, made.integers, made.samples)


def test_a_product_that_scales_is_trained_as_what_it_computes(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 3))
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "scaled", alpha=2.0)
    made = _quantized(_product(tmp_path / "floats.onnx", node, weight, ["n"]), tmp_path, torch.randn(64, 6), SEVEN_BITS)
    network = qat.make_network(made.floats, made.integers, made.samples)
    qat.write_floats(network, made.floats, tmp_path / "again.onnx")
    x = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    found = open_session(tmp_path / "again.onnx").run(None, {"x": x})[0]
    assert np.allclose(found, 2 * x @ weight, atol=1e-5)


def test_another_network_than_the_integer_file_is_not_trained(exported: Path, digits: Any, tmp_path: Path) -> None:
    made = _quantized(exported, tmp_path, digits.train[0][:128], SEVEN_BITS)
    other = onnx.load(exported)
    for tensor in other.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.flip(onnx.numpy_helper.to_array(tensor), 2), tensor.name))
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(QuantizeError, match="it differs by"):
        qat.make_network(tmp_path / "other.onnx", made.integers, made.samples)


# -- in a search


def test_a_search_makes_candidates_trained_in_int8_and_a_second_call_trains_none_again(
    search: Search, tiny: ModuleType
) -> None:
    space = SearchSpace(epochs=1, l1=0.0, precision=Choice("fp32", "int8"), qat_epochs=1)
    result = search(space=space, trials=2)
    report = result.report
    by_id = {candidate.id: candidate for candidate in result.candidates()}
    assert {"0000-int8-qat", "0001-int8-qat"} <= set(by_id)
    assert report["stages"]["qat"]["count"] == 2
    assert report["failures"] == []
    one = by_id["0001-int8-qat"]
    assert one.candidate.config["precision"]["qat_epochs"] == 1
    folder = one.path.parent
    assert sorted(path.name for path in folder.iterdir()) == ["candidate.json", "model.onnx", "weights.onnx"]
    # The module is the one whose float weights were quantized, not the one that it was trained from.
    images, _ = tiny.datasets()["val"].tensors
    expected = _run(folder / "weights.onnx", images)
    np.testing.assert_allclose(one.module()(images).detach().numpy(), expected, atol=1e-4)
    started = by_id["0001-fp32"].module()(images).detach().numpy()
    assert np.abs(started - expected).max() > 1e-3
    told = {trial.params["precision"] for trial in result.study().trials}
    assert told == {"fp32", "int8", "int8-qat"}
    again = search(space=space, trials=3)
    assert again.report["stages"]["qat"]["count"] == 3


def test_without_epochs_nothing_is_trained_in_int8() -> None:
    assert "int8-qat" not in SearchSpace().schemes()
    assert SearchSpace(qat_epochs=compress.Int(0, 3)).schemes()[-1] == "int8-qat"
    with pytest.raises(SpaceError, match="set it to 1 or more"):
        SearchSpace(precision=Choice("fp32", "int8-qat"))

"""What is not trained in int8, each refused in one line: integer graphs and training loops that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from compress.precision import qat
from compress.values.configs import FinetuneSettings
from onnx_models import node
from targets.errors import QuantizeError

SAMPLES = {"x": np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)}
LEVELS = np.random.default_rng(1).integers(-127, 128, (6, 3)).astype(np.int8)
LEVELS[0] = 127  # the largest of each channel: its scale is what the quantizer would have taken
SCALES = np.float32([0.01, 0.02, 0.03])
CONSTANTS: dict[str, np.ndarray] = {
    "w": LEVELS * SCALES, "w_quantized": LEVELS, "w_scale": SCALES, "w_zero_point": np.zeros(3, np.int8),
    "x_scale": np.array(0.04, np.float32), "x_zero_point": np.array(128, np.uint8),
}  # fmt: skip
PRODUCT = [
    node("QuantizeLinear", "x x_scale x_zero_point", "q", axis=1),
    node("DequantizeLinear", "q x_scale x_zero_point", "d", axis=1),
    node("DequantizeLinear", "w_quantized w_scale w_zero_point", "v", axis=-1),
    node("MatMul", "d v", "y", name="product"),
]


def _saved(path: Path, nodes: list[NodeProto], constants: dict[str, np.ndarray]) -> Path:
    """(n, 6) -> y, written as it is, right or not."""
    used = {name for one in nodes for name in one.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def _pair(
    folder: Path, nodes: list[NodeProto] = PRODUCT, weight: str = "w", **changed: np.ndarray
) -> tuple[Path, Path]:
    """The float file and the integer file of a product."""
    constants = {**CONSTANTS, **changed}
    floats = _saved(folder / "floats.onnx", [node("MatMul", f"x {weight}")], {weight: constants["w"]})
    return floats, _saved(folder / "int8.onnx", nodes, constants)


def test_a_product_of_integers_becomes_a_layer_that_is_trained(tmp_path: Path) -> None:
    network = qat.make_network(*_pair(tmp_path), SAMPLES)
    assert [(layer.weight, layer.most, layer.turned) for layer in network.layers] == [("w", 127, True)]
    assert list(network.quantizers()) == ["x"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"x_zero_point": np.array(2**15, np.uint16)},
            "x is quantized by channel or to uint16: that cannot be trained",
        ),
        (
            {"x_scale": np.full(6, 0.04, np.float32), "x_zero_point": np.full(6, 128, np.uint8)},
            "x is quantized by channel or to uint8",
        ),
        ({"w_scale": np.array(0.02, np.float32), "w_zero_point": np.array(0, np.int8)}, "product is not quantized by"),
        # By channel, but a stack of matrices, which torch has no layer for.
        ({"w": CONSTANTS["w"][None], "w_quantized": LEVELS[None]}, "the layer of 'w' has no counterpart in torch"),
    ],
)
def test_numbers_that_cannot_be_trained_are_refused(tmp_path: Path, changed: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(QuantizeError, match=said):
        qat.make_network(*_pair(tmp_path, **changed), SAMPLES)


def test_weights_of_another_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="product: its float weights 'w' are not found; that cannot be trained"):
        qat.make_network(*_pair(tmp_path, weight="other"), SAMPLES)


def test_graphs_that_torch_cannot_rebuild_are_refused(tmp_path: Path) -> None:
    nodes = [*PRODUCT[:3], node("MatMul", "d v", "p", name="product"), node("Hardmax", "p")]
    with pytest.raises(QuantizeError, match=r"floats\.onnx cannot be trained in int8: operator Hardmax not covered"):
        qat.make_network(*_pair(tmp_path, nodes), SAMPLES)
    with pytest.raises(QuantizeError, match=r"floats\.onnx cannot be trained in int8: importing it failed \('x'\)"):
        qat.make_network(*_pair(tmp_path), {"other": SAMPLES["x"]})


def test_a_loop_that_makes_another_network_of_it_is_refused(tmp_path: Path) -> None:
    def train(network: nn.Module, _: FinetuneSettings) -> nn.Module:
        network.register_buffer("more", torch.zeros(1))
        return network

    floats, integers = _pair(tmp_path)
    with pytest.raises(QuantizeError, match="training in int8 gave back another network than it was given"):
        qat.train_integers(floats, integers, tmp_path / "none.json", SAMPLES, FinetuneSettings(), train, tmp_path)

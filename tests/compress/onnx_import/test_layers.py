"""ONNX operators with weights become layers of torch, which can be pruned and trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, helper
from torch import nn

import onnx_models
from compress.onnx_import.importing import import_file
from compress.pruning import grouping
from onnx_models import IMAGE, RANDOM, ROWS, WORDS, f32, i64, node, write

seeded = onnx_models.seeded
LAYERS: dict[str, tuple[list[NodeProto], dict[str, np.ndarray], type[nn.Module]]] = {
    "conv": (
        [node("Conv", "x w b", pads=[1, 1, 1, 1], strides=[2, 2])],
        {"w": f32(8, 6, 3, 3), "b": f32(8)},
        nn.Conv2d,
    ),
    "grouped": ([node("Conv", "x w", group=2, dilations=[2, 2])], {"w": f32(8, 3, 3, 3)}, nn.Conv2d),
    "depthwise": ([node("Conv", "x w", group=6)], {"w": f32(6, 1, 3, 3)}, nn.Conv2d),
    "same": ([node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": f32(8, 6, 3, 3)}, nn.Conv2d),
    "uneven": ([node("Conv", "x w", pads=[0, 0, 1, 1])], {"w": f32(8, 6, 3, 3)}, nn.Conv2d),
    "its bias as a sum": (
        [node("Conv", "x w", "c"), node("Add", "c b")],
        {"w": f32(8, 6, 3, 3), "b": f32(1, 8, 1, 1)},
        nn.Conv2d,
    ),
    "transposed": (
        [node("ConvTranspose", "x w b", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
        {"w": f32(6, 4, 3, 3), "b": f32(4)},
        nn.ConvTranspose2d,
    ),
    "transposed, uneven": (
        [node("ConvTranspose", "x w", strides=[2, 2], pads=[0, 0, 1, 1])],
        {"w": f32(6, 4, 3, 3)},
        nn.ConvTranspose2d,
    ),
    "transposed, same": (
        [node("ConvTranspose", "x w", strides=[2, 2], auto_pad="SAME_UPPER")],
        {"w": f32(6, 4, 3, 3)},
        nn.ConvTranspose2d,
    ),
    "batch norm": (
        [node("BatchNormalization", "x a b c d")],
        {"a": f32(6), "b": f32(6), "c": f32(6), "d": np.abs(f32(6))},
        nn.BatchNorm2d,
    ),
    "instance norm": ([node("InstanceNormalization", "x a b")], {"a": f32(6), "b": f32(6)}, nn.InstanceNorm2d),
    "layer norm": ([node("LayerNormalization", "x a b")], {"a": f32(8), "b": f32(8)}, nn.LayerNorm),
    "linear": ([node("MatMul", "x w", "m"), node("Add", "b m")], {"w": f32(8, 5), "b": f32(5)}, nn.Linear),
    "prelu": ([node("PRelu", "x w")], {"w": f32(6, 1, 1)}, nn.PReLU),
    "prelu with one slope": ([node("PRelu", "x w")], {"w": f32(1)}, nn.PReLU),
    "group norm taken apart": (
        [
            node("Reshape", "x s", "r"),
            node("InstanceNormalization", "r o z", "i"),
            node("Reshape", "i t", "j"),
            node("Mul", "j a", "k"),
            node("Add", "k b"),
        ],
        {
            "s": i64(0, 2, -1),
            "o": np.ones(2, np.float32),
            "z": np.zeros(2, np.float32),
            "t": i64(0, 6, 8, 8),
            "a": f32(6, 1, 1),
            "b": f32(6, 1, 1),
        },
        nn.GroupNorm,
    ),
    "layer norm taken apart": (
        [
            node("ReduceMean", "x i", "m"),
            node("Sub", "x m", "d"),
            node("Pow", "d two", "p"),
            node("ReduceMean", "p i", "v"),
            node("Add", "v e", "w"),
            node("Sqrt", "w", "q"),
            node("Div", "d q", "h"),
            node("Mul", "h a", "k"),
            node("Add", "k b"),
        ],
        {"i": i64(-1), "two": np.float32(2), "e": np.float32(1e-5), "a": f32(8), "b": f32(8)},
        nn.LayerNorm,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_operators_with_weights_become_layers(tmp_path: Path, name: str) -> None:
    nodes, constants, kind = LAYERS[name]
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(*IMAGE)}, constants)
    module = import_file(path, inputs)
    [layer] = [m for m in module.modules() if m is not module]
    assert type(layer) is kind
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in layer.parameters()), (
        "nothing is left beside it"
    )


@pytest.mark.parametrize("name", [name for name in LAYERS if "norm" in name])
def test_an_epsilon_of_its_own_arrives(tmp_path: Path, name: str) -> None:
    """The import is checked against the file, in which this one is large enough to tell."""
    nodes, constants, _ = copy.deepcopy(LAYERS[name])
    if "e" in constants:
        constants["e"] = np.float32(0.3)
    for one in nodes:
        if one.op_type.endswith("Normalization"):
            one.attribute.append(helper.make_attribute("epsilon", 0.3))
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(*IMAGE)}, constants)
    [layer] = [m for m in import_file(path, inputs).modules() if hasattr(m, "eps")]
    assert layer.eps == pytest.approx(0.3)


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_product_with_an_offset_is_a_linear_layer(tmp_path: Path, transposed: int) -> None:
    weight = f32(5, 6) if transposed else f32(6, 5)
    nodes = [node("Gemm", "x w b", transB=transposed, alpha=0.5, beta=2.0)]
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(3, 6)}, {"w": weight, "b": f32(5)})
    assert type(next(import_file(path, inputs).children())) is nn.Linear


def test_a_bias_that_is_used_without_it_stays_a_sum(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("Mul", "m a")]
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(3, 6)}, {"w": f32(6, 5), "b": f32(5)})
    [layer] = import_file(path, inputs).children()
    assert layer.bias is None


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers(tmp_path: Path, kind: str, gates: int, direction: str) -> None:
    count, hidden = (2 if direction == "bidirectional" else 1), 4
    constants = {
        "w": f32(count, gates * hidden, 6),
        "r": f32(count, gates * hidden, hidden),
        "b": f32(count, 2 * gates * hidden),
        "zeros": np.zeros((count, 1, hidden), np.float32),
        "a": i64(0),
        "axis": i64(1),
        "one": i64(1),
        "t": i64(0, 0, -1),
    }
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    if direction != "forward":  # the usual ones, in so many words
        usual = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[kind]
        attributes["activations"] = usual * count
    nodes = [
        node("Transpose", "x", "s", perm=[1, 0, 2]),
        node(kind, "s w r b", "all last", **attributes),
        node("Transpose", "all", "q", perm=[2, 0, 1, 3]),
        node("Reshape", "q t", "y"),
        node("Transpose", "last", "z", perm=[1, 0, 2]),
    ]
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(*ROWS)}, constants, ["y", "z"])
    module = import_file(path, inputs)
    [layer] = [m for m in module.modules() if isinstance(m, nn.RNNBase)]
    assert (type(layer).__name__, layer.hidden_size, layer.bidirectional) == (
        kind,
        hidden,
        direction == "bidirectional",
    )


def test_an_embedding(tmp_path: Path) -> None:
    words = RANDOM.integers(0, 20, WORDS)
    nodes = [node("Gather", "table x", "e"), node("ReduceMean", "e a", "m", keepdims=0), node("MatMul", "m w")]
    constants = {"table": f32(20, 8), "a": i64(1), "w": f32(8, 4)}
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": words}, constants)
    module = import_file(path, inputs)
    assert [type(m) for m in module.children()] == [nn.Embedding, nn.Linear]
    assert [g.name for g in grouping.find_groups(module, inputs).prunable] == ["table"]

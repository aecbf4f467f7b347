"""The small models that a probe measures. Needs the onnx package, which is imported when one is written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 16
"""Height and width of what the models take."""


def write_probe_model(folder: Path, kind: str, width: int) -> Path:
    """Two 3x3 convolutions of ``width`` channels on 16x16, in fp32 or, between quantizers, in an int8 format."""
    from onnx import TensorProto, helper, numpy_helper

    if kind == "fp32":
        nodes, constants = _float_pair(width)
    else:
        nodes, constants = _quantized_pair(width, np.uint8 if kind == "u8s8" else np.int8)
    shape = [1, width, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = folder / f"{kind}-{width}.onnx"
    # Per-channel quantizers came with opset 13; whatever runs today knows it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    path.write_bytes(model.SerializeToString())
    return path


def _float_pair(width: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    from onnx import helper

    random = np.random.default_rng(0)
    shape = (width, width, 3, 3)
    weights = {
        name: (random.standard_normal(shape) / (3.0 * math.sqrt(width))).astype(np.float32) for name in ("w0", "w1")
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "w1"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    return nodes, weights


def _quantized_pair(width: int, activation: Any) -> tuple[list[Any], dict[str, np.ndarray]]:
    """In QDQ form: int8 weights, a scale a channel; activations of the type ``activation``, one scale."""
    from onnx import helper

    random = np.random.default_rng(0)
    constants = {
        "s": np.array(0.05, np.float32),
        "z": np.array(128 if activation is np.uint8 else 0, activation),
        "ws": np.full(width, 0.001, np.float32),
        "wz": np.zeros(width, np.int8),
    }
    nodes: list[Any] = []

    def requantize(name: str, result: str) -> None:
        nodes.append(helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", "s", "z"], [result]))

    requantize("x", "x.d")
    for weight, value, result, after in (("w0", "x.d", "c", "c.d"), ("w1", "c.d", "e", "y")):
        # 7 bits: nothing saturates, whatever the CPU.
        constants[weight] = random.integers(-63, 64, (width, width, 3, 3)).astype(np.int8)
        nodes.append(helper.make_node("DequantizeLinear", [weight, "ws", "wz"], [f"{weight}.d"], axis=0))
        nodes.append(helper.make_node("Conv", [value, f"{weight}.d"], [result], name=result, pads=[1, 1, 1, 1]))
        requantize(result, after)
    return nodes, constants

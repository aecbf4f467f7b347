"""A builder of ONNX files, node by node, in any operator set, with samples for their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Samples = dict[str, np.ndarray]
File = tuple[onnx.ModelProto, Samples]
COUNT = 32
"""Samples of every file."""


class Graph:
    """A graph under construction: nodes in order, constants and outputs as they are asked for."""

    def __init__(self, opset: int, seed: int = 0, ir_version: int | None = None) -> None:
        self.opset = opset
        self.ir_version = ir_version or (3 if opset < 9 else 4 if opset < 10 else 6 if opset < 13 else 8)
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.samples: Samples = {}

    def input(self, *shape: int, name: str = "x", low: float | None = None, high: float = 0) -> str:
        """An input of normal numbers; with ``low``, of whole numbers from there to below ``high``."""
        if low is None:
            kind, values = TensorProto.FLOAT, self.random.normal(size=(COUNT, *shape)).astype(np.float32)
        else:
            kind, values = TensorProto.INT64, self.random.integers(int(low), int(high), (COUNT, *shape))
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["n", *shape]))
        self.samples[name] = values
        return name

    def weight(self, *shape: int, fan: int | None = None) -> str:
        """A constant of normal numbers, scaled so that a product keeps the size of its input."""
        fan = fan or int(np.prod(shape[1:])) or 1
        return self.constant(self.random.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(fan)))

    def constant(self, values: Any, name: str = "") -> str:
        """An initializer."""
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """A node; the name of its output, or names of its outputs."""
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, dims: int = 2, **attributes: Any) -> str:
        """A convolution that keeps the size of its input, with bias."""
        group = attributes.get("group", 1)
        if "pads" not in attributes and "auto_pad" not in attributes:
            attributes["pads"] = [kernel // 2] * 2 * dims
        weight = self.weight(outputs, inputs // group, *[kernel] * dims)
        return str(self.add("Conv", x, weight, self.weight(outputs), kernel_shape=[kernel] * dims, **attributes))

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        """A matrix product and a bias."""
        return str(
            self.add("Add", self.add("MatMul", x, self.weight(inputs, outputs, fan=inputs)), self.weight(outputs))
        )

    def axes(self, kind: str, x: str, axes: list[int], since: int = 13, **attributes: Any) -> str:
        """An operator whose axes were an attribute before opset ``since``."""
        if self.opset < since:
            return str(self.add(kind, x, axes=axes, **attributes))
        return str(self.add(kind, x, self.constant(np.asarray(axes, np.int64)), **attributes))

    def output(self, name: str, kind: int = TensorProto.FLOAT) -> None:
        """An output, of a shape that is left open."""
        self.outputs.append(helper.make_tensor_value_info(name, kind, None))

    def file(self, last: str | None = None, functions: Sequence[onnx.FunctionProto] = ()) -> File:
        """The model with ``last`` as its output, and its samples."""
        if last is not None:
            self.output(last)
        listed = self.ir_version < 4
        inputs = list(self.inputs)
        if listed:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.constants]
        graph = helper.make_graph(self.nodes, "g", inputs, self.outputs, self.constants)
        domains = {node.domain for node in self.nodes} - {""}
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(one, 1) for one in sorted(domains))]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)
        model.functions.extend(functions)
        _with_shapes(model, self.samples)
        return model, self.samples


def _with_shapes(model: onnx.ModelProto, samples: Samples) -> None:
    """Give the outputs, and those of inner graphs, the shapes that they turn out to have."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for value, found in zip(model.graph.output, session.run(None, samples), strict=True):
        shape = ["n" if size == COUNT else size for size in found.shape]
        value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shape))

"""Bias correction: what quantization adds to a channel's mean is taken off its bias (Nagel et al. 2019, section 4.2).

Rounded weights and cut-off activations shift what a layer puts out, and a shift survives where noise averages out. The
empirical form: layer by layer, in graph order, with everything before it corrected already,

    b <- b - ( E[y quantized] - E[y float] )

over the calibration samples and the places of a channel. The quantized model is made once; in it the corrected biases
stand as floats, since rounding a bias to 32 bits is nothing.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from compress.precision.activations import inner_values
from compress.precision.products import Product, bias_input, find_products
from compress.precision.quantizer import quantize_static
from compress.precision.ranges import collect_ranges
from compress.values.configs import OPERATORS
from targets.target import Capabilities


def correct_biases(
    model: onnx.ModelProto,
    samples: Mapping[str, np.ndarray],
    capabilities: Capabilities,
    method: str = "minmax",
    keep_float: tuple[str, ...] = (),
    operators: str = OPERATORS[0],
) -> onnx.ModelProto:
    """A copy of ``model``, whose nodes must have names, with corrected biases; a product without one may get one.

    ``method``, ``keep_float`` and ``operators``: how it will be calibrated, which nodes will stay in float, and which
    operators are quantized at all.
    """
    model = copy.deepcopy(model)
    graph = find_products(model)
    products = [product for product in graph.products if product.bias is not None]
    if not products:
        return model
    expected = _means(model, products, [product.output for product in products], samples)
    for product in products:
        if graph.bias(product) is None:
            graph.set_bias(product, np.zeros(len(product.rows(graph.array(product.weight)))))
    quantized = _quantized(model, samples, capabilities, method, keep_float, operators)
    inside = {node.name: node for node in quantized.graph.node}
    for product, mean in zip(products, expected, strict=True):
        node, bias = inside[str(product.bias and product.bias.name)], graph.bias(product)
        at = bias_input(graph, product)
        if bias is None or at is None:
            continue
        found = _means(quantized, [product], [node.output[0]], samples)[0]
        corrected = bias - (found - mean)
        if np.isfinite(corrected).all():
            graph.set_bias(product, corrected)
            _set_float(quantized, node, at, corrected)
    return model


def _means(
    model: onnx.ModelProto, products: Sequence[Product], names: Sequence[str], samples: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """The mean of each channel (channels,) of each product's output, which is called ``names`` in ``model``."""
    sums, counts = [np.zeros(1)] * len(names), [0] * len(names)
    for found in inner_values(model, names, samples):
        for i, (product, values) in enumerate(zip(products, found, strict=True)):
            wide = np.moveaxis(values, product.channel_axis, -1)
            wide = wide.reshape(-1, wide.shape[-1])
            sums[i] = sums[i] + wide.sum(axis=0, dtype=np.float64)
            counts[i] += len(wide)
    return [total / max(1, count) for total, count in zip(sums, counts, strict=True)]


def _quantized(
    model: onnx.ModelProto,
    samples: Mapping[str, np.ndarray],
    capabilities: Capabilities,
    method: str,
    keep_float: tuple[str, ...],
    operators: str,
) -> onnx.ModelProto:
    """``model`` in static int8, calibrated on ``samples``."""
    with tempfile.TemporaryDirectory() as name:
        source, ranges, made = (Path(name) / file for file in ("model.onnx", "ranges.json", "int8.onnx"))
        onnx.save(model, source)
        collect_ranges(source, samples, method, ranges, capabilities)
        quantize_static(source, made, ranges, method, capabilities, keep_float=keep_float, operators=operators)
        return onnx.load(made)


def _set_float(model: onnx.ModelProto, node: onnx.NodeProto, at: int, bias: np.ndarray) -> None:
    """Let a product of a quantized model add a bias of floats."""
    name = f"{node.name}_corrected"
    model.graph.initializer.append(onnx.numpy_helper.from_array(bias.astype(np.float32), name))
    node.input[at] = name

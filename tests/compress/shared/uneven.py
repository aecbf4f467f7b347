"""A file that int8 of all operators ruins, and int8 of the products alone does not."""

from __future__ import annotations

import numpy as np
import onnx

from public_graph import Graph


def uneven_model(opset: int, width: int) -> onnx.ModelProto:
    """Products between which ``width`` values are scaled by hugely uneven factors, and evened out again; 16 -> 8."""
    g = Graph(opset)
    x = g.linear(g.input(16), 16, width)
    factors = np.logspace(0, 6, width).astype(np.float32)
    even = g.add("Mul", g.add("Mul", x, g.constant(factors)), g.constant(1 / factors))
    model, _ = g.file(g.linear(g.add("Relu", g.linear(even, width, 2 * width)), 2 * width, 8))
    return model

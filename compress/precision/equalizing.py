"""Cross-layer equalization: the channels between two products get equal ranges (Nagel et al. 2019, section 4.1).

Between two products with nothing but positively homogeneous steps in between, f(s x) = s f(x), a channel can be made s
times smaller on one side and s times larger on the other, and the network computes the same. With

    s_i = sqrt(r1_i r2_i) / r2_i,    W1_i / s_i,    b1_i / s_i,    W2_,i * s_i,

where r1_i and r2_i are a channel's largest weights on both sides, both ranges become sqrt(r1_i r2_i). Pairs are gone
through until nothing moves. Left out: absorbing high biases (it changes the function), and ReLU6 (not homogeneous).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import onnx

from compress.precision.products import Graph, Product, attributes, find_products

_ROUNDS = 20
_HOMOGENEOUS = ("Relu", "LeakyRelu", "Identity", "Dropout")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


@dataclass(frozen=True)
class _Pair:
    """Two products, the channels of the first being what the second reads, ``repeat`` values each."""

    first: Product
    second: Product
    repeat: int


def equalize(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model``, whose nodes must have names, that computes the same with equalized channels."""
    model = copy.deepcopy(model)
    graph = find_products(model)
    pairs = [pair for product in graph.products if (pair := _pair(graph, product)) is not None]
    for _ in range(_ROUNDS):
        moved = max((_equalize(graph, pair) for pair in pairs), default=0.0)
        if moved < 1e-3:
            break
    return model


def _equalize(graph: Graph, pair: _Pair) -> float:
    """One step for one pair; returns the largest change of a channel's scale, as |log|."""
    first, second = pair.first.rows(graph.array(pair.first.weight)), pair.second.rows(graph.array(pair.second.weight))
    channels, groups = len(first), pair.second.groups
    # (groups, out of one, channels of one, values of one channel)
    wide = second.reshape(groups, len(second) // groups, channels // groups, -1)
    r1 = np.abs(first).reshape(channels, -1).max(axis=1)
    r2 = np.abs(wide).max(axis=(1, 3)).reshape(channels)
    alive = (r1 > 0) & (r2 > 0)
    scale = np.where(alive, np.sqrt(r1 / np.where(alive, r2, 1.0)), 1.0).astype(np.float32)
    _write(graph, pair.first, first / scale.reshape(-1, *[1] * (first.ndim - 1)))
    bias = graph.bias(pair.first)
    if bias is not None:
        graph.set_bias(pair.first, bias / scale)
    _write(graph, pair.second, (wide * scale.reshape(groups, 1, -1, 1)).reshape(second.shape))
    return float(np.abs(np.log(scale)).max(initial=0.0))


def _write(graph: Graph, product: Product, rows: np.ndarray) -> None:
    graph.write(product.weight, product.rows(rows))


def _pair(graph: Graph, first: Product) -> _Pair | None:
    """The product that alone reads what ``first`` puts out, through homogeneous steps only."""
    products = {id(p.node): p for p in graph.products}
    name, places = first.output, graph.array(first.weight).ndim - 2
    spatial = places > 0
    flat = not spatial
    while True:
        user = graph.only_user(name)
        if user is None:
            return None
        second = products.get(id(user))
        if second is not None:
            break
        step = _step(graph, user, name, 0 if flat else places)
        if step is None:
            return None
        flat, name = flat or step, user.output[0]
    if second.node.input[0] != name or (second.node.op_type == "Conv") == flat:
        return None
    channels = len(first.rows(graph.array(first.weight)))
    inside = graph.array(second.weight)
    width = second.rows(inside).shape[1] * second.groups
    if width % channels or (width != channels and not spatial):
        return None
    return _Pair(first, second, width // channels)


def _step(graph: Graph, node: onnx.NodeProto, name: str, places: int) -> bool | None:
    """Whether a step flattens the channels; None where it is not homogeneous, or mixes them.

    ``places``: how many dimensions there are after (batch, channels).
    """
    if node.input[0] != name:
        return None
    if node.op_type in _HOMOGENEOUS or (node.op_type == "PRelu" and node.input[1] in graph.tensors):
        return False
    if not places:
        return None
    if node.op_type in _POOLS:
        return False
    if node.op_type == "Flatten":
        return True if attributes(node).get("axis", 1) == 1 else None
    constant = graph.array(node.input[1]).tolist() if len(node.input) > 1 and node.input[1] in graph.tensors else None
    if node.op_type == "ReduceMean" and constant is not None and attributes(node).get("noop_with_empty_axes", 0) == 0:
        all_places = {axis % (places + 2) for axis in constant} == set(range(2, places + 2))
        return not attributes(node).get("keepdims", 1) if all_places else None
    if node.op_type == "Reshape" and constant is not None:
        # (batch, the rest): one of them may be left open, and places follow their channel.
        return True if len(constant) == 2 and (constant[0] in (0, 1) or constant[1] > 0) else None
    return None

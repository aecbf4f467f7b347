"""Masks of attention are found from where they enter to the softmax, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from compress.float_models.masks import masked_nodes, masked_tensors
from compress.float_models.plain_models import name_nodes
from public_files import FILES
from public_graph import Graph


def _found(model: onnx.ModelProto) -> set[str]:
    name_nodes(model)
    kinds = {node.name: node.op_type for node in model.graph.node}
    return {kinds[name] for name in masked_nodes(model)}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mask_added-13", {"Add", "Softmax", "Constant"}),
        ("mask_chosen-11", {"Where", "Sub", "Mul", "Add", "Softmax"} - {"Sub"}),
        ("soft-13", set()),
        ("plain_cnn-15", set()),
    ],
)
def test_what_lies_between_a_mask_and_its_softmax(name: str, kinds: set[str]) -> None:
    assert _found(FILES[name]()[0]) == kinds


@pytest.mark.parametrize("value", [-np.inf, -1e9, float(np.finfo(np.float32).min), -1e4])
@pytest.mark.parametrize("last", ["Softmax", "Relu"])
def test_a_huge_number_is_a_mask_where_a_softmax_uses_it_up(value: float, last: str) -> None:
    g = Graph(17)
    x = g.linear(g.input(4), 4, 4)
    mask = g.constant(np.asarray([0, 0, value, 0], np.float32))
    y = g.add("Reshape", g.add("Add", x, mask), g.constant(np.asarray([-1, 4], np.int64)))
    model, _ = g.file(g.add("MatMul", g.add(last, y), g.weight(4, 4)))
    nodes = masked_nodes(model)
    by_name = {node.name: node for node in model.graph.node}
    assert {by_name[name].op_type for name in nodes} == ({"Add", "Reshape", "Softmax"} if last == "Softmax" else set())
    assert y in masked_tensors(model, nodes) or last == "Relu"
    assert not any(by_name[name].output[0] == x for name in nodes), "the layer in front is no part of it"


@pytest.mark.parametrize("values", [[0.0, -9999.0], [1e9, 2.0], np.zeros((0, 2))])
def test_other_numbers_are_no_masks(values: Any) -> None:
    g = Graph(17)
    x = g.linear(g.input(2), 2, 2)
    model, _ = g.file(
        g.add("Softmax", g.add("Add", x, g.constant(np.asarray(values, np.float32)))) if len(values) else x
    )
    assert masked_nodes(model) == set()

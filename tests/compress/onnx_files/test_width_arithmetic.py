"""Graphs whose numbers cannot be told for other widths: each is given back for a fresh export, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from compress.onnx_files.retargeting import retarget
from compress.onnx_files.width_arithmetic import NotRetargetable, reshaped, scaled
from onnx_models import i64, node


def _template(nodes: list[NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A graph of x (n, 3), the weight ``w`` of eight columns and the whole numbers ``k`` (n,)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
        ],
        [onnx.ValueInfoProto(name=nodes[-1].output[0])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def _narrow(width: int, **others: torch.Tensor) -> nn.Module:
    """A network whose weight ``w`` has so many columns."""
    module = nn.Module()
    for name, tensor in {"w": torch.zeros(3, width), **others}.items():
        module.register_buffer(name, tensor)
    return module


def _number(name: str, *values: int) -> NodeProto:
    return node("Constant", "", name, value=numpy_helper.from_array(i64(*values)))


PRODUCT = node("MatMul", "x w", "p")
BRANCH = helper.make_graph([node("Identity", "p", "b")], "b", [], [onnx.ValueInfoProto(name="b")])
STATE = [node("Unsqueeze", "p k0", "s"), node("LSTM", "s gates back _ _ h", "y")]
CASES: dict[str, tuple[list[NodeProto], str]] = {
    "a graph inside": ([helper.make_node("If", ["c"], ["y"], then_branch=BRANCH)], "If has graphs inside"),
    "a state that is not cut": ([PRODUCT, *STATE], "LSTM begins with a state of another size"),
    "parts of sizes unknown": (
        [PRODUCT, node("SplitToSequence", "p", axis=1)], "SplitToSequence without known sizes",
    ),
    "fewer parts": (
        [PRODUCT, node("SplitToSequence", "p two", axis=1)], "SplitToSequence gives another number of parts",
    ),
    "a part unknown": (
        [
            PRODUCT,
            _number("four", 4, 4),
            node("SplitToSequence", "p four", "parts", axis=1),
            node("SequenceAt", "parts k"),
        ],
        "SequenceAt without a known place",
    ),
    "one number for two widths": (
        [PRODUCT, _number("to", 7, 8), node("Reshape", "p to", "a"), node("Relu", "v", "b"), node("Reshape", "b to")],
        "a constant of to is wanted to be two numbers",
    ),
    "an operator of somebody's": ([PRODUCT, node("Magic", "p", domain="my.own")], "Magic: "),
    "a shape by values": ([PRODUCT, node("NonZero", "p")], "NonZero gives no shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_told_is_traced_anew_with_the_reason(name: str) -> None:
    nodes, reason = CASES[name]
    zeros = {
        "w": (3, 8), "v": (7, 8), "h": (1, 7, 8), "gates": (1, 32, 8), "back": (1, 32, 8),
    }  # fmt: skip
    constants: dict[str, Any] = {name: np.zeros(shape, np.float32) for name, shape in zeros.items()}
    constants |= {"two": np.array(2), "k0": i64(0), "c": np.array(True)}
    template = _template(nodes, constants)
    small = _narrow(4, gates=torch.zeros(1, 16, 4), back=torch.zeros(1, 16, 4), v=torch.zeros(7, 8))
    with pytest.raises(NotRetargetable, match=reason):
        retarget(template, small)


def test_graphs_of_another_build_are_traced_anew() -> None:
    template = _template([PRODUCT], {"w": np.zeros((3, 8), np.float32)})
    retarget(template, _narrow(4))
    with pytest.raises(NotRetargetable, match="w has other dimensions"):
        retarget(template, _narrow(4, w=torch.zeros(3, 8, 1)))
    template.functions.append(helper.make_function("my.own", "F", ["a"], ["b"], [node("Relu", "a", "b")], []))
    with pytest.raises(NotRetargetable, match="the graph has functions"):
        retarget(template, _narrow(4))


@pytest.mark.parametrize(
    ("old", "new", "sizes", "found"),
    [
        ([5, 24], [5, 16], [5, 4, 6], [5, 4, 4]),
        ([5, 24], [5, 16], [-1, 24], [5, 16]),
        ([6], [5], [2, 3], r"\[6\] reshaped to \[2, 3\] is not told for \[5\]"),
        ([4], [4], [3], r"\[4\] is not reshaped to \[3\]"),
        ([4], [4], [2, 3], r"\[4\] is not reshaped to \[2, 3\]"),
    ],
)
def test_sizes_to_reshape_to_follow_or_are_not_told(
    old: list[int], new: list[int], sizes: list[int], found: list[int] | str
) -> None:
    known = [old[0] if size == -1 else size for size in sizes]
    if isinstance(found, list):
        assert reshaped(old, new, known, sizes, first=False) == found
        return
    with pytest.raises(NotRetargetable, match=found):
        reshaped(old, new, known, sizes, first=False)


@pytest.mark.parametrize(("shape", "group", "found"), [((8, 1, 3), 8, 4), ((8, 4, 3), 2, 2), ((8, 8, 3), 1, 1)])
def test_groups_of_a_convolution_without_a_layer_follow_its_weight(
    shape: tuple[int, ...], group: int, found: int
) -> None:
    """Depthwise, each channel is a group; other groups stay as many."""
    conv = node("Conv", "z k", group=group)
    kernel = helper.make_tensor("k", TensorProto.FLOAT, shape, np.zeros(shape, np.float32).tobytes(), raw=True)
    values = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", shape[1] * group, 9])]
    graph = helper.make_graph([conv], "g", values, [onnx.ValueInfoProto(name="y")], [kernel])
    template = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    small = nn.Module()
    small.register_buffer("k", torch.zeros(shape[0] // 2, *shape[1:]))
    [made] = retarget(template, small).graph.node
    assert next(a.i for a in made.attribute if a.name == "group") == found


def test_a_share_of_channels_must_be_whole() -> None:
    assert scaled(6, 8, 4) == 3
    with pytest.raises(NotRetargetable, match="5 of 8 channels is not told for 4"):
        scaled(5, 8, 4)

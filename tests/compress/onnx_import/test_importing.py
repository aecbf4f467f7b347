"""ONNX graphs as torch networks: pruned and exported again, and refused with the reason where that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, helper

import onnx_models
from compress.onnx_files import exporting
from compress.onnx_import import importing, shapes
from compress.onnx_import.importer import NotImportable
from compress.onnx_import.importing import ImportedNetwork, import_file
from compress.pruning import pruning
from onnx_models import IMAGE, ROWS, f32, i64, node, write

seeded = onnx_models.seeded


def test_several_inputs_and_outputs_keep_their_order_and_names(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "b:0 v", "p"),
        node("MatMul", "a/in w", "q"),
        node("Add", "p q", "first"),
        node("Relu", "q", "2nd"),
    ]
    inputs = {"b:0": f32(3, 6), "a/in": f32(3, 4)}
    path, tensors = write(tmp_path / "m.onnx", nodes, inputs, {"v": f32(6, 8), "w": f32(4, 8)}, ["first", "2nd"])
    module = import_file(path, tensors)
    small = pruning.prune(module, tensors, 0.5).module
    exporting.export(small, tensors, tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx").graph
    assert [i.name for i in again.input] == ["b:0", "a/in"]
    assert [o.name for o in again.output] == ["first", "2nd"]
    assert all(i.type.tensor_type.shape.dim[0].dim_param for i in again.input), "the batch is free"


def test_a_constant_may_be_a_tensor_here_and_a_shape_there(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Gather", "m two", "g", axis=1), node("Reshape", "g two")]
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(3, 6)}, {"w": f32(6, 5), "two": i64(-1, 2)})
    import_file(path, inputs)


def test_weights_that_are_used_twice_stay_one(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "a w", "p"), node("Add", "p v", "r"), node("MatMul", "b w", "q"), node("Add", "q v", "s"),
        node("Mul", "r s", "t"), node("MatMul", "t u", "z"), node("Add", "z zeros", "o"), node("MatMul", "o i", "y"),
    ]  # fmt: skip
    constants = {"w": f32(6, 8), "v": f32(8), "u": f32(8, 8), "zeros": np.zeros(8, np.float32), "i": f32(8, 3)}
    path, inputs = write(tmp_path / "m.onnx", nodes, {"a": f32(3, 6), "b": f32(3, 6)}, constants)
    module = import_file(path, inputs)
    first, second, *_ = module.children()
    assert first.weight is second.weight
    assert first.bias is second.bias
    assert sum(p.numel() for p in module.parameters()) == sum(x.size for x in constants.values())
    small = pruning.prune(module, inputs, 0.5)
    assert small.pruned
    exporting.export(small.module, inputs, tmp_path / "again.onnx")


def _tensorflow(path: Path) -> tuple[Path, tuple[torch.Tensor, ...]]:
    """As tf2onnx writes a Keras network: channels last outside, transposes, biases apart, ``SAME`` resolved."""
    nodes = [
        node("Transpose", "x", "t1", perm=[0, 3, 1, 2]),
        node("Conv", "t1 conv/kernel:0", "c1", pads=[0, 0, 1, 1], strides=[2, 2]), node("Add", "c1 b1", "s1"),
        node("BatchNormalization", "s1 g o m v", "n1"), node("Clip", "n1 zero six", "r1"),
        node("Conv", "r1 depth/kernel:0", "c2", group=16, pads=[1, 1, 1, 1]), node("Relu", "c2", "r2"),
        node("Transpose", "r2", "t2", perm=[0, 2, 3, 1]), node("ReduceMean", "t2 axes", "p", keepdims=0),
        node("Shape", "p", "h"), node("Cast", "h", "h32", to=6), node("Slice", "h32 a b", "n"),
        node("Concat", "n width", "f32", axis=0), node("Cast", "f32", "f", to=7), node("Reshape", "p f", "flat"),
        node("MatMul", "flat dense/kernel:0", "d"), node("Add", "d b2", "e"), node("Softmax", "e"),
    ]  # fmt: skip
    constants = {
        "conv/kernel:0": f32(16, 3, 3, 3),
        "b1": f32(1, 16, 1, 1),
        "depth/kernel:0": f32(16, 1, 3, 3),
        "zero": np.float32(0),
        "six": np.float32(6),
        "g": f32(16),
        "o": f32(16),
        "m": f32(16),
        "v": np.abs(f32(16)),
        "axes": i64(1, 2),
        "a": i64(0),
        "b": i64(1),
        "width": np.array([16], np.int32),
        "dense/kernel:0": f32(16, 5),
        "b2": f32(5),
    }
    return write(path, nodes, {"x": f32(3, 8, 8, 3)}, constants)


def test_channels_last_networks_are_pruned_and_exported_again(tmp_path: Path) -> None:
    path, inputs = _tensorflow(tmp_path / "m.onnx")
    module = import_file(path, inputs)
    names = [type(m).__name__ for m in module.children()]
    assert names == ["Conv2d", "BatchNorm2d", "Conv2d", "Linear"], "biases are merged"
    small = pruning.prune(module, inputs, 0.5)
    assert small.pruned == [("conv", 16, 8)]
    assert exporting.export(small.module, inputs, tmp_path / "again.onnx").max_abs < 1e-5


def test_channels_that_are_cut_are_those_that_can_be_masked(tmp_path: Path) -> None:
    """Reshapes that were written for one width follow the cut: the same as the whole network with zeros there."""
    nodes = [
        node("Conv", "x conv.weight conv.bias", "c"), node("Relu", "c", "r"), node("Reshape", "r s", "f"),
        node("Gemm", "f fc.weight fc.bias", transB=1),
    ]  # fmt: skip
    constants = {
        "conv.weight": f32(8, 6, 3, 3),
        "conv.bias": f32(8),
        "s": i64(-1, 288),
        "fc.weight": f32(5, 288),
        "fc.bias": f32(5),
    }
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(*IMAGE)}, constants)
    module = import_file(path, inputs)
    small = pruning.prune(module, inputs, 0.5)
    gone = list(small.removed["conv"])
    assert len(gone) == 4
    with torch.no_grad():
        module.conv.weight[gone] = 0
        module.conv.bias[gone] = 0
        assert torch.allclose(module(*inputs), small.module(*inputs), atol=1e-5)


def test_constants_that_may_be_masks_are_not_trained(tmp_path: Path) -> None:
    nodes = [node("Mul", "x scale", "s"), node("Add", "s mask")]
    constants = {"scale": f32(6, 1, 1), "mask": np.where(np.eye(8, dtype=bool), 0, -np.inf).astype(np.float32)}
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(*IMAGE)}, constants)
    module = import_file(path, inputs)
    assert {name: p.requires_grad for name, p in module.named_parameters()} == {"scale": True, "mask": False}


def test_an_import_fails_without_printing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, inputs = _tensorflow(tmp_path / "m.onnx")
    module = import_file(path, inputs)
    assert isinstance(module, ImportedNetwork)
    with pytest.raises(RuntimeError):
        module(inputs[0][..., :2])
    assert capsys.readouterr() == ("", "")


def _branch() -> NodeProto:
    graphs = [
        helper.make_graph([node("Identity", "x", name)], name, [], [helper.make_tensor_value_info(name, 1, None)])
        for name in ("p", "q")
    ]
    return helper.make_node("If", ["cond"], ["y"], then_branch=graphs[0], else_branch=graphs[1])


REFUSED: dict[str, tuple[list[NodeProto], dict[str, np.ndarray], str]] = {
    "an operator": ([node("MatMul", "x w", "m"), node("Det", "m")], {"w": f32(6, 6)}, "operator Det not covered"),
    "two operators": (
        [node("NonZero", "x", "n"), node("Det", "x", "d"), node("Hardmax", "x")],
        {},
        "operators Det, Hardmax not covered",
    ),
    "a domain": ([node("Normalizer", "x", domain="ai.onnx.ml")], {}, "operator ai.onnx.ml.Normalizer not covered"),
    "control flow": ([_branch()], {"cond": np.array(True)}, r"control flow \(If\)"),
    "no weights": ([node("Relu", "x")], {}, "it has no weights"),
    "weights computed": ([node("Conv", "x x")], {}, r"Conv: .*not constant"),
    "a GRU of another formula": (
        [
            node("GRU", "x w r", "y", hidden_size=4, linear_before_reset=0),
        ],
        {"w": f32(1, 12, 6), "r": f32(1, 12, 4)},
        "linear_before_reset=0",
    ),
    "a grid of its own": (
        [
            node("Mul", "x w", "s"),
            node("Resize", "s _ a", mode="linear", coordinate_transformation_mode="asymmetric"),
        ],
        {"w": f32(8), "a": np.float32([1, 1, 2, 2])},
        "Resize: linear, asymmetric",
    ),
    "a batch that is baked in": (
        [
            node("Reshape", "x s", "f"),
            node("MatMul", "f w"),
        ],
        {"s": i64(3, 384), "w": f32(384, 2)},
        "batch size is baked in",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_covered_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    nodes, constants, reason = REFUSED[name]
    x = f32(*ROWS) if "GRU" in name else f32(3, 6, 6) if "operator" in name else f32(*IMAGE)
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": x}, constants)
    with pytest.raises(NotImportable, match=reason) as caught:
        import_file(path, inputs)
    assert "\n" not in str(caught.value)


def test_a_network_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, inputs = write(tmp_path / "m.onnx", [node("MatMul", "x w")], {"x": f32(3, 6)}, {"w": f32(6, 5)})
    real = importing.import_network

    def wrong(*arguments: Any) -> ImportedNetwork:
        module = real(*arguments)
        with torch.no_grad():
            next(module.parameters()).mul_(1.5)
        return module

    monkeypatch.setattr(importing, "import_network", wrong)
    with pytest.raises(NotImportable, match="another network"):
        import_file(path, inputs)


@pytest.mark.parametrize(
    ("before", "after", "blocks"),
    [
        # (batch, channels, height, width), at two batch sizes
        ([(2, 3), (8, 8), (4, 4), (4, 4)], [(2, 3), (128, 128)], [(0, 1, (None,)), (1, 4, (None,))]),
        ([(2, 3), (8, 8)], [(2, 3), (2, 2), (4, 4)], [(0, 1, (None,)), (1, 2, (2, None))]),
        ([(2, 3), (5, 5), (8, 8)], [(10, 15), (8, 8)], [(0, 2, (None,)), (2, 3, (None,))]),
        ([(10, 15), (8, 8)], [(2, 3), (5, 5), (8, 8)], [(0, 1, (None, 5)), (1, 2, (None,))]),
        (
            [(2, 3), (8, 8), (1, 1), (1, 1)],
            [(2, 3), (8, 8)],
            [(0, 1, (None,)), (1, 2, (None,)), (2, 3, ()), (3, 4, ())],
        ),
        ([(2, 3), (8, 8)], [(1, 1), (2, 3), (8, 8)], [(0, 1, (1, None)), (1, 2, (None,))]),
        ([(2, 3), (8, 8)], [(6, 7), (8, 8)], None),
    ],
)
def test_shapes_are_understood_as_blocks_of_axes(before: Any, after: Any, blocks: Any) -> None:
    assert shapes.blocks_of(before, after) == blocks
    if blocks is not None:
        x = torch.randn(*(size[0] for size in before))
        assert torch.equal(shapes.reshape_by(x, blocks), x.reshape([size[0] for size in after]))

"""ONNX graphs as torch networks: every operator against ONNX Runtime, layers where layers can be, reasons where not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from compress import exporting, importing, onnx_shapes, pruning
from compress.importing import ImportedNetwork, NotImportable, import_file

RANDOM = np.random.default_rng(0)
IMAGE, ROWS, WORDS = (3, 6, 8, 8), (3, 5, 6), (3, 7)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same numbers, whichever tests ran before."""
    RANDOM.bit_generator.state = np.random.default_rng(0).bit_generator.state


def f32(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> NodeProto:
    """Inputs and outputs are names between spaces; ``_`` is one that is left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    domain = attributes.pop("domain", "")
    return helper.make_node(kind, names, outputs.split(), domain=domain, **attributes)


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
    batch: str | int = "n",
) -> tuple[Path, tuple[torch.Tensor, ...]]:
    """A model of these nodes, and its inputs as tensors. Outputs bear no shape: ONNX Runtime infers it."""
    made = helper.make_graph(
        list(nodes),
        "g",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(x.dtype), [batch, *x.shape[1:]])
            for k, x in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name, type=onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=kind)))
         for name, kind in (((o, TensorProto.FLOAT) if isinstance(o, str) else o) for o in outputs)],
        [numpy_helper.from_array(x, name) for name, x in (constants or {}).items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(made, opset_imports=imports, ir_version=9), path)
    return path, tuple(torch.from_numpy(x) for x in inputs.values())


IMAGES = [
    *(
        (kind, {})
        for kind in (
            "Abs",
            "Ceil",
            "Cos",
            "Erf",
            "Exp",
            "Floor",
            "HardSwish",
            "Neg",
            "Relu",
            "Sigmoid",
            "Sign",
            "Sin",
            "Softplus",
            "Softsign",
            "Tan",
            "Tanh",
            "Atan",
            "Cosh",
            "Sinh",
            "Mish",
            "HardSigmoid",
            "ThresholdedRelu",
            "Selu",
            "LeakyRelu",
            "Elu",
            "Celu",
            "Softmax",
            "LogSoftmax",
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSumExp",
            "ReduceSumSquare",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Flatten",
            "Identity",
            "Dropout",
        )
    ),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    ("LeakyRelu", {"alpha": 0.3}),
    ("Elu", {"alpha": 0.5}),
    ("Softmax", {"axis": 1}),
    ("Transpose", {"perm": [0, 2, 3, 1]}),
    ("Flatten", {"axis": 2}),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1]}),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
    ("LRN", {"size": 3, "alpha": 0.01}),
    ("SpaceToDepth", {"blocksize": 2}),
    ("ArgMax", {"axis": 1}),
]


@pytest.mark.parametrize(("kind", "attributes"), IMAGES, ids=lambda x: x if isinstance(x, str) else "-".join(x) or "-")
def test_an_operator_of_one_input(tmp_path: Path, kind: str, attributes: dict[str, Any]) -> None:
    kinds = TensorProto.INT64 if kind == "ArgMax" else TensorProto.FLOAT
    nodes = [node("Mul", "x w", "s"), node(kind, "s", **attributes)]
    constants = {"w": f32(6, 1, 1)}
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(*IMAGE)}, constants, [("y", kinds)])  # type: ignore[list-item]
    import_file(path, inputs)


SEVERAL: dict[str, tuple[list[NodeProto], dict[str, np.ndarray], int]] = {
    "add": ([node("Add", "s c")], {"c": f32(6, 1, 1)}, 18),
    "add a number": ([node("Add", "c s")], {"c": np.float32(2.5)}, 18),
    "subtract from a number": ([node("Sub", "c s")], {"c": np.float32(2.5)}, 18),
    "divide a number": ([node("Exp", "s", "e"), node("Div", "c e")], {"c": np.float32(2.5)}, 18),
    "square": ([node("Pow", "s c")], {"c": np.float32(2.0)}, 18),
    "add itself": ([node("Add", "s x")], {}, 18),
    "sum": ([node("Sum", "s x s")], {}, 18),
    "mean": ([node("Mean", "s x s")], {}, 18),
    "max": ([node("Max", "s x c")], {"c": f32(6, 1, 1)}, 18),
    "clip": ([node("Clip", "s a b")], {"a": np.float32(0), "b": np.float32(6)}, 18),
    "clip from below": ([node("Clip", "s a")], {"a": np.float32(0.1)}, 18),
    "clip with attributes": ([node("Clip", "s", min=-0.5, max=0.5)], {}, 9),
    "where": ([node("Greater", "s c", "g"), node("Where", "g s x")], {"c": np.float32(0.2)}, 18),
    "cast": (
        [node("Greater", "s c", "g"), node("Cast", "g", "i", to=7), node("Cast", "i", to=1)],
        {"c": np.float32(0)},
        18,
    ),
    "softmax of older opsets": ([node("Softmax", "s", axis=1)], {}, 11),
    "reduce over axes": ([node("ReduceMean", "s a", keepdims=0)], {"a": i64(2, 3)}, 18),
    "reduce with attributes": ([node("ReduceMean", "s", axes=[2, 3], keepdims=0)], {}, 11),
    "join the rest": ([node("Reshape", "s a")], {"a": i64(-1, 384)}, 18),
    "keep and join": ([node("Reshape", "s a")], {"a": i64(0, 6, -1)}, 18),
    "divide an axis": ([node("Reshape", "s a")], {"a": i64(-1, 2, 3, 8, 8)}, 18),
    "batch in the middle": (
        [node("Reshape", "s a", "r"), node("Transpose", "r", perm=[1, 0, 2])],
        {"a": i64(0, 6, 64)},
        18,
    ),
    "shapes computed": (
        [
            node("Shape", "s", "h"),
            node("Gather", "h zero", "n"),
            node("Unsqueeze", "n first", "u"),
            node("Concat", "u rest", "t", axis=0),
            node("Reshape", "s t"),
        ],
        {"zero": np.array(0, np.int64), "first": i64(0), "rest": i64(-1)},
        18,
    ),
    "zeros of the batch": (
        [
            node("Shape", "s", "h"),
            node("Slice", "h a b", "n"),
            node("Concat", "n c", "t", axis=0),
            node("ConstantOfShape", "t", "z"),
            node("Concat", "s z", axis=1),
        ],
        {"a": i64(0), "b": i64(1), "c": i64(2, 8, 8)},
        18,
    ),
    "a token for each sample": (
        [
            node("Shape", "s", "h"),
            node("Slice", "h a b", "n"),
            node("Concat", "n c", "t", axis=0),
            node("Expand", "k t", "z"),
            node("Concat", "s z", axis=1),
        ],
        {"a": i64(0), "b": i64(1), "c": i64(2, 8, 8), "k": f32(1, 2, 8, 8)},
        18,
    ),
    "expand": ([node("ReduceMean", "s a", "m"), node("Expand", "m t")], {"a": i64(2, 3), "t": i64(1, 6, 8, 8)}, 18),
    "squeeze": ([node("GlobalAveragePool", "s", "p"), node("Squeeze", "p a")], {"a": i64(2, 3)}, 18),
    "squeeze with attributes": ([node("GlobalAveragePool", "s", "p"), node("Squeeze", "p", axes=[2, 3])], {}, 11),
    "unsqueeze": ([node("Unsqueeze", "s a")], {"a": i64(1, -1)}, 18),
    "concat": ([node("Concat", "s x", axis=1)], {}, 18),
    "split": ([node("Split", "s", "a b", axis=1, num_outputs=2), node("Mul", "a b")], {}, 18),
    "split unevenly": ([node("Split", "s p", "a b", axis=1), node("Concat", "b a", axis=1)], {"p": i64(2, 4)}, 18),
    "split with attributes": ([node("Split", "s", "a b", axis=1, split=[2, 4]), node("Concat", "b a", axis=1)], {}, 11),
    "slice": ([node("Slice", "s a b c d")], {"a": i64(1, 0), "b": i64(9, -2), "c": i64(2, 3), "d": i64(2, 1)}, 18),
    "slice backwards": (
        [node("Slice", "s a b c d")],
        {"a": i64(-1), "b": i64(-(2**60)), "c": i64(2), "d": i64(-1)},
        18,
    ),
    "slice with attributes": ([node("Slice", "s", axes=[1], starts=[2], ends=[5])], {}, 9),
    "gather one": ([node("Gather", "s a", axis=2)], {"a": np.array(-1, np.int64)}, 18),
    "gather some": ([node("Gather", "s a", axis=1)], {"a": i64(3, 0, -1)}, 18),
    "gather a range": ([node("Gather", "s a", axis=1)], {"a": i64(1, 2, 3)}, 18),
    "gather elements": ([node("ArgMax", "s", "i", axis=1), node("GatherElements", "s i", axis=1)], {}, 18),
    "tile": ([node("Tile", "s a")], {"a": i64(1, 2, 1, 3)}, 18),
    "pad": ([node("Pad", "s a")], {"a": i64(0, 1, 1, 2, 0, 0, 1, 0)}, 18),
    "pad by reflection": ([node("Pad", "s a", mode="reflect")], {"a": i64(0, 0, 1, 2, 0, 0, 1, 0)}, 18),
    "pad by edges": ([node("Pad", "s a", mode="edge")], {"a": i64(0, 0, 1, 2, 0, 0, 1, 0)}, 18),
    "upsample": (
        [node("Resize", "s _ a", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"a": np.float32([1, 1, 2, 2])},
        18,
    ),
    "resize, half pixels": ([node("Resize", "s _ a", mode="linear")], {"a": np.float32([1, 1, 2, 2])}, 18),
    "resize, corners": (
        [node("Resize", "s _ _ a", mode="linear", coordinate_transformation_mode="align_corners")],
        {"a": i64(3, 6, 5, 11)},
        18,
    ),
    "resize, cubic": ([node("Resize", "s _ a", mode="cubic")], {"a": np.float32([1, 1, 2, 2])}, 18),
    "depth to space": ([node("Concat", "s x", "c", axis=1), node("DepthToSpace", "c", blocksize=2)], {}, 18),
    "pixel shuffle": ([node("Concat", "s x", "c", axis=1), node("DepthToSpace", "c", blocksize=2, mode="CRD")], {}, 18),
    "cumulative sum": ([node("CumSum", "s a")], {"a": np.array(1, np.int64)}, 18),
    "triangle": ([node("Trilu", "s", upper=0)], {}, 18),
    "einsum": ([node("Einsum", "s x", equation="nchw,ndhw->ncd")], {}, 18),
    "gelu": ([node("Gelu", "s", approximate="tanh")], {}, 20),
    "logic": (
        [node("Greater", "s x", "g"), node("Not", "g", "h"), node("Or", "g h", "o"), node("Cast", "o", to=1)],
        {},
        18,
    ),
    "reciprocal": (
        [node("Exp", "s", "e"), node("Reciprocal", "e", "r"), node("Sqrt", "r", "q"), node("Log", "q")],
        {},
        18,
    ),
    "constants are folded": (
        [node("Mul", "a a", "b"), node("Sqrt", "b", "c"), node("Mul", "s c")],
        {"a": f32(6, 1, 1)},
        18,
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_operators_with_constants(tmp_path: Path, name: str) -> None:
    nodes, constants, opset = SEVERAL[name]
    nodes = [node("Mul", "x w", "s"), *nodes]
    # Three samples, as one resize to a size says.
    path, inputs = write(tmp_path / "m.onnx", nodes, {"x": f32(*IMAGE)}, {"w": f32(6, 1, 1), **constants}, opset=opset)
    if name != "resize, corners":
        import_file(path, inputs)
        return
    with pytest.raises(NotImportable):  # sizes that hold for three samples only: nothing for any batch
        import_file(path, inputs)


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
    assert [g.name for g in pruning.find_groups(module, inputs).prunable] == ["table"]


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
    assert onnx_shapes.blocks_of(before, after) == blocks
    if blocks is not None:
        x = torch.randn(*(size[0] for size in before))
        assert torch.equal(onnx_shapes.reshape_by(x, blocks), x.reshape([size[0] for size in after]))

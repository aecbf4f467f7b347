"""Every ONNX operator that is covered, in torch: the numbers are ONNX Runtime's, whatever its attributes and opset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto

import onnx_models
from compress.onnx_import.importer import NotImportable
from compress.onnx_import.importing import import_file
from onnx_models import IMAGE, f32, i64, node, write

seeded = onnx_models.seeded
WITHOUT_ATTRIBUTES = [
    "Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Neg", "Relu", "Sigmoid", "Sign", "Sin", "Softplus",
    "Softsign", "Tan", "Tanh", "Atan", "Cosh", "Sinh", "Mish", "HardSigmoid", "ThresholdedRelu", "Selu", "LeakyRelu",
    "Elu", "Celu", "Softmax", "LogSoftmax", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1",
    "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Identity",
    "Dropout",
]  # fmt: skip
IMAGES = [
    *((kind, {}) for kind in WITHOUT_ATTRIBUTES),
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

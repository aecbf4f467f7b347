"""Small files in the manner of public ones: operator sets 7 to 22, as exporters of many years have written them.

``FILES``: name -> function that gives (model, samples by input name). Weights are drawn from a seed, so that the files
are the same every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from public_graph import File, Graph

FILES: dict[str, Callable[[], File]] = {}


def _file(*opsets: int) -> Callable[[Callable[[int], File]], Callable[[int], File]]:
    """Enter a function of an opset into FILES, once for each of them."""

    def enter(function: Callable[[int], File]) -> Callable[[int], File]:
        for opset in opsets:
            FILES[f"{function.__name__}-{opset}"] = lambda opset=opset: function(opset)  # type: ignore[misc]
        return function

    return enter


def _norm(g: Graph, x: str, channels: int) -> str:
    scale, bias, mean, var = (g.constant(v.astype(np.float32)) for v in (
        g.random.uniform(0.5, 1.5, channels), g.random.normal(size=channels) / 4, g.random.normal(size=channels) / 4,
        g.random.uniform(0.5, 1.5, channels),
    ))  # fmt: skip
    return str(g.add("BatchNormalization", x, scale, bias, mean, var))


def _head(g: Graph, x: str, channels: int) -> File:
    pooled = g.add("Flatten", g.add("GlobalAveragePool", x))
    return g.file(g.add("Gemm", pooled, g.weight(10, channels), g.weight(10), transB=1))


@_file(7, 9, 12, 15, 22)
def plain_cnn(opset: int) -> File:
    """Convolution, BatchNorm, ReLU, pooling: what most old files are."""
    g = Graph(opset)
    x = g.add("Relu", _norm(g, g.conv(g.input(3, 8, 8), 3, 16), 16))
    x = g.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return _head(g, g.add("Relu", _norm(g, g.conv(x, 16, 16), 16)), 16)


@_file(7, 11, 17)
def residual(opset: int) -> File:
    """An addition of two branches, whose BatchNorm stands after it."""
    g = Graph(opset)
    x = g.add("Relu", g.conv(g.input(3, 8, 8), 3, 16))
    y = g.conv(g.add("Relu", g.conv(x, 16, 16)), 16, 16)
    return _head(g, g.add("Relu", _norm(g, g.add("Add", x, y), 16)), 16)


@_file(7, 10, 13)
def mobile(opset: int) -> File:
    """Depthwise convolutions and ReLU6; its limits were attributes before opset 11."""
    g = Graph(opset)

    def clipped(x: str) -> str:
        if opset < 11:
            return str(g.add("Clip", x, min=0.0, max=6.0))
        return str(g.add("Clip", x, g.constant(np.float32(0)), g.constant(np.float32(6))))

    x = clipped(g.conv(g.input(8, 8, 8), 8, 16, 1))
    x = clipped(g.conv(x, 16, 16, group=16))
    return _head(g, g.conv(x, 16, 24, 1), 24)


@_file(11, 18)
def one_sided_clip(opset: int) -> File:
    """A Clip whose first limit is an empty name."""
    g = Graph(opset)
    x = g.add("Clip", g.conv(g.input(3, 8, 8), 3, 8), "", g.constant(np.float32(1)))
    return _head(g, g.conv(x, 8, 8), 8)


@_file(8, 13)
def auto_pad(opset: int) -> File:
    """Padding by a word, with an even kernel and a stride."""
    g = Graph(opset)
    x = g.add("Relu", g.conv(g.input(3, 9, 9), 3, 8, 4, auto_pad="SAME_UPPER", strides=[2, 2]))
    return _head(g, g.conv(g.add("Relu", g.conv(x, 8, 8, auto_pad="SAME_LOWER")), 8, 8, auto_pad="VALID"), 8)


@_file(9, 16)
def one_dimension(opset: int) -> File:
    """Sound: convolutions over time, dilated."""
    g = Graph(opset)
    x = g.add("Relu", g.conv(g.input(8, 40), 8, 16, 5, 1, strides=[2]))
    return _head(g, g.conv(x, 16, 16, 3, 1, dilations=[2], pads=[2, 2]), 16)


@_file(11, 20)
def three_dimensions(opset: int) -> File:
    """Video: convolutions over three axes."""
    g = Graph(opset)
    return _head(g, g.conv(g.add("Relu", g.conv(g.input(2, 6, 6, 6), 2, 8, 3, 3)), 8, 8, 3, 3), 8)


@_file(9, 14)
def transposed(opset: int) -> File:
    """Transposed convolutions with groups and a bias, and without."""
    g = Graph(opset)
    w, b = g.weight(8, 4, 2, 2, fan=8), g.weight(16)
    x = g.add("Relu", g.add("ConvTranspose", g.input(8, 6, 6), w, b, strides=[2, 2], group=4))
    return g.file(g.add("ConvTranspose", x, g.weight(16, 5, 3, 3, fan=32), g.weight(5), pads=[1, 1, 1, 1]))


@_file(7, 9, 13)
def slopes(opset: int) -> File:
    """PRelu, LeakyRelu, Elu."""
    g = Graph(opset)
    x = g.add("PRelu", g.conv(g.input(3, 8, 8), 3, 8), g.constant(np.full((8, 1, 1), 0.2, np.float32)))
    x = g.add("LeakyRelu", g.conv(x, 8, 8), alpha=0.1)
    return _head(g, g.add("Elu", g.conv(x, 8, 8)), 8)


@_file(8, 12)
def inception(opset: int) -> File:
    """Branches, two poolings, Concat; LRN and Dropout, as in 2014."""
    g = Graph(opset)
    x = g.add("LRN", g.add("Relu", g.conv(g.input(3, 8, 8), 3, 8)), size=5)
    around: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    parts = [g.conv(x, 8, 8, 1), g.conv(x, 8, 8), g.add("MaxPool", x, **around), g.add("AveragePool", x, **around)]
    x = g.add("Dropout", g.add("Concat", *parts, axis=1), **({"ratio": 0.5} if opset < 12 else {}))
    return _head(g, g.conv(x, 32, 16, 1), 16)


@_file(7, 8, 9, 10, 13)
def enlarged(opset: int) -> File:
    """Upsample, then Resize, with the sizes where each version has them."""
    g = Graph(opset)
    x, scales = g.add("Relu", g.conv(g.input(3, 6, 6), 3, 8)), [1.0, 1.0, 2.0, 2.0]
    if opset < 9:
        x = g.add("Upsample", x, scales=scales, mode="linear" if opset > 7 else "nearest")
    elif opset < 10:
        x = g.add("Upsample", x, g.constant(np.float32(scales)), mode="linear")
    elif opset < 11:
        x = g.add("Resize", x, g.constant(np.float32(scales)), mode="linear")
    else:
        x = g.add("Resize", x, "", g.constant(np.float32(scales)), mode="linear")
    return _head(g, g.conv(x, 8, 8), 8)


@_file(7, 11, 13, 18)
def excited(opset: int) -> File:
    """Squeeze and excite: a mean over two axes, a Sigmoid, a product that is broadcast."""
    g = Graph(opset)
    x = g.add("Relu", g.conv(g.input(3, 8, 8), 3, 16))
    mean = g.axes("ReduceMean", x, [2, 3], 18, keepdims=1)
    scale = g.add("Sigmoid", g.conv(g.add("Relu", g.conv(mean, 16, 4, 1)), 4, 16, 1))
    return _head(g, g.conv(g.add("Mul", x, scale), 16, 16), 16)


@_file(7, 9, 13)
def cut_and_padded(opset: int) -> File:
    """Slice, Split, Pad, Squeeze, Unsqueeze: attributes that became inputs."""
    g = Graph(opset)
    x = g.input(4, 10, 10)
    if opset < 10:
        x = g.add("Slice", x, axes=[2, 3], starts=[1, 1], ends=[9, 9])
        x = g.add("Pad", x, pads=[0, 0, 1, 1, 0, 0, 1, 1])
    else:
        bounds = (g.constant(np.asarray(v, np.int64)) for v in ([1, 1], [9, 9], [2, 3]))
        x = g.add("Slice", x, *bounds)
        x = g.add("Pad", x, g.constant(np.asarray([0, 0, 1, 1, 0, 0, 1, 1], np.int64)))
    halves = g.add("Split", x, outputs=2, axis=1) if opset < 18 else g.add("Split", x, outputs=2, axis=1, num_outputs=2)
    x = g.add("Relu", g.conv(g.add("Add", *halves), 2, 8))
    x = g.axes("Squeeze", g.axes("Unsqueeze", x, [2]), [2])
    return _head(g, g.conv(x, 8, 8), 8)


@_file(8, 12, 13)
def soft(opset: int) -> File:
    """A softmax that took all axes from its own on as one, before opset 13."""
    g = Graph(opset)
    x = g.add("Softmax", g.conv(g.input(3, 4, 4), 3, 8), axis=1)
    return g.file(g.add("Gemm", g.add("Flatten", x), g.weight(10, 128), g.weight(10), transB=1))


@_file(9, 14)
def instance_norms(opset: int) -> File:
    """Style transfer."""
    g = Graph(opset)
    x = g.conv(g.input(3, 8, 8), 3, 8)
    x = g.add("InstanceNormalization", x, g.constant(np.linspace(0.5, 1.5, 8, dtype=np.float32)), g.weight(8))
    return g.file(g.conv(g.add("Relu", x), 8, 3))


@_file(9, 16)
def group_norms(opset: int) -> File:
    """GroupNorm as torch writes it: an InstanceNorm of ones and zeros between two Reshapes; its scale is unsqueezed."""
    g = Graph(opset)
    x = g.conv(g.input(3, 8, 8), 3, 8)
    ones, zeros = g.constant(np.ones(4, np.float32)), g.constant(np.zeros(4, np.float32))
    for _ in range(2):
        grouped = g.add("Reshape", x, g.constant(np.asarray([0, 4, -1], np.int64)))
        x = g.add("InstanceNormalization", grouped, ones, zeros)
        x = g.add("Reshape", x, g.constant(np.asarray([-1, 8, 8, 8], np.int64)))
        scale, shift = (g.axes("Unsqueeze", g.weight(8), [1, 2]) for _ in range(2))
        x = g.conv(g.add("Relu", g.add("Add", g.add("Mul", x, scale), shift)), 8, 8)
    return _head(g, x, 8)


@_file(21, 22)
def group_norm_operator(opset: int) -> File:
    """GroupNormalization as one operator."""
    g = Graph(opset)
    x = g.add("GroupNormalization", g.conv(g.input(3, 8, 8), 3, 8), g.weight(8), g.weight(8), num_groups=4)
    return _head(g, g.conv(g.add("Relu", x), 8, 8), 8)


@_file(7, 11, 17)
def layer_norms(opset: int) -> File:
    """LayerNorm from single operators, and as one."""
    g = Graph(opset)
    x = g.linear(g.input(6, 16), 16, 32)
    scale, shift = g.constant(g.random.uniform(0.5, 1.5, 32).astype(np.float32)), g.weight(32)
    if opset < 17:
        centred = g.add("Sub", x, g.axes("ReduceMean", x, [2], 18))
        square = g.add("Pow", centred, g.constant(np.float32(2)))
        spread = g.add("Sqrt", g.add("Add", g.axes("ReduceMean", square, [2], 18), g.constant(np.float32(1e-5))))
        x = g.add("Add", g.add("Mul", g.add("Div", centred, spread), scale), shift)
    else:
        x = g.add("LayerNormalization", x, scale, shift)
    return g.file(g.linear(x, 32, 8))


@_file(13, 20)
def gelu(opset: int) -> File:
    """Gelu from Erf, and as one operator."""
    g = Graph(opset)
    x = g.linear(g.input(16), 16, 32)
    if opset < 20:
        erf = g.add("Add", g.add("Erf", g.add("Div", x, g.constant(np.float32(1.41421)))), g.constant(np.float32(1)))
        x = g.add("Mul", g.add("Mul", x, erf), g.constant(np.float32(0.5)))
    else:
        x = g.add("Gelu", x)
    return g.file(g.linear(x, 32, 8))


def _gemm(opset: int, bias: tuple[int, ...] | None, **attributes: Any) -> File:
    g = Graph(opset)
    x = g.input(64)
    biased = () if bias is None else (g.constant(g.random.normal(size=bias).astype(np.float32)),)
    return g.file(g.add("Gemm", x, g.weight(48, 64), *biased, transB=1, **attributes))


for _number, (_opset, _bias, _attributes) in enumerate([
    (7, (48,), {"alpha": 2.0, "beta": 0.5}), (9, (48,), {"beta": 0.0}), (11, (1, 48), {}), (13, (), {"beta": 3.0}),
    (13, (1,), {}), (14, (1, 1), {"alpha": 0.5}), (15, None, {"alpha": -1.5}), (19, None, {}),
]):  # fmt: skip
    FILES[f"gemm{_number}-{_opset}"] = lambda o=_opset, b=_bias, a=_attributes: _gemm(o, b, **a)  # type: ignore[misc]


@_file(11, 13)
def gemm_of_two(opset: int) -> File:
    """Products of two computed values; a bias that is computed, scaled."""
    g = Graph(opset)
    x = g.input(16)
    a, b = g.linear(x, 16, 24), g.linear(x, 16, 24)
    turned = g.add("Gemm", a, b, transA=1, alpha=0.1)
    y = g.add("Gemm", x, g.weight(16, 24, fan=16), g.add("Relu", b), beta=0.5)
    return g.file(g.add("MatMul", y, turned))


@_file(9, 13)
def odd_constants(opset: int) -> File:
    """Constants of three dimensions, of one, and on the left of a product."""
    g = Graph(opset)
    x = g.add("MatMul", g.input(4, 6, 16), g.weight(4, 16, 12, fan=16))
    x = g.add("MatMul", g.weight(6, 6), g.add("Relu", x))
    g.output(g.add("MatMul", x, g.weight(12, fan=12)))
    return g.file(g.linear(x, 12, 8))


@_file(8, 12, 13, 17)
def behind_nodes(opset: int) -> File:
    """Weights behind Constant, Identity, Transpose, Cast and Reshape."""
    g = Graph(opset)
    x = g.input(32)

    def raw(*shape: int) -> np.ndarray:
        return g.random.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(32))

    x = g.add("Relu", g.add("MatMul", x, g.add("Constant", value=numpy_helper.from_array(raw(32, 32)))))
    x = g.add("Relu", g.add("MatMul", x, g.add("Identity", g.constant(raw(32, 32)))))
    x = g.add("Relu", g.add("Gemm", x, g.add("Transpose", g.constant(raw(32, 32)), perm=[1, 0]), g.weight(32)))
    x = g.add(
        "Relu", g.add("MatMul", x, g.add("Cast", g.constant(raw(32, 32).astype(np.float16)), to=TensorProto.FLOAT))
    )
    shape = g.constant(np.asarray([32, 32], np.int64))
    return g.file(g.add("MatMul", x, g.add("Reshape", g.constant(raw(1, 1024)), shape)))


@_file(11, 17)
def shared_weights(opset: int) -> File:
    """One matrix in two layers, read in two ways, and as an embedding."""
    g = Graph(opset)
    table = g.weight(24, 24)
    x = g.add("Gather", table, g.input(6, name="ids", low=0, high=24))
    x = g.add("Relu", g.add("MatMul", x, table))
    x = g.add("Relu", g.add("MatMul", x, table))
    x = g.add("Reshape", x, g.constant(np.asarray([-1, 24], np.int64)))
    return g.file(g.add("MatMul", g.add("Gemm", x, table, transB=1), g.add("Transpose", table, perm=[1, 0])))


@_file(9, 13)
def tapped(opset: int) -> File:
    """Outputs taken in front of a ReLU, and a branch from there."""
    g = Graph(opset)
    first = g.conv(g.input(3, 6, 6), 3, 8)
    second = g.conv(g.add("Relu", first), 8, 8)
    last = g.conv(g.add("Add", g.add("Relu", second), second), 8, 8)
    g.output(first)
    return g.file(last)


@_file(9, 14)
def outputs_of_all_kinds(opset: int) -> File:
    """An output in double precision, one of whole numbers, and one that is the input."""
    g = Graph(opset)
    x = g.input(16)
    y = g.linear(x, 16, 8)
    g.output(x)
    g.output(g.add("Cast", y, to=TensorProto.DOUBLE), TensorProto.DOUBLE)
    g.output(g.add("ArgMax", y, axis=1), TensorProto.INT64)
    return g.file(y)


def _attention(g: Graph, x: str, mask: Callable[[str], str]) -> str:
    q, k, v = (g.linear(x, 16, 16) for _ in range(3))
    scores = g.add("Mul", g.add("MatMul", q, g.add("Transpose", k, perm=[0, 2, 1])), g.constant(np.float32(0.25)))
    return g.linear(g.add("MatMul", g.add("Softmax", mask(scores), axis=2), v), 16, 16)


def _triangle(value: float) -> np.ndarray:
    return np.triu(np.full((6, 6), value, np.float32), 1)


@_file(13, 17)
def mask_added(opset: int) -> File:
    """A causal mask of -inf that is added: a constant, and a Constant node."""
    g = Graph(opset)
    x = _attention(g, g.input(6, 16), lambda s: g.add("Add", s, g.constant(_triangle(-np.inf))))
    node = numpy_helper.from_array(_triangle(float(np.finfo(np.float32).min)))
    return g.file(_attention(g, x, lambda s: g.add("Add", s, g.add("Constant", value=node))))


@_file(11, 20)
def mask_chosen(opset: int) -> File:
    """A causal mask that chooses -inf in place of a score; another, computed from a padding of ones and zeros."""
    g = Graph(opset)
    never, below = g.constant(np.float32(-np.inf)), g.constant(np.triu(np.ones((6, 6), bool), 1))
    # Before opset 13 a softmax joins the last axes only if told of the last.
    x = _attention(g, g.input(6, 16), lambda s: g.add("Where", below, never, s))
    given = g.constant(np.asarray([1, 1, 1, 1, 1, 0], np.float32))
    away = g.add("Mul", g.add("Sub", g.constant(np.float32(1)), given), g.constant(np.float32(-1e4)))
    return g.file(_attention(g, x, lambda s: g.add("Add", s, away)))


@_file(7, 13)
def recurrent(opset: int) -> File:
    """An LSTM in both directions, with empty names among its inputs, then a GRU."""
    g = Graph(opset)
    x = g.add("Transpose", g.input(5, 8), perm=[1, 0, 2])
    w, r, b = g.weight(2, 64, 8, fan=16), g.weight(2, 64, 16, fan=32), g.weight(2, 128)
    x = g.add("LSTM", x, w, r, b, hidden_size=16, direction="bidirectional")
    x = g.add("Reshape", g.add("Transpose", x, perm=[0, 2, 1, 3]), g.constant(np.asarray([5, -1, 32], np.int64)))
    x = g.add("GRU", x, g.weight(1, 48, 32, fan=64), g.weight(1, 48, 16, fan=32), "", "", hidden_size=16)
    return g.file(g.linear(g.axes("Squeeze", g.add("Transpose", x, perm=[2, 0, 1, 3]), [2]), 16, 8))


@_file(11, 16)
def branches(opset: int) -> File:
    """An If whose inner graphs read a value in front of a ReLU, and a weight."""
    g = Graph(opset)
    x = g.linear(g.input(8), 8, 8)
    w = g.weight(8, 8)
    inner = [
        helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", 8])])
        for name, node in (
            ("then", helper.make_node("MatMul", [x, w], ["then_y"], "inner")),
            ("else", helper.make_node("Neg", [x], ["else_y"], "turned")),
        )
    ]
    y = g.add("If", g.constant(np.asarray(True)), then_branch=inner[0], else_branch=inner[1])
    return g.file(g.linear(g.add("Add", g.add("Relu", x), y), 8, 8))


@_file(18)
def functions(opset: int) -> File:
    """A function of the file's own."""
    g = Graph(opset)
    x = g.add("Block", g.input(8), g.weight(8, 8), domain="local")
    nodes = [helper.make_node("MatMul", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    made = helper.make_function("local", "Block", ["a", "b"], ["d"], nodes, [helper.make_opsetid("", opset)])
    return g.file(g.linear(x, 8, 8), [made])


@_file(13)
def double_precision(opset: int) -> File:
    """Weights of double precision."""
    g = Graph(opset)
    x = g.add("Cast", g.input(8), to=TensorProto.DOUBLE)
    y = g.add("MatMul", x, g.constant(g.random.normal(size=(8, 8))))
    g.output(y, TensorProto.DOUBLE)
    return g.file()


@_file(11)
def two_inputs(opset: int) -> File:
    """Images and a vector."""
    g = Graph(opset)
    x = g.add("Flatten", g.add("Relu", g.conv(g.input(3, 4, 4), 3, 8)))
    return g.file(g.linear(g.add("Concat", x, g.input(5, name="extra"), axis=1), 133, 8))


FIRST = {name.partition("-")[0]: name for name in sorted(FILES, key=lambda n: -int(n.partition("-")[2]))}
"""Function -> the file of its oldest operator set."""

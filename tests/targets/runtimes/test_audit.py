"""What runs in integers, and why the rest does not: read from the graph that a runtime really executes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets.errors import ModelError
from targets.machine import environment
from targets.runtimes.openvino.openvino_cpu import OpenvinoCpu
from targets.runtimes.ort.ort_cpu import OrtCpu
from targets.target import Layer
from targets.workers.local import LocalTarget

onnx = pytest.importorskip("onnx")
quantization = pytest.importorskip("onnxruntime.quantization")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="openvino is not installed; run: pip install 'paretopress[openvino]'",
)
only_x86 = pytest.mark.skipif(
    environment.cpu_architecture() != "x86_64", reason="which kernels there are is known for x86 only; run it there"
)
U8, S8 = quantization.QuantType.QUInt8, quantization.QuantType.QInt8


@pytest.fixture(params=["ort-cpu", pytest.param("openvino-cpu", marks=needs_openvino)])
def either(request) -> Iterator[LocalTarget]:
    made = OrtCpu() if request.param == "ort-cpu" else OpenvinoCpu()
    yield made
    made.close()


@pytest.fixture
def ort() -> Iterator[OrtCpu]:
    made = OrtCpu()
    yield made
    made.close()


@pytest.fixture
def openvino() -> Iterator[OpenvinoCpu]:
    made = OpenvinoCpu()
    yield made
    made.close()


def normal(*shape: int) -> np.ndarray:
    return 0.2 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def save(path: Path, nodes: Sequence[Any], x: Sequence[int | str], constants: dict[str, np.ndarray]) -> Path:
    """From ``x`` to ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), outputs.split(), name=outputs.split()[0] + "_node", **attributes)


def residual(folder: Path) -> Path:
    """Three convolutions, a shortcut around the second, a linear layer."""
    same = {"pads": [1, 1, 1, 1]}
    return save(
        folder / "residual.onnx",
        [
            node("Conv", "x k0 b", "c0", **same),
            node("Relu", "c0", "r0"),
            node("Conv", "r0 k1 b", "c1", **same),
            node("Add", "c1 r0", "a"),
            node("Relu", "a", "r1"),
            node("Conv", "r1 k2 b", "c2", **same),
            node("Relu", "c2", "r2"),
            node("GlobalAveragePool", "r2", "p"),
            node("Flatten", "p", "f"),
            node("Gemm", "f d o", "y", transB=1),
        ],
        ["n", 8, 12, 12],
        {
            "k0": normal(16, 8, 3, 3), "k1": normal(16, 16, 3, 3), "k2": normal(16, 16, 3, 3),
            "b": normal(16), "d": normal(10, 16), "o": normal(10),
        },
    )  # fmt: skip


def perceptron(folder: Path) -> Path:
    return save(
        folder / "perceptron.onnx",
        [node("MatMul", "x w1", "a"), node("Relu", "a", "r"), node("MatMul", "r w2", "y")],
        ["n", 32],
        {"w1": normal(32, 64), "w2": normal(64, 8)},
    )


def recurrent(folder: Path) -> Path:
    return save(
        folder / "recurrent.onnx",
        [
            helper.make_node("LSTM", ["x", "W", "R"], ["", "h"], name="h_node", hidden_size=16),
            node("Squeeze", "h axes", "s"),
            node("MatMul", "s w", "y"),
        ],
        [5, 1, 8],
        {"W": normal(1, 64, 8), "R": normal(1, 64, 16), "w": normal(16, 4), "axes": np.array([0])},
    )


def attention(folder: Path) -> Path:
    return save(
        folder / "attention.onnx",
        [
            node("MatMul", "x wq", "q"),
            node("MatMul", "x wk", "k"),
            node("Transpose", "k", "t", perm=[0, 2, 1]),
            node("MatMul", "q t", "s"),
            node("Softmax", "s", "p", axis=-1),
            node("MatMul", "p x", "y"),
        ],
        ["n", 6, 16],
        {"wq": normal(16, 16), "wk": -normal(16, 16)},
    )


class _Samples(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, shape: Sequence[int]) -> None:
        self._left = iter([{"x": normal(*shape)} for _ in range(2)])

    def get_next(self) -> Any:
        return next(self._left, None)


def quantized(path: Path, shape: Sequence[int], activation: Any = U8, **options: Any) -> Path:
    """In QDQ form, int8 weights per channel."""
    result = path.with_suffix(".int8.onnx")
    quantization.quantize_static(
        path, result, _Samples(shape), activation_type=activation, weight_type=S8, per_channel=True, **options
    )
    return result


def audited(target: LocalTarget, path: Path) -> dict[str, Layer]:
    found = target.audit(path)
    assert found is not None
    assert len({layer.name for layer in found}) == len(found)
    assert all(layer.integer or layer.why for layer in found)
    return {layer.name: layer for layer in found}


def integers(found: dict[str, Layer]) -> set[str]:
    return {name for name, layer in found.items() if layer.integer}


IMAGE = (1, 8, 12, 12)
PRODUCTS = {"c0_node", "c1_node", "c2_node", "y_node"}


def test_a_float_file_has_no_integer_products(either, tmp_path):
    found = audited(either, residual(tmp_path))
    assert set(found) == PRODUCTS
    assert integers(found) == set()
    assert {layer.why for layer in found.values()} == {"float in the file"}


def test_all_of_a_quantized_file_runs_in_integers(either, tmp_path):
    found = audited(either, quantized(residual(tmp_path), IMAGE))
    assert len(found) == 4
    assert len(integers(found)) == 4
    assert PRODUCTS - set(found) <= {"y_node"}


@only_x86
def test_signed_activations_are_not_fused_everywhere(ort, tmp_path):
    found = audited(ort, quantized(residual(tmp_path), IMAGE, S8))
    assert set(found) == PRODUCTS
    assert 0 < len(integers(found)) < 4
    assert found["c1_node"].why == (
        "activation and weight types (int8, int8), quantized to uint8, have no integer kernel for this operator here"
    )


def test_a_convolution_left_in_floats_is_told(either, tmp_path):
    """The first one: its input comes from outside, so nothing around it is quantized."""
    found = audited(either, quantized(residual(tmp_path), IMAGE, nodes_to_exclude=["c0_node"]))
    assert not found["c0_node"].integer
    assert "float in the file" in found["c0_node"].why
    assert {"c1_node", "c2_node"} <= integers(found)


def test_what_onnx_runtime_quantizes_itself_is_told(ort, tmp_path):
    """Left out between two quantized layers, a convolution without a bias runs in integers all the same."""
    path = residual(tmp_path)
    model = onnx.load(path)
    del next(one for one in model.graph.node if one.name == "c2_node").input[2:]
    onnx.save(model, path)
    found = audited(ort, quantized(path, IMAGE, nodes_to_exclude=["c2_node"]))
    one = found["c2_node"]
    assert "float in the file" in one.why
    assert one.integer == ("ONNX Runtime quantized its weights when loading" in one.why)
    if environment.installed_versions(["onnxruntime"])["onnxruntime"].startswith("1.31."):
        assert one.integer
    assert integers(found) >= PRODUCTS - {"c2_node"}


def test_a_float_convolution_between_quantized_ones_is_told(ort, tmp_path):
    found = audited(ort, quantized(residual(tmp_path), IMAGE, nodes_to_exclude=["c2_node"]))
    assert found["c2_node"] == Layer("c2_node", "Conv", False, "its weight is float in the file")
    assert integers(found) == PRODUCTS - {"c2_node"}


def test_an_output_that_stays_float_is_told(ort, tmp_path):
    """Quantizers before the convolution only: it goes on to the Relu in floats."""
    path = quantized(residual(tmp_path), IMAGE)
    model = onnx.load(path)
    quantizer = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "r2")
    after = next(n for n in model.graph.node if n.input and n.input[0] == quantizer.output[0])
    for one in model.graph.node:
        one.input[:] = ["r2" if name == after.output[0] else name for name in one.input]
    model.graph.node.remove(quantizer)
    model.graph.node.remove(after)
    onnx.save(model, path)
    found = audited(ort, path)
    assert integers(found) == PRODUCTS - {"c2_node"}
    assert found["c2_node"].why.startswith("quantized in the file, but its output goes on to")


def test_an_activation_that_the_quantizer_does_not_swallow_is_told(ort, tmp_path):
    """A zero point of 128 leaves room below zero, so that the Relu has to be computed."""
    path = quantized(residual(tmp_path), IMAGE)
    model = onnx.load(path)
    nodes = list(model.graph.node)
    quantizer = next(one for one in nodes if one.op_type == "QuantizeLinear" and one.input[0] in ("c2", "r2"))
    convolution = next(one for one in nodes if one.name == "c2_node")
    zero = next(one for one in model.graph.initializer if one.name == quantizer.input[2])
    zero.CopyFrom(numpy_helper.from_array(np.array(128, np.uint8), zero.name))
    convolution.output[0] = "raw"
    model.graph.node.insert(nodes.index(convolution) + 1, node("Relu", "raw", quantizer.input[0]))
    onnx.save(model, path)
    assert audited(ort, path)["c2_node"] == Layer(
        "c2_node", "FusedConv", False, "quantized in the file, but Relu stands between it and its QuantizeLinear"
    )


def test_an_optimization_level_that_does_not_fuse_is_told(tmp_path):
    target = OrtCpu(opt="basic")
    try:
        found = audited(target, quantized(residual(tmp_path), IMAGE))
    finally:
        target.close()
    assert set(found) == PRODUCTS
    assert {layer.why for layer in found.values()} == {
        "quantized in the file, but not fused at this optimization level"
    }


def test_dynamic_int8(either, tmp_path):
    path = perceptron(tmp_path)
    quantization.quantize_dynamic(path, path, weight_type=S8)
    found = audited(either, path)
    assert len(found) == 2
    if isinstance(either, OrtCpu):
        assert {layer.operator for layer in found.values()} == {"DynamicQuantizeMatMul"}
        assert len(integers(found)) == 2
    else:
        assert {layer.why for layer in found.values()} == {"MatMulInteger in the file, but computed in f32 x f32"}


def test_recurrences_have_no_static_kernel(ort, tmp_path):
    path = recurrent(tmp_path)
    found = audited(ort, quantized(path, (5, 1, 8)))
    assert found["h_node"] == Layer(
        "h_node", "LSTM", False, "ONNX Runtime has no static int8 kernel for LSTM"
    )  # fmt: skip
    assert integers(found) == set(found) - {"h_node"}
    quantization.quantize_dynamic(path, path)
    assert {layer.operator for layer in audited(ort, path).values() if layer.integer} == {
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
    }


@needs_openvino
def test_recurrences_on_openvino(openvino, tmp_path):
    found = audited(openvino, quantized(recurrent(tmp_path), (5, 1, 8)))
    assert found["h_node"].operator.startswith("RNNSeq")
    assert (found["h_node"].integer, found["h_node"].why) == (False, "float in the file")


def test_products_of_two_activations_count(either, tmp_path):
    found = audited(either, attention(tmp_path))
    assert set(found) == {"q_node", "k_node", "s_node", "y_node"}
    assert integers(found) == set()
    if isinstance(either, OrtCpu):
        assert {name: layer.why.endswith("; no constant weight") for name, layer in found.items()} == {
            "q_node": False, "k_node": False, "s_node": True, "y_node": True,
        }  # fmt: skip


@needs_openvino
@only_x86
def test_a_quantized_product_in_floats_is_told(openvino, tmp_path):
    found = audited(openvino, quantized(attention(tmp_path), (1, 6, 16)))
    assert {"q_node", "k_node"} <= integers(found)
    assert all("quantized in the file, but computed in" in one.why for one in found.values() if not one.integer)


def branches(path: Path) -> Path:
    """A branch with a product on either side; its weight is outside."""
    bodies = {
        f"{word}_branch": helper.make_graph(
            [node("MatMul", "x w", word), node("Relu", word, f"{word}_out")],
            word,
            [],
            [helper.make_tensor_value_info(f"{word}_out", TensorProto.FLOAT, None)],
        )
        for word in ("then", "else")
    }
    return save(
        path,
        [
            node("ReduceSum", "x", "sum", keepdims=0),
            node("Greater", "sum zero", "c"),
            node("If", "c", "y", **bodies),
        ],
        ["n", 8],
        {"w": normal(8, 8), "zero": np.array(0, np.float32)},
    )


def test_products_in_branches_count(ort, tmp_path):
    found = audited(ort, branches(tmp_path / "m.onnx"))
    assert set(found) == {"then_node", "else_node"}
    assert {layer.why for layer in found.values()} == {"float in the file"}


def test_weights_of_four_bits(ort, tmp_path):
    def blocks(level: int) -> Layer:
        path = save(
            tmp_path / f"{level}.onnx",
            [
                helper.make_node(
                    "MatMulNBits", ["x", "w", "s"], ["y"], name="y_node", domain="com.microsoft",
                    K=32, N=16, bits=4, block_size=32, accuracy_level=level,
                )
            ],
            ["n", 32],
            {"w": np.zeros((16, 1, 16), np.uint8), "s": np.ones(16, np.float32)},
        )  # fmt: skip
        model = onnx.load(path)
        model.opset_import.add(domain="com.microsoft", version=1)
        onnx.save(model, path)
        return audited(ort, path)["y_node"]

    assert blocks(4) == Layer("y_node", "MatMulNBits", True)
    assert not blocks(0).integer
    assert "only its weights are integers" in blocks(0).why


def test_weights_in_a_file_of_their_own(ort, tmp_path):
    path = quantized(residual(tmp_path), IMAGE)
    model = onnx.load(path)
    outside = tmp_path / "outside.onnx"
    onnx.save(model, outside, save_as_external_data=True, location="outside.bin", size_threshold=0)
    assert audited(ort, outside) == audited(ort, path)


def test_nothing_is_left_behind(ort, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    path = residual(tmp_path)
    before = set(tmp_path.iterdir())
    audited(ort, path)
    assert list(folder.iterdir()) == []
    assert set(tmp_path.iterdir()) == before


def test_what_is_no_model_is_refused(either, tmp_path):
    (tmp_path / "text.onnx").write_text("hello " * 100)
    for name in ("text.onnx", "missing.onnx"):
        with pytest.raises(ModelError, match=name):
            either.audit(tmp_path / name)

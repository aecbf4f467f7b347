"""Weights in fewer bits: as large as promised, as close as promised, and run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compress.onnx_files.exporting import export
from compress.onnx_files.parity import open_session
from compress.precision.quantizing import quantize
from compress.precision.stored_weights import BLOCK, pack_four_bits, stored_model
from targets.errors import QuantizeError, RequestError
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import Capabilities


@pytest.fixture(scope="session")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two linear layers, (n, 100) -> (n, 20); 100 is no multiple of a block."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("perceptron") / "model.onnx"
    export(nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 20)).eval(), torch.randn(4, 100), path)
    return path


ROWS = np.random.default_rng(0).standard_normal((50, 100)).astype(np.float32)


def _run(path: Path, rows: np.ndarray = ROWS) -> np.ndarray:
    session = open_session(path)
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: rows})[0]
    return found


def _one(weight: np.ndarray, kind: str = "MatMul", opset: int = 18) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *weight.shape[:1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.mark.parametrize(
    ("precision", "size", "error"), [("fp16", 0.6, 1e-3), ("int8-weights", 0.4, 0.01), ("int4-weights", 0.35, 0.15)]
)
def test_the_file_is_smaller_and_computes_nearly_the_same(
    perceptron: Path, tmp_path: Path, precision: str, size: float, error: float
) -> None:
    found = quantize(perceptron, tmp_path / "small.onnx", precision)
    onnx.checker.check_model(str(found.path))
    assert found.size == found.path.stat().st_size < size * perceptron.stat().st_size
    assert (len(found.int8), len(found.kept)) == ((0, 2) if precision == "fp16" else (2, 0))
    expected, outputs = _run(perceptron), _run(found.path)
    assert 0 < np.linalg.norm(outputs - expected) < error * np.linalg.norm(expected)


@pytest.mark.parametrize("precision", ["fp16", "int8-weights"])
def test_convolutions_are_stored_smaller_as_well(exported: Path, digits: Any, tmp_path: Path, precision: str) -> None:
    found = quantize(exported, tmp_path / "small.onnx", precision)
    images = digits.test[0].numpy()
    assert found.size < 0.65 * exported.stat().st_size
    assert (_run(found.path, images).argmax(1) == _run(exported, images).argmax(1)).mean() >= 0.99


def test_eight_bits_scale_every_output_channel_by_itself() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32) * 10.0 ** np.arange(-8, 8)
    weight = weight.astype(np.float32)
    model, layers = stored_model(_one(weight), "int8-weights")
    assert layers == ("y",)
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = values["w_int8"] * values["w_scale8"]
    assert (np.abs(found - weight) <= 0.51 * values["w_scale8"]).all()
    assert (np.abs(values["w_int8"]).max(0) == 127).all()


def test_four_bits_are_what_the_runtime_reads_and_hit_the_largest_of_every_block(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((70, 5)).astype(np.float32)
    blocks, scales = pack_four_bits(weight)
    assert (blocks.shape, scales.shape) == ((5, 3, BLOCK // 2), (15,))
    model, _ = stored_model(_one(weight), "int4-weights")
    onnx.save(model, tmp_path / "four.onnx")
    # The identity in front gives the weights as they are computed with.
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "accuracy_level":
            attribute.i = 0
    onnx.save(model, tmp_path / "four.onnx")
    found = _run(tmp_path / "four.onnx", np.eye(70, dtype=np.float32))
    for start in range(0, 70, BLOCK):
        part, wanted = found[start : start + BLOCK], weight[start : start + BLOCK]
        largest = np.abs(wanted).argmax(0)
        np.testing.assert_allclose(part[largest, range(5)], wanted[largest, range(5)], rtol=1e-5)
        assert (np.abs(part - wanted) <= np.abs(wanted).max(0) / 8 + 1e-6).all()


def test_what_half_precision_does_not_hold_stays_in_float() -> None:
    rest = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    for factor in (1e6, 1e-8):
        with pytest.raises(QuantizeError, match="fp16 would change nothing"):
            stored_model(_one(rest * np.float32(factor)), "fp16")
    model, _ = stored_model(_one(rest), "fp16")
    assert [t.data_type for t in model.graph.initializer] == [TensorProto.FLOAT16]


def test_what_would_change_nothing_or_cannot_be_is_refused(exported: Path, perceptron: Path, tmp_path: Path) -> None:
    weight = np.ones((3, 1, 3, 3), np.float32)
    with pytest.raises(QuantizeError, match="no matrix product"):
        stored_model(_one(weight, "Conv"), "int4-weights")
    with pytest.raises(QuantizeError, match="opset 11"):
        stored_model(_one(np.ones((9, 9), np.float32), opset=11), "int8-weights")
    with pytest.raises(RequestError, match="takes training"):
        quantize(perceptron, tmp_path / "x.onnx", "int8-qat")
    lacking = FakeTarget(capabilities=Capabilities(lacks=("com.microsoft:MatMulNBits",)))
    with pytest.raises(RequestError, match="does not run on the target"):
        quantize(exported, tmp_path / "x.onnx", "int4-weights", target=lacking)
    assert not (tmp_path / "x.onnx").exists()

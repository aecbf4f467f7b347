"""Lower precision: what is in integers afterwards, how little it costs, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

import targets
from compress.onnx_files import graphs, isolation
from compress.onnx_files.exporting import export
from compress.onnx_files.parity import open_session
from compress.precision import quantizer, ranges
from compress.precision.layer_costs import layer_errors
from compress.precision.quantizer import has_matmul, quantizable_layers, quantize_static
from compress.precision.quantizing import quantize
from compress.precision.ranges import collect_ranges
from targets.errors import ModelError, QuantizeError, RequestError
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import Capabilities

TWO = ("a", "b")


@pytest.fixture(scope="session")
def calibration(digits: Any) -> np.ndarray:
    found: np.ndarray = digits.train[0][:128].numpy()
    return found


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _decisions(path: Path, images: torch.Tensor) -> np.ndarray:
    session = open_session(path)
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0].argmax(axis=1)
    return found


def _agreement(a: Path, b: Path, digits: Any) -> float:
    return float((_decisions(a, digits.test[0]) == _decisions(b, digits.test[0])).mean())


def _integer_layers(path: Path, folder: Path) -> dict[str, int]:
    """How many layers ONNX Runtime really runs in integers: counted in its own optimized graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
    names = (
        "QLinearConv",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "DynamicQuantizeMatMul",
        "Conv",
        "Gemm",
        "FusedConv",
    )
    return {name: kinds.count(name) for name in names if name in kinds}


def _static(path: Path, batch: str | int = 4, *, names: bool = True, inputs: tuple[str, ...] = ("x",)) -> Path:
    """Sum of the inputs (batch, 6), then two products."""
    random = np.random.default_rng(0)
    weights = [random.standard_normal(s).astype(np.float32) for s in ((6, 8), (8, 3))]
    nodes = [
        helper.make_node("Sum", list(inputs), ["s"]),
        helper.make_node("MatMul", ["s", "w0"], ["h"], name="first" * names),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["y"], name="second" * names),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 6]) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


ROWS = np.random.default_rng(5).standard_normal((70, 6)).astype(np.float32)


@pytest.mark.parametrize("method", ["minmax", "percentile", "search"])
def test_int8_decides_as_fp32_does(
    exported: Path, calibration: np.ndarray, digits: Any, tmp_path: Path, method: str, capfd: Any
) -> None:
    before = _hash(exported)
    found = quantize(exported, tmp_path / "q.onnx", "int8", calibration, method=method)
    assert capfd.readouterr() == ("", ""), "ONNX Runtime's calibrators print"
    assert _agreement(exported, found.path, digits) >= 0.97
    assert found.path == tmp_path / "q.onnx"
    assert found.size == found.path.stat().st_size < 0.6 * exported.stat().st_size
    assert found.int8 == tuple(quantizable_layers(exported))
    assert found.kept == ()
    assert _integer_layers(found.path, tmp_path) == {"QLinearConv": 2, "QGemm": 1}
    assert _hash(exported) == before


def test_what_is_kept_in_float_stays_there(
    exported: Path, calibration: np.ndarray, digits: Any, tmp_path: Path
) -> None:
    first, *others = quantizable_layers(exported)
    found = quantize(exported, tmp_path / "m.onnx", "mixed", calibration, keep_float=(first,))
    assert (found.kept, found.int8) == ((first,), tuple(others))
    kinds = _integer_layers(found.path, tmp_path)
    assert kinds.pop("Conv", 0) + kinds.pop("FusedConv", 0) == 1
    assert kinds == {"QLinearConv": 1, "QGemm": 1}
    assert _agreement(exported, found.path, digits) >= 0.97


def test_dynamic_int8_reaches_a_linear_layer(exported: Path, digits: Any, tmp_path: Path) -> None:
    """A Gemm, as linear layers are exported, would be passed over in silence."""
    found = quantize(exported, tmp_path / "d.onnx", "int8-dynamic")
    *convolutions, linear = quantizable_layers(exported)
    assert (found.int8, found.kept) == ((linear,), tuple(convolutions))
    kinds = _integer_layers(found.path, tmp_path)
    assert kinds.get("DynamicQuantizeMatMul", 0) + kinds.get("MatMulInteger", 0) == 1
    assert "Gemm" not in kinds
    assert _agreement(exported, found.path, digits) >= 0.97
    assert found.size < exported.stat().st_size


def test_the_format_is_the_targets(exported: Path, calibration: np.ndarray, digits: Any, tmp_path: Path) -> None:
    target = FakeTarget(capabilities=Capabilities(int8_format="s8s8"))
    signed = quantize(exported, tmp_path / "s.onnx", "int8", calibration, target)
    unsigned = quantize(exported, tmp_path / "u.onnx", "int8", calibration, FakeTarget())
    assert set(_zero_points(signed.path)) == {TensorProto.INT8}
    assert set(_zero_points(unsigned.path)) == {TensorProto.UINT8, TensorProto.INT8}
    assert _zero_points(unsigned.path)[TensorProto.INT8] == {0}, "weights are symmetric"
    # Before VNNI x86 saturates in either format.
    assert _agreement(exported, signed.path, digits) >= 0.9


def test_seven_bits_where_eight_would_saturate(exported: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    def largest(reduce_range: bool) -> int:
        target = FakeTarget(capabilities=Capabilities(reduce_range=reduce_range))
        found = quantize(exported, tmp_path / "q.onnx", "int8", calibration, target)
        weights = [t for t in onnx.load(found.path).graph.initializer if len(t.dims) == 4]
        return max(int(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max()) for t in weights)

    assert largest(False) > 64 >= largest(True)


def _zero_points(path: Path) -> dict[int, set[int]]:
    """Type of zero point -> the values it has, of scales and activations (not of int32 biases)."""
    graph = onnx.load(path).graph
    names = {n.input[2] for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    found: dict[int, set[int]] = {}
    for tensor in graph.initializer:
        if tensor.name in names and tensor.data_type != TensorProto.INT32:
            found.setdefault(tensor.data_type, set()).update(onnx.numpy_helper.to_array(tensor).ravel().tolist())
    return found


@pytest.mark.parametrize("count", [1, 5, 32, 33, 70])
@pytest.mark.parametrize("method", ["minmax", "percentile", "search"])
def test_any_number_of_samples_will_do(tmp_path: Path, count: int, method: str) -> None:
    model = _static(tmp_path / "m.onnx", "n")
    found = quantize(model, tmp_path / "q.onnx", "int8", ROWS[:count], method=method)
    assert np.isfinite(open_session(found.path).run(None, {"x": ROWS})[0]).all()


@pytest.mark.parametrize(("batch", "count"), [(1, 70), (4, 70), (4, 3)])
def test_a_static_batch_is_no_obstacle(tmp_path: Path, batch: int, count: int) -> None:
    model = _static(tmp_path / "m.onnx", batch)
    found = quantize(model, tmp_path / "q.onnx", "int8", ROWS[:count])
    a, b = (open_session(path).run(None, {"x": ROWS[:batch]})[0] for path in (model, found.path))
    assert np.abs(a - b).max() < 0.15 * np.abs(a).max()
    collect_ranges(model, {"x": ROWS[:count]}, "minmax", tmp_path / "r.json")
    assert len(layer_errors(model, tmp_path / "r.json", "minmax", {"x": ROWS[:count]}, Capabilities(), tmp_path)) == 2


def test_layers_without_names_are_told_apart(tmp_path: Path) -> None:
    model = _static(tmp_path / "m.onnx", "n", names=False)
    first, second = quantizable_layers(model)
    assert first != second
    found = quantize(model, tmp_path / "q.onnx", "mixed", ROWS, keep_float=(second,))
    assert (found.int8, found.kept) == ((first,), (second,))
    integer = {n.input[1] for n in onnx.load(found.path).graph.node if n.op_type == "MatMul"}
    assert "w1" in integer
    assert "w0" not in integer


def test_what_int8_costs_each_layer_alone(tmp_path: Path) -> None:
    """Outliers in the weights of one layer: it is the one that suffers."""
    model = onnx.load(_static(tmp_path / "m.onnx", "n"))
    weight = onnx.numpy_helper.to_array(model.graph.initializer[1]).copy()
    weight[0] *= 300
    weight[1:] *= 0.01
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(weight, "w1"))
    onnx.save(model, tmp_path / "m.onnx")
    # Where the first hidden value is cut off by the ReLU only the small weights count.
    rows = ROWS[(ROWS @ onnx.numpy_helper.to_array(model.graph.initializer[0]))[:, 0] < 0]
    collect_ranges(tmp_path / "m.onnx", {"x": rows}, "minmax", tmp_path / "r.json")
    able = targets.get("ort-cpu").capabilities()  # 7-bit weights where the CPU's products saturate
    found = layer_errors(tmp_path / "m.onnx", tmp_path / "r.json", "minmax", {"x": rows}, able, tmp_path)
    assert found[1] > 5 * found[0] > 0


@pytest.mark.parametrize("method", ["percentile", "search"])
def test_ranges_are_the_same_however_many_tensors_have_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    model = _static(tmp_path / "m.onnx", "n")
    collect_ranges(model, {"x": ROWS}, method, tmp_path / "whole.json")
    monkeypatch.setattr(isolation, "_INSIDE", True)  # in this process, whose constants are others
    monkeypatch.setattr(ranges, "_PART", 1)
    collect_ranges(model, {"x": ROWS}, method, tmp_path / "parts.json")
    assert json.loads((tmp_path / "parts.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())


def test_a_layer_whose_file_cannot_be_made_counts_as_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _static(tmp_path / "m.onnx", "n")
    collect_ranges(model, {"x": ROWS}, "minmax", tmp_path / "r.json")
    make = quantizer.quantize_static

    def failing(*of: Any, only: tuple[str, ...] = (), **options: Any) -> Any:
        if only == (quantizable_layers(model)[0],):
            raise QuantizeError("it died")
        return make(*of, only=only, **options)

    monkeypatch.setattr(quantizer, "quantize_static", failing)
    errors = layer_errors(model, tmp_path / "r.json", "minmax", {"x": ROWS}, Capabilities(), tmp_path)
    assert errors[0] == np.inf
    assert 0 < errors[1] < 1


def test_several_inputs_by_their_names(tmp_path: Path) -> None:
    model = _static(tmp_path / "m.onnx", "n", inputs=TWO)
    found = quantize(model, tmp_path / "q.onnx", "int8", {"b": ROWS, "a": ROWS * 2})
    a, b = (open_session(path).run(None, {"a": ROWS * 2, "b": ROWS})[0] for path in (model, found.path))
    assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


def test_samples_of_double_precision_are_taken(tmp_path: Path) -> None:
    model = _static(tmp_path / "m.onnx", "n")
    a = quantize(model, tmp_path / "a.onnx", "int8", ROWS)
    b = quantize(model, tmp_path / "b.onnx", "int8", ROWS.astype(np.float64))
    assert _hash(a.path) == _hash(b.path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"precision": "int3"}, "precision 'int3': use one of int8, mixed, int8-dynamic"),
        ({"precision": "fp32"}, "precision 'fp32'"),
        ({"operators": "most"}, "operators 'most': use one of all, products, convolutions"),
        ({"method": "guess"}, "method 'guess': use one of minmax, percentile"),
        ({"calibration": None}, "needs calibration samples"),
        ({"calibration": ROWS[:0]}, "calibration is empty"),
        ({"calibration": np.float32(1)}, "calibration is empty"),
        ({"calibration": ROWS * np.nan}, "calibration of 'x' holds NaN"),
        ({"calibration": {"z": ROWS}}, r"calibration has \['z'\]; m.onnx has the inputs \['x'\]"),
        ({"calibration": {"x": ROWS, "z": ROWS}}, "calibration has"),
        ({"calibration": {}}, r"calibration has \[\]"),
        ({"keep_float": ("third",)}, r"keep_float names \['third'\], which m.onnx lacks; it has first, second"),
        ({"destination": "absent/q.onnx"}, "does not exist"),
        ({"target": "toaster"}, "toaster"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    model = _static(tmp_path / "m.onnx", "n")
    asked = {"precision": "int8", "calibration": ROWS, **arguments}
    with pytest.raises(RequestError, match=said) as caught:
        quantize(model, tmp_path / asked.pop("destination", "q.onnx"), **asked)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_samples_of_another_shape_fail_in_one_line(tmp_path: Path) -> None:
    model = _static(tmp_path / "m.onnx", "n")
    with pytest.raises(QuantizeError, match=r"m.onnx cannot be calibrated \(minmax\)") as caught:
        quantize(model, tmp_path / "q.onnx", "int8", ROWS[:, :5])
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_a_truncated_file_is_a_model_error(
    exported: Path, tmp_path: Path, keep: float, calibration: np.ndarray
) -> None:
    content = exported.read_bytes()
    (tmp_path / "t.onnx").write_bytes(content[: int(keep * len(content))])
    for precision in ("int8", "int8-dynamic"):
        with pytest.raises(ModelError, match=r"t.onnx"):
            quantize(tmp_path / "t.onnx", tmp_path / "q.onnx", precision, calibration)


def test_a_network_without_products_cannot_be_quantized(tmp_path: Path) -> None:
    export(
        torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten()), torch.randn(2, 1, 3, 3), tmp_path / "c.onnx"
    )
    assert not has_matmul(tmp_path / "c.onnx")
    with pytest.raises(QuantizeError, match="no matrix product: dynamic int8 would change nothing"):
        quantize(tmp_path / "c.onnx", tmp_path / "q.onnx", "int8-dynamic")
    model = onnx.load(_static(tmp_path / "m.onnx", "n"))
    del model.graph.node[1:]
    model.graph.output[0].name = "s"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(QuantizeError, match="no convolution or matrix product"):
        quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", "int8", ROWS)


@pytest.mark.parametrize("precision", ["int8", "mixed", "int8-dynamic"])
def test_nothing_is_left_beside_the_files(tmp_path: Path, precision: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    model = _static(tmp_path / "in" / "m.onnx", "n")
    (tmp_path / "out" / "q.ranges.json").write_text("the user's own")
    (tmp_path / "in").chmod(0o555)
    quantize(model, tmp_path / "out" / "q.onnx", precision, ROWS)
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["m.onnx"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["q.onnx", "q.ranges.json"]
    assert (tmp_path / "out" / "q.ranges.json").read_text() == "the user's own"


def test_errors_are_still_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger().level
    quantize(_static(tmp_path / "m.onnx", "n"), tmp_path / "q.onnx", "int8", ROWS)
    assert [record for record in caplog.records if record.name == "root"] == []
    assert logging.getLogger().level == level


def test_ranges_collected_once_serve_every_variant(exported: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    name = open_session(exported).get_inputs()[0].name
    collect_ranges(exported, {name: calibration}, "minmax", tmp_path / "r.json")
    direct = quantize(exported, tmp_path / "a.onnx", "int8", calibration, FakeTarget())
    found = quantize_static(exported, tmp_path / "b.onnx", tmp_path / "r.json", "minmax", Capabilities())
    assert _hash(found.path) == _hash(direct.path)


def test_structure_is_the_same_for_two_trainings_in_int8(
    exported: Path, bare: torch.nn.Module, calibration: np.ndarray, digits: Any, tmp_path: Path
) -> None:
    with torch.no_grad():
        for p in bare.parameters():
            p += 0.1 * torch.randn_like(p)  # as after training: no bias is zero, no two are the same
    export(bare, digits.val[0][:4], tmp_path / "bare.onnx")
    for precision in ("int8", "int8-dynamic"):
        a = quantize(exported, tmp_path / "a.onnx", precision, calibration)
        b = quantize(tmp_path / "bare.onnx", tmp_path / "b.onnx", precision, calibration)
        assert graphs.structure_hash(a.path) == graphs.structure_hash(b.path)
        assert graphs.structure_hash(a.path) != graphs.structure_hash(exported)
    found = quantize(exported, tmp_path / "a.onnx", "int8", calibration)
    assert graphs.count_parameters(found.path) == graphs.count_parameters(exported)
    assert graphs.count_macs(found.path) == graphs.count_macs(exported)


@pytest.fixture(scope="module")
def spotter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A convolution, a GRU whose weights are put in order in the graph (too large to be folded), and a linear layer."""

    class Spotter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.front, self.gru = torch.nn.Conv2d(1, 8, 3, 2, 1), torch.nn.GRU(8 * 16, 40, batch_first=True)
            self.head = torch.nn.Linear(40, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found, _ = self.gru(torch.relu(self.front(x)).permute(0, 3, 1, 2).flatten(2))
            return self.head(found[:, -1])

    torch.manual_seed(0)
    x, path = torch.randn(8, 1, 32, 12), tmp_path_factory.mktemp("spotter") / "m.onnx"
    export(Spotter(), x, path)
    return path, x.numpy()


def test_a_recurrent_layer_and_its_weights_stay_as_they_are(spotter: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, x = spotter
    found = quantize(path, tmp_path / "q.onnx", "int8", x)
    makers = {name: node for node in onnx.load(found.path).graph.node for name in node.output}
    gru = next(node for node in makers.values() if node.op_type == "GRU")
    above, todo = set(), list(gru.input[1:4])
    while todo:
        node = makers.get(todo.pop())
        if node is not None:
            above.add(node.op_type)
            todo += node.input
    assert "Slice" in above, "the weights are computed in this file"
    assert not {"QuantizeLinear", "DequantizeLinear"} & above
    assert _integer_layers(found.path, tmp_path) == {"QLinearConv": 1, "QGemm": 1}


@pytest.mark.parametrize("name", ["ort-cpu", "openvino-cpu"])
def test_a_quantized_recurrent_network_runs(spotter: tuple[Path, np.ndarray], tmp_path: Path, name: str) -> None:
    if name == "openvino-cpu" and importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino; run: pip install 'paretopress[openvino]'")
    path, x = spotter
    target = targets.get(name)
    found = quantize(path, tmp_path / "q.onnx", "int8", x, target)
    (got,) = target.run(found.path, {onnx.load(path).graph.input[0].name: x})
    target.close()
    session = open_session(path)
    (expected,) = session.run(None, {session.get_inputs()[0].name: x})
    assert np.abs(got - expected).max() < 0.1 * np.abs(expected).max()

"""ONNX Runtime on this machine: conformance, and what its messages say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import local_runtimes as local
import targets
from local_runtimes import node_model
from targets.errors import ModelError, TargetError
from targets.runtimes.ort.ort_cpu import OrtCpu, OrtRuntime, OrtSession, explain
from targets.target import Protocol, Target
from targets.testing import QUICK, reference_model, reference_output, samples

onnx = pytest.importorskip("onnx")
TensorProto = onnx.TensorProto


class TestOneThread(local.ThreadsBesideOne):
    def make(self) -> Target:
        return OrtCpu()


class TestTwoThreads(local.ThreadsBesideOne):
    def make(self) -> Target:
        return OrtCpu(threads=2)

    def asked_threads(self) -> int:
        return 2


@pytest.fixture(scope="module")
def target() -> Iterator[OrtCpu]:
    """One for all tests, so that its scoring process starts once."""
    made = OrtCpu()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("op", "options", "said"),
    [
        ("Frobnicate", {}, "operator Frobnicate"),
        ("Frobnicate", {"domain": "my.domain"}, "operator my.domain:Frobnicate"),
        ("Relu", {"opset": 999}, "opset 999 is too new"),
        ("Relu", {"ir": 999}, "IR version 999 is too new"),
    ],
)
def test_what_is_not_supported_is_named_on_one_line(target, tmp_path, op, options, said):
    local.see_refused_on_one_line(target, node_model(tmp_path / "m.onnx", op, **options), said, longest=400)


def test_long_complaints_are_cut():
    assert len(explain("[ONNXRuntimeError] : 1 : FAIL : " + "word \n" * 1000)) <= 300


@pytest.mark.parametrize(
    "dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8]
)
def test_inputs_are_made_up_in_the_models_type(target, tmp_path, dtype):
    path = node_model(tmp_path / "m.onnx", "Identity", dtype=dtype)
    (measured,) = target.measure([path], protocol=QUICK)
    assert measured.latency is not None


def test_values_are_cast_only_where_they_survive(target, tmp_path):
    path = node_model(tmp_path / "m.onnx", "Identity")
    (y,) = target.run(path, {"x": np.arange(6).reshape(2, 3)})
    assert y.dtype == np.float32
    integers = node_model(tmp_path / "i.onnx", "Identity", dtype=TensorProto.INT64)
    with pytest.raises(ModelError, match="takes int64, was given float64"):
        target.run(integers, {"x": np.full((2, 3), 0.5)})


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "same number of samples"),
        ({"z": np.zeros((1, 3, 8, 8))}, "no values for input 'x'"),
        ({"x": np.zeros((1, 3, 8, 8)), "z": np.zeros((1, 1))}, "no model has that input"),
        ({"x": np.zeros((1, 3, 9, 8))}, r"takes shape \?x3x8x8, was given 1x3x9x8"),
        ({"x": np.zeros((1, 3))}, "was given 1x3"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(target, model, inputs, said):
    with pytest.raises(ModelError, match=said):
        target.run(model, inputs)


def test_unknown_names_are_refused_when_measuring(target, model):
    with pytest.raises(ModelError, match="'typo'"):
        target.measure([model], inputs={"typo": np.zeros(3)}, protocol=QUICK)
    with pytest.raises(TargetError, match="shape for 'typo': no model has that input; inputs are x"):
        target.measure([model], shapes={"typo": (1, 3, 8, 8)}, protocol=QUICK)
    with pytest.raises(ModelError, match="does not fit"):
        target.measure([model], shapes={"x": (1, 4, 8, 8)}, protocol=QUICK)


@pytest.mark.parametrize("shape", [(-1, 3, 8, 8), (0, 3, 8, 8), (1.5, 3, 8, 8), "1x3x8x8", None])
def test_what_is_no_shape_is_refused(target, model, shape):
    with pytest.raises(TargetError, match="for input 'x' is not allowed; it is a tuple of integers, 1 or more"):
        target.measure([model], shapes={"x": shape}, protocol=QUICK)


def test_scoring_is_the_same_in_pieces(target, model, monkeypatch):
    monkeypatch.setattr("targets.workers.local.PIECE", 3000)
    x = samples(11)
    np.testing.assert_allclose(target.run(model, {"x": x}, batch=2)[0], reference_output(x), atol=1e-4)


def test_no_samples_give_no_outputs(target, model):
    assert target.run(model, {"x": samples(0)})[0].shape == (0, 5)


def test_every_graph_optimization_level_computes_the_same(model):
    x = samples(2)
    for level in ("all", "extended", "basic", "none"):
        target = targets.get(f"ort-cpu:opt={level}")
        try:
            np.testing.assert_allclose(target.run(model, {"x": x})[0], reference_output(x), atol=1e-4)
        finally:
            target.close()


def test_impossible_requests_are_refused(target, model):
    with pytest.raises(ModelError, match="no model"):
        target.measure([])
    with pytest.raises(TargetError, match="processes"):
        target.measure([model], protocol=Protocol(processes=0))
    with pytest.raises(TargetError, match="batch=0"):
        target.run(model, {"x": samples(1)}, batch=0)


def test_several_processes_each_leave_their_samples(target, tmp_path):
    paths = [reference_model(tmp_path / name) for name in ("a.onnx", "b.onnx")]
    protocol = Protocol(width=0.5, seconds=0.2, rounds=3, block=0.002, warmup=0.002, processes=2)
    for measured in target.measure(paths, protocol=protocol):
        assert len(measured.samples) == 2
        assert measured.memory is not None
        assert measured.first is not None
        assert measured.first > 0


def test_external_data_may_not_leave_its_folder(target, tmp_path):
    (tmp_path / "secret.bin").write_bytes(np.zeros(3, np.float32).tobytes())
    (tmp_path / "inner").mkdir()
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../secret.bin")
    ends = [("x", TensorProto.FLOAT, ["n", 3])], [("y", TensorProto.FLOAT, ["n", 3])]
    add = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    path = local.graph_model(tmp_path / "inner" / "m.onnx", [add], *ends, {"w": weight})
    with pytest.raises(ModelError):
        target.run(path, {"x": np.zeros((1, 3), np.float32)})


def test_the_limits_of_the_library_are_asked_of_it(target):
    import onnxruntime

    facts = target.facts()
    assert facts["version"] == onnxruntime.__version__
    assert 20 <= facts["opset"] < 999
    assert 10 <= facts["ir_version"] < 999


def test_nothing_is_written_to_the_home_folder(home, model):
    with closing(OrtCpu()) as fresh:
        fresh.run(model, {"x": samples(2)})
        fresh.measure([model], protocol=QUICK)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (MemoryError("9 GB"), MemoryError, "9 GB"),
        (RuntimeError("odd"), ModelError, r"^m\.onnx: (cannot be run with x 1: )?odd$"),
    ],
)
def test_memory_that_is_used_up_is_not_the_files_fault(monkeypatch, error, kind, said):
    def fail(*_, **__):
        raise error

    runtime = OrtRuntime({"threads": 1, "opt": "all", "spinning": 0})
    monkeypatch.setattr(runtime, "_onnxruntime", SimpleNamespace(InferenceSession=fail))
    with pytest.raises(kind, match=said):
        runtime.open_session(Path("m.onnx"), None)
    session = OrtSession(SimpleNamespace(get_inputs=list, run=fail), Path("m.onnx"))
    with pytest.raises(kind, match=said):
        session.run({"x": np.zeros(1)})

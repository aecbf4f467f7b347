"""OpenVINO on this machine: conformance, what its messages say, and that it keeps quiet about its user.

What needs OpenVINO itself is skipped where it is not installed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

import local_runtimes as local
import targets
from local_runtimes import node_model
from targets import registry
from targets.errors import ModelError, TargetError
from targets.runtimes.openvino.openvino_cpu import OpenvinoCpu, explain
from targets.target import Target
from targets.testing import QUICK, reference_model, reference_output, samples

onnx = pytest.importorskip("onnx")
TensorProto = onnx.TensorProto

INSTALL = "pip install 'paretopress[openvino]'"
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason=f"openvino is not installed; run: {INSTALL}"
)


@needs_openvino
class TestOneThread(local.ThreadsSeenWorking):
    def make(self) -> Target:
        return OpenvinoCpu()


@needs_openvino
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else True, reason="one CPU")
class TestTwoThreads(local.ThreadsSeenWorking):
    def make(self) -> Target:
        return OpenvinoCpu(threads=2)

    def asked_threads(self) -> int:
        return 2


@pytest.fixture(scope="module")
def target() -> Iterator[OpenvinoCpu]:
    """One for all tests, so that its scoring process starts once."""
    made = OpenvinoCpu()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("openvino-cpu:threads=1,precision=f32", "openvino-cpu"),
        ("openvino-cpu:threads=2,precision=bf16", "openvino-cpu:precision=bf16,threads=2"),
    ],
)
def test_names_are_canonical(monkeypatch, spec, name):
    monkeypatch.setattr(OpenvinoCpu, "requires", ())
    assert registry.get(spec).name == name
    with pytest.raises(TargetError, match="precision is one of f32, bf16"):
        registry.get("openvino-cpu:precision=fp32")


def test_where_it_is_missing_the_command_is_said(monkeypatch):
    local.see_install_said(OpenvinoCpu, INSTALL, monkeypatch)


def test_a_worker_without_it_says_so_too(model, monkeypatch):
    with closing(OpenvinoCpu()) as fresh:
        local.see_worker_says_install(fresh, model, INSTALL, monkeypatch)


def test_long_complaints_are_cut():
    assert len(explain("word \n" * 1000)) <= 300
    told = "Exception from src/a/b.cpp:84:\nCheck 'a == b' failed at src/c.cpp:3:\nthe shapes differ\n\n"
    assert explain(told) == "Check 'a == b' the shapes differ"


@needs_openvino
@pytest.mark.parametrize(
    ("op", "options", "said"),
    [
        ("Frobnicate", {}, "operator Frobnicate"),
        ("Frobnicate", {"domain": "my.domain"}, "operator my.domain.Frobnicate"),
        ("Identity", {"dtype": TensorProto.STRING}, "has type string"),
    ],
)
def test_what_is_not_supported_is_named_on_one_line(target, tmp_path, op, options, said):
    local.see_refused_on_one_line(target, node_model(tmp_path / "m.onnx", op, **options), said)


@needs_openvino
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL, TensorProto.UINT8])
def test_inputs_are_made_up_in_the_models_type(target, tmp_path, dtype):
    path = node_model(tmp_path / "m.onnx", "Identity", dtype=dtype)
    (measured,) = target.measure([path], protocol=QUICK)
    assert measured.latency is not None


@needs_openvino
def test_int8_in_qdq_form_computes_what_it_does_elsewhere(target, tmp_path, model):
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": samples(8, seed)} for seed in range(4)]

        def get_next(self):
            return self.left.pop() if self.left else None

    path = tmp_path / "int8.onnx"
    quantization.quantize_static(
        model,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=target.capabilities().reduce_range,
    )
    x = samples(16)
    ort = targets.get("ort-cpu")
    try:
        expected = ort.run(path, {"x": x})[0]
    finally:
        ort.close()
    (found,) = target.run(path, {"x": x})
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert np.abs(expected - reference_output(x)).max() > 1e-4
    assert [one.path for one in target.measure([model, path], protocol=QUICK)] == [model, path]


@needs_openvino
def test_bf16_is_another_arithmetic_or_refused(model):
    from targets.machine import environment

    made = OpenvinoCpu(precision="bf16")
    x = samples(16)
    try:
        if environment.cpu_features() & {"avx512_bf16", "amx_bf16"}:
            error = np.abs(made.run(model, {"x": x})[0] - reference_output(x)).max()
            assert 1e-5 < error < 0.05
        else:
            with pytest.raises(TargetError, match="use precision=f32"):
                made.run(model, {"x": x})
    finally:
        made.close()


@needs_openvino
def test_more_threads_than_there_are_is_refused(model):
    made = OpenvinoCpu(threads=1000)
    try:
        with pytest.raises(TargetError, match="threads=1000 is not possible; OpenVINO uses at most"):
            made.measure([model], protocol=QUICK)
    finally:
        made.close()


@needs_openvino
def test_a_model_that_cannot_have_ones_gets_its_own_shape(target, tmp_path):
    """A 3x3 window does not fit on a dynamic axis of 1: nothing is wrong until somebody asks for that."""
    path = local.window_model(tmp_path / "m.onnx")
    local.see_windows(target, path)
    with pytest.raises(ModelError, match="1x1x1x1"):
        target.measure([path], protocol=QUICK)


@needs_openvino
def test_nothing_is_written_to_the_home_folder(home, model):
    with closing(OpenvinoCpu()) as fresh:
        fresh.run(model, {"x": samples(2)})
        fresh.measure([model], protocol=QUICK)
    assert list(home.iterdir()) == []


@needs_openvino
def test_our_own_process_does_not_load_it(target, model):
    target.run(model, {"x": samples(1)})
    assert target.capabilities().precisions == ("fp32", "int8", "mixed")
    assert target.describe()["packages"]["openvino"]
    assert target.facts()["version"]
    assert "openvino" not in sys.modules


@needs_openvino
def test_many_shapes_in_turn_are_right(target, tmp_path):
    path = reference_model(tmp_path / "m.onnx")
    x = samples(9)
    for batch in (1, 2, 3, 4, 5, 6, 9, 1):
        (y,) = target.run(path, {"x": x}, batch=batch)
        np.testing.assert_allclose(y, reference_output(x), atol=1e-4)

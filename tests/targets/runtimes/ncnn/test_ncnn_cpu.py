"""ncnn on this machine: conformance, what its messages say, and that a converter ends with its worker.

What needs ncnn itself is skipped where it is not installed. A stand-in for pnnx shows what happens when that hangs.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import local_runtimes as local
import targets
from local_runtimes import graph_model, node_model
from processes import alive, wait_for
from targets import registry
from targets.errors import MeasurementError, ModelError, TargetError, TransientError
from targets.runtimes.ncnn import converter, ncnn_cpu
from targets.runtimes.ncnn.converter import explain
from targets.runtimes.ncnn.ncnn_cpu import Converter, NcnnCpu
from targets.runtimes.ncnn.network import Converted
from targets.target import Target
from targets.testing import QUICK, reference_model, reference_output, samples
from targets.workers.runtime import Input

onnx = pytest.importorskip("onnx")
TensorProto, helper = onnx.TensorProto, onnx.helper

INSTALL = "pip install 'paretopress[ncnn]'"
needs_ncnn = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ncnn", "pnnx")),
    reason=f"ncnn is not installed; run: {INSTALL}",
)
ROOT = Path(__file__).resolve().parents[4]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@needs_ncnn
class TestOneThread(local.ThreadsSeenWorking):
    def make(self) -> Target:
        return NcnnCpu()


@needs_ncnn
class TestTwoThreads(local.ThreadsSeenWorking):
    def make(self) -> Target:
        return NcnnCpu(threads=2)

    def asked_threads(self) -> int:
        return 2


@pytest.fixture(scope="module")
def target() -> Iterator[NcnnCpu]:
    """One for all tests, so that its scoring process starts once."""
    made = NcnnCpu()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("ncnn-cpu:threads=1,precision=fp32", "ncnn-cpu"),
        ("ncnn-cpu:threads=2,precision=fp16", "ncnn-cpu:precision=fp16,threads=2"),
    ],
)
def test_names_are_canonical(monkeypatch, spec, name):
    monkeypatch.setattr(NcnnCpu, "requires", ())
    assert registry.get(spec).name == name
    with pytest.raises(TargetError, match="precision is one of fp32, fp16"):
        registry.get("ncnn-cpu:precision=bf16")


def test_where_it_is_missing_the_command_is_said(monkeypatch):
    local.see_install_said(NcnnCpu, INSTALL, monkeypatch)


def test_a_worker_without_it_says_so_too(model, monkeypatch):
    with closing(NcnnCpu()) as fresh:
        local.see_worker_says_install(fresh, model, INSTALL, monkeypatch)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x\n\x1b[1;31mort CreateSession failed Node 'a' is odd\x1b[m\n", "pnnx cannot convert it: Node 'a' is odd"),
        ("ort CreateSession failed /p/onnxruntime/core/x.cc:26 long", "pnnx crashed (SIGSEGV) converting it"),
        ("input_shapes[0] expect [4,3]f32 but got [1,3]f32", "input_shapes[0] expect [4,3]f32 but got [1,3]f32"),
        ("", "pnnx crashed (SIGSEGV) converting it"),
    ],
)
def test_what_pnnx_prints_becomes_one_line(text, said):
    assert said in explain(text, -signal.SIGSEGV)
    assert len(explain(f"ort CreateSession failed {'word ' * 1000}", 1)) <= 300


@needs_ncnn
@pytest.mark.parametrize(
    ("op", "options", "said"),
    [
        ("Frobnicate", {}, "operator Frobnicate (opset 17) is not supported by ncnn"),
        ("Frobnicate", {"domain": "my.domain"}, "operator my.domain:Frobnicate is not supported by ncnn"),
        ("Relu", {"dtype": TensorProto.FLOAT16}, "input 'x' has type float16; ncnn takes float32, int32, int64"),
        ("Identity", {"dtype": INT64}, "output 'y' has type int64; ncnn gives float32 only"),
        ("Identity", {}, "pnnx crashed"),
    ],
)
def test_what_is_not_supported_is_named_on_one_line(target, tmp_path, op, options, said):
    local.see_refused_on_one_line(target, node_model(tmp_path / "m.onnx", op, **options), said)


@needs_ncnn
def test_an_operator_that_pnnx_passes_on_is_named(target, tmp_path):
    path = graph_model(
        tmp_path / "m.onnx",
        [helper.make_node("Det", ["x"], ["y"])],
        [("x", FLOAT, ["n", 3, 3])],
        [("y", FLOAT, ["n"])],
    )
    with pytest.raises(ModelError, match="operator Det is not supported by ncnn"):
        target.run(path, {"x": normal(1, 3, 3)})


@needs_ncnn
def test_quantized_files_are_refused_by_name(target, tmp_path):
    scale = {"s": np.float32(0.1), "z": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    path = graph_model(tmp_path / "m.onnx", nodes, [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])], scale)
    with pytest.raises(ModelError, match=r"DequantizeLinear, QuantizeLinear are not supported by ncnn; .* fp32 one"):
        target.measure([path], protocol=QUICK)


@needs_ncnn
def test_several_inputs_and_outputs_keep_their_order(target, tmp_path):
    weights = {"wa": normal(3, 5), "wb": normal(4, 5, seed=1)}
    nodes = [
        helper.make_node("MatMul", ["a", "wa"], ["ha"]),
        helper.make_node("MatMul", ["b", "wb"], ["hb"]),
        helper.make_node("Sub", ["ha", "hb"], ["y"]),
        helper.make_node("Sigmoid", ["hb"], ["z"]),
    ]
    ends = [("a", FLOAT, ["n", 3]), ("b", FLOAT, ["n", 4])], [("z", FLOAT, ["n", 5]), ("y", FLOAT, ["n", 5])]
    path = graph_model(tmp_path / "m.onnx", nodes, *ends, weights)
    a, b = normal(7, 3, seed=2), normal(7, 4, seed=3)
    z, y = target.run(path, {"b": b, "a": a}, batch=3)
    np.testing.assert_allclose(y, a @ weights["wa"] - b @ weights["wb"], atol=1e-5)
    np.testing.assert_allclose(z, 1 / (1 + np.exp(-(b @ weights["wb"]))), atol=1e-5)


@needs_ncnn
def test_integers_are_indices_or_refused(target, tmp_path):
    table = normal(20, 8)
    nodes = [helper.make_node("Gather", ["w", "i"], ["e"]), helper.make_node("Relu", ["e"], ["y"])]
    path = graph_model(tmp_path / "e.onnx", nodes, [("i", INT64, ["n", 7])], [("y", FLOAT, ["n", 7, 8])], {"w": table})
    indices = np.random.default_rng(0).integers(0, 20, (5, 7))
    (y,) = target.run(path, {"i": indices})
    np.testing.assert_array_equal(y, np.maximum(table[indices], 0))
    nodes = [helper.make_node("Cast", ["i"], ["f"], to=FLOAT), helper.make_node("Relu", ["f"], ["y"])]
    path = graph_model(tmp_path / "c.onnx", nodes, [("i", INT64, ["n", 7])], [("y", FLOAT, ["n", 7])])
    with pytest.raises(ModelError, match=r"Tensor\.to is not supported"):
        target.run(path, {"i": indices})


@needs_ncnn
def test_a_static_batch_inside_the_graph_works(target, tmp_path):
    """The batch stands in a reshape: only all four samples at once make sense."""
    weights = {"s": np.array([4, 24]), "w": normal(24, 5)}
    nodes = [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])]
    path = graph_model(tmp_path / "m.onnx", nodes, [("x", FLOAT, [4, 3, 8])], [("y", FLOAT, [4, 5])], weights)
    x = normal(6, 3, 8, seed=1)
    (y,) = target.run(path, {"x": x})
    np.testing.assert_allclose(y, x.reshape(6, 24) @ weights["w"], atol=1e-4)


@needs_ncnn
def test_other_dynamic_axes_get_the_shape_they_are_run_with(target, tmp_path):
    """A 3x3 window does not fit on a dynamic axis of 1: nothing is converted until a shape is known."""
    path = local.window_model(tmp_path / "m.onnx")
    local.see_windows(target, path)
    with pytest.raises(ModelError, match=r"m\.onnx"):
        target.measure([path], protocol=QUICK)


@needs_ncnn
def test_a_graph_that_is_converted_wrongly_is_refused(target, tmp_path):
    """The mean over one axis, given as an input, is dropped by pnnx 20261020, without a word."""
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("Reshape", ["c", "s"], ["r"]),
        helper.make_node("ReduceMean", ["r", "a"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    weights = {"k": normal(8, 3, 1, 1), "s": np.array([0, 16, 8]), "a": np.array([1]), "w": normal(8, 5)}
    ends = [("x", FLOAT, ["n", 3, 4, 4])], [("y", FLOAT, ["n", 5])]
    path = graph_model(tmp_path / "m.onnx", nodes, *ends, weights, opset=20, ir=9)
    x = normal(3, 3, 4, 4)
    ort = targets.get("ort-cpu")
    (expected,) = ort.run(path, {"x": x})
    ort.close()
    try:
        (y,) = target.run(path, {"x": x})
    except ModelError as error:
        assert "converted by pnnx it computes something else" in str(error)  # noqa: PT017  a later pnnx may do it right
    else:
        np.testing.assert_allclose(y, expected, atol=1e-4)


class Stuck:
    """A network that answers zeros, whatever it was converted from."""

    def __init__(self, *_: object) -> None:
        self.shape = (1, 5)

    def run(self, _: object) -> list[np.ndarray]:
        return [np.zeros(self.shape, np.float32)]


def test_other_values_than_onnx_runtimes_are_refused(monkeypatch, model):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(converter, "NcnnNetwork", Stuck)
    converted = Converted("", "", ("float32",), ("scores",), (0,), (0,), ((1, 5),))
    inputs = [Input("x", "float32", (None, 3, 8, 8))]
    with pytest.raises(ModelError, match=r"output 'scores' is off by .* where its largest value is"):
        converter.check_outputs(model, inputs, [[1, 3, 8, 8]], converted, "fp32")


@needs_ncnn
def test_weights_in_a_file_of_their_own_are_found(target, tmp_path):
    path = reference_model(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").stat().st_size > 0
    (y,) = target.run(path, {"x": samples(3)})
    np.testing.assert_allclose(y, reference_output(samples(3)), atol=1e-4)


@needs_ncnn
def test_half_precision_is_another_arithmetic(model):
    made = NcnnCpu(precision="fp16")
    x = samples(16)
    try:
        error = np.abs(made.run(model, {"x": x})[0] - reference_output(x)).max()
    finally:
        made.close()
    assert 1e-5 < error < 0.02


@needs_ncnn
def test_it_says_its_versions_and_what_it_can(target):
    described, facts = target.describe(), target.facts()
    assert described["packages"]["ncnn"] == facts["version"]
    assert described["packages"]["pnnx"] == facts["pnnx"]
    assert target.capabilities().precisions == ("fp32",)
    assert "ncnn" not in sys.modules
    assert "pnnx" not in sys.modules


@needs_ncnn
def test_nothing_is_left_beside_the_model_or_behind(tmp_path, monkeypatch, model):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    before = sorted(tmp_path.iterdir())
    with closing(NcnnCpu()) as fresh:
        fresh.measure([model, reference_model(tmp_path / "other.onnx")], protocol=QUICK)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "other.onnx"])
    wait_for(lambda: not list((tmp_path / "scratch").iterdir()))


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A shell script instead of pnnx, for every process that is started from here."""
    (folder / "fakes" / "pnnx").mkdir(parents=True)
    (folder / "fakes" / "pnnx" / "__init__.py").write_text("")
    program = folder / "fakes" / "pnnx" / "pnnx"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'fakes'}{os.pathsep}{ROOT}")
    (folder / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(folder / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", str(folder / "scratch"))


SETTINGS = {"threads": 1, "precision": "fp32"}


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("exec sleep 600", MeasurementError, "pnnx did not convert it within 0.3 s"),
        ("kill -9 $$", TransientError, "pnnx was killed converting it"),
        ("kill -11 $$", ModelError, r"pnnx crashed \(SIGSEGV\)"),
        ("echo no; exit 3", ModelError, "pnnx ended with status 3"),
        ("exit 0", ModelError, "pnnx ended with status 0"),
        ("kill -9 $PPID", TransientError, "its converter was killed while converting: most likely out of memory"),
        ("kill -11 $PPID", MeasurementError, "converting it for ncnn was killed by SIGSEGV while converting"),
    ],
)
def test_a_conversion_that_fails_is_told_and_leaves_nothing(tmp_path, monkeypatch, model, script, error, said):
    pretend(tmp_path, monkeypatch, script)
    monkeypatch.setattr(ncnn_cpu, "_SECONDS", 0.3 if "sleep" in script else 60.0)
    converter = Converter(model, None, SETTINGS)
    with pytest.raises(error, match=said) as caught:
        converter.answer()
    converter.close()
    assert str(model) in str(caught.value)
    wait_for(lambda: not list((tmp_path / "scratch").iterdir()))


def test_a_converter_does_not_outlive_a_worker_that_is_killed(tmp_path, monkeypatch, model):
    note = tmp_path / "pid"
    pretend(tmp_path, monkeypatch, f"echo $$ > {note}.part; mv {note}.part {note}; exec sleep 600")
    code = (
        "import pathlib, sys; from targets.runtimes.ncnn.ncnn_cpu import Converter;"
        f"Converter(pathlib.Path(sys.argv[1]), None, {SETTINGS!r}).answer()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(model)]) as worker:
        wait_for(note.exists)
        pid = int(note.read_text())
        assert alive(pid)
        assert list((tmp_path / "scratch").iterdir())
        worker.kill()
    wait_for(lambda: not alive(pid))
    wait_for(lambda: not list((tmp_path / "scratch").iterdir()))

"""Converting for ncnn step by step, with programs and libraries that answer as they are told."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from targets.errors import ModelError, TargetUnavailable, TransientError
from targets.runtimes.ncnn import converter, network
from targets.runtimes.ncnn.ncnn_cpu import NcnnSession
from targets.runtimes.ncnn.network import Converted, NcnnNetwork
from targets.workers.runtime import Input

INPUTS = [Input("x", "float32", (None, 3))]
CONVERTED = Converted("p", "w", ("float32",), ("y",), (0,), (0,), ((1, 2),))


def _value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def _file(path, given, output=("y", TensorProto.FLOAT)):
    nodes = [helper.make_node("Identity", [given.name], [output[0]])]
    model = helper.make_model(helper.make_graph(nodes, "g", [given], [_value(*output, None)]))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("given", "output", "said"),
    [
        (
            _value("x", TensorProto.INT8, [1, 3]),
            TensorProto.FLOAT,
            "input 'x' has type int8; ncnn takes float32, int32, int",
        ),
        (
            _value("x", TensorProto.FLOAT, None),
            TensorProto.FLOAT,
            "input 'x' does not say how many axes it has; export it",
        ),
        (_value("x", TensorProto.FLOAT, []), TensorProto.FLOAT, "input 'x' is a scalar; ncnn takes tensors"),
        (
            _value("x", TensorProto.FLOAT, [1, 3]),
            TensorProto.INT64,
            "output 'y' has type int64; ncnn gives float32 only",
        ),
        (_value("x", TensorProto.FLOAT, [1, 3]), TensorProto.UNDEFINED, "output 'y' has type unknown"),
    ],
)
def test_what_ncnn_does_not_take_is_named(tmp_path, given, output, said):
    path = _file(tmp_path / "m.onnx", given, ("y", output))
    with pytest.raises(ModelError, match=rf"m\.onnx: {said}"):
        converter.copy_model(path, tmp_path / "copy.onnx")


def test_what_is_no_model_is_not_copied(tmp_path, monkeypatch):
    path = _file(tmp_path / "m.onnx", _value("x", TensorProto.FLOAT, ["n", 3]))
    assert converter.copy_model(path, tmp_path / "copy.onnx") == (INPUTS, ["y"])
    for content in (b"\xff" * 30, b""):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"m\.onnx: truncated or not an ONNX file$"):
            converter.copy_model(path, tmp_path / "copy.onnx")
    with pytest.raises(ModelError, match=r"absent\.onnx: .*No such file"):
        converter.copy_model(tmp_path / "absent.onnx", tmp_path / "copy.onnx")

    def full(_):
        raise MemoryError

    monkeypatch.setattr(onnx, "load", full)
    with pytest.raises(MemoryError):
        converter.copy_model(path, tmp_path / "copy.onnx")


def test_a_converter_that_eats_the_memory_is_ended(tmp_path, monkeypatch):
    ended = []
    process = SimpleNamespace(pid=7, poll=lambda: None, kill=lambda: ended.append(True))
    monkeypatch.setattr(converter, "pnnx_program", lambda: "pnnx")
    monkeypatch.setattr(converter.memory, "available_bytes", lambda: 10**9)
    monkeypatch.setattr(converter.memory, "resident", lambda pid: {7: 9 * 10**8 + 1}[pid])
    keeper = SimpleNamespace(folder=tmp_path, start=lambda *_: process)
    request = {"path": "m.onnx", "precision": "fp32", "seconds": 60.0}
    with pytest.raises(TransientError, match=r"^m\.onnx: pnnx used more than 0\.90 GB of memory converting it$"):
        converter.run_pnnx(keeper, INPUTS, [[1, 3]], request)
    assert ended


def test_a_package_without_its_program_is_not_installed(monkeypatch, tmp_path):
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    for spec in (None, found):
        monkeypatch.setattr(converter.importlib.util, "find_spec", lambda _, spec=spec: spec)
        with pytest.raises(TargetUnavailable, match=r"^pnnx, which converts for ncnn, is not installed$"):
            converter.pnnx_program()
    (tmp_path / "pnnx").write_text("#!/bin/sh\n")
    (tmp_path / "pnnx").chmod(0o755)
    assert converter.pnnx_program() == str(tmp_path / "pnnx")


# -- what pnnx wrote

LAYERS = ["Input in0 0 1 in0", "InnerProduct fc 1 1 in0 out0"]
GRAPH = ["pnnx.Input pnnx_input_0 0 1 0", "nn.Linear fc 1 1 0 1", "pnnx.Output pnnx_output_0 1 0 1 #1=(1,2)f32"]
SCRIPT = 'ex.input("in0", ncnn.Mat(in0.squeeze(0).numpy(), batch_index=0))\nout0.numpy(batch_index=0)\n'


def _understood(folder, monkeypatch, layers=LAYERS, graph=GRAPH, script=SCRIPT, inputs=INPUTS):
    for name, lines in (("m.ncnn.param", layers), ("m.pnnx.param", graph)):
        (folder / name).write_text("\n".join(["7767517", "1 1", *lines]))
    (folder / "m_ncnn.py").write_text(script)
    known = SimpleNamespace(create_layer=lambda kind: None if kind == "Odd" else object())
    monkeypatch.setattr(importlib, "import_module", lambda _: known)
    return converter.understand(folder, inputs, ["y"])


def test_what_pnnx_wrote_is_understood(tmp_path, monkeypatch):
    found = _understood(tmp_path, monkeypatch)
    assert (found.batch_in, found.batch_out, found.shapes, found.dtypes) == ((0,), (0,), ((1, 2),), ("float32",))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"script": SCRIPT.replace("batch_index", "batch")},
            "the installed pnnx says its results differently; install pnnx 2",
        ),
        ({"graph": GRAPH[:-1]}, "the installed pnnx says its results differently"),
        ({"layers": [*LAYERS, "Odd o 1 1 a b"]}, "^operator Odd is not supported by ncnn$"),
        (
            {
                "graph": [*GRAPH, "Det d 1 1 a b", "Roi r 1 1 a b"],
                "layers": [*LAYERS, "Det d 1 1 a b", "Roi r 1 1 a b"],
            },
            "^operators Det, Roi are not supported by ncnn$",
        ),
        (
            {"graph": [*GRAPH, "QLinearConv d 1 1 a b"], "layers": [*LAYERS, "QLinearConv d 1 1 a b"]},
            "QLinearConv is not supported by ncnn; it runs no quantized ONNX files, use the fp32 one$",
        ),
        (
            {"inputs": [Input("ids", "int64", (1, 3))]},
            "integer input 'ids' goes into InnerProduct; ncnn takes integers as i",
        ),
        (
            {
                "inputs": [Input("ids", "int64", (1, 3))],
                "layers": [LAYERS[0], "Split s 1 2 in0 a b", "Embed e 1 1 a c", "Softmax f 1 1 b out0"],
            },
            "integer input 'ids' goes into Softmax",
        ),
    ],
)
def test_what_ncnn_would_compute_wrongly_is_refused(tmp_path, monkeypatch, changed, said):
    with pytest.raises(ModelError, match=said):
        _understood(tmp_path, monkeypatch, **changed)


# -- ncnn


class Net:
    """ncnn's own, which raises nothing and answers with numbers."""

    codes: dict[str, int] = {}  # noqa: RUF012
    shape = (1, 2)

    def __init__(self):
        self.opt = SimpleNamespace()

    def load_param(self, _):
        return self.codes.get("param", 0)

    def load_model(self, _):
        return self.codes.get("model", 0)

    def create_extractor(self):
        found = SimpleNamespace(numpy=lambda **_: np.zeros(self.shape, np.float32))
        return SimpleNamespace(
            input=lambda *_: self.codes.get("input", 0), extract=lambda _: (self.codes.get("extract", 0), found)
        )


@pytest.fixture
def ncnn(monkeypatch):
    class Mat:
        def __init__(self, *_, **__):
            pass

        def clone(self):
            return self

    monkeypatch.setattr(network.importlib, "import_module", lambda _: SimpleNamespace(Mat=Mat, Net=Net))
    return monkeypatch


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("param", "^ncnn cannot load what pnnx made of it$"),
        ("model", "^ncnn cannot load what pnnx made of it$"),
        ("input", r"^ncnn does not take input in0 \(code -100\)$"),
        ("extract", r"^ncnn fails to compute output 'y' \(code -100\)$"),
    ],
)
def test_numbers_that_are_no_success_are_errors(ncnn, step, said):
    ncnn.setattr(Net, "codes", {step: -100})
    with pytest.raises(ModelError, match=said):
        NcnnNetwork(CONVERTED, "fp32", 1).run([np.zeros((1, 3), np.float32)])


def test_outputs_may_differ_by_axes_of_one_and_nothing_else(ncnn):
    ncnn.setattr(Net, "shape", (2,))
    assert NcnnNetwork(CONVERTED, "fp32", 1).run([np.zeros((1, 3), np.float32)])[0].shape == (1, 2)
    ncnn.setattr(Net, "shape", (1, 3))
    said = "computes something else: output 'y' has shape 1x3, the model says 1x2; ncnn cannot be used for it"
    with pytest.raises(ModelError, match=said):
        NcnnNetwork(CONVERTED, "fp32", 1).run([np.zeros((1, 3), np.float32)])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RuntimeError("no\nmemory"), "^ncnn cannot run it: no memory$"),
        ([np.zeros((1, 3), np.float32)], "computes something else: output 'y' has shape 1x3 instead of 1x2$"),
        ([np.array([[1.0, 1.2]], np.float32)], "output 'y' is off by 0.2"),
    ],
)
def test_outputs_are_compared_before_anything_is_measured(monkeypatch, answer, said):
    def run(_):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(converter, "NcnnNetwork", lambda *_: SimpleNamespace(run=run))
    monkeypatch.setattr(converter, "_reference", lambda *_: [np.ones((1, 2), np.float32)])
    with pytest.raises(ModelError, match=said):
        converter.check_outputs(Path("m.onnx"), INPUTS, [[1, 3]], CONVERTED, "fp32")


class Runtime:
    """Converts whatever it is asked for into ``network``."""

    def __init__(self, run, *, loads=True):
        self.run, self.loads = run, loads

    def convert(self, _, __):
        return (*INPUTS, Input("z", "float32", (None, 2))), CONVERTED

    def network(self, _):
        if not self.loads:
            raise ModelError("ncnn cannot load what pnnx made of it")
        return SimpleNamespace(run=self.run)


def _feeds(first, second):
    return {"x": np.zeros((first, 3), np.float32), "z": np.zeros((second, 2), np.float32)}


def test_samples_are_run_one_by_one_and_joined_where_they_can_be():
    session = NcnnSession(Runtime(lambda arrays: [arrays[0][:, :2]]), Path("m.onnx"))
    assert session.run(_feeds(3, 3))[0].shape == (3, 2)
    with pytest.raises(ModelError, match=r"^m\.onnx: inputs have different numbers of samples: \[2, 3\]$"):
        session.run(_feeds(3, 2))
    scalar = NcnnSession(Runtime(lambda _: [np.zeros((2, 2), np.float32)]), Path("m.onnx"))
    assert scalar.run(_feeds(1, 1))[0].shape == (2, 2)
    with pytest.raises(
        ModelError, match=r"^m\.onnx: output 0 has shape 2x2 for one sample: its first axis is not the b"
    ):
        scalar.run(_feeds(2, 2))


def test_what_ncnn_refuses_names_the_file_and_the_shapes():
    def refuse(_):
        raise RuntimeError("bad\nshape")

    with pytest.raises(ModelError, match=r"^m\.onnx: cannot be run with x 2x3, z 2x2: bad shape$"):
        NcnnSession(Runtime(refuse), Path("m.onnx")).run(_feeds(2, 2))
    with pytest.raises(ModelError, match=r"^m\.onnx: ncnn cannot load what pnnx made of it$"):
        NcnnSession(Runtime(refuse, loads=False), Path("m.onnx"))

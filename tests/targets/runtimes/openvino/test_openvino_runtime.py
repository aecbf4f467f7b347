"""OpenVINO's answers, from a library that answers as it is told: what is refused, and whose fault it is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from targets.errors import ModelError, TargetError
from targets.runtimes.openvino.openvino_cpu import OpenvinoRuntime, OpenvinoSession

PATH = Path("m.onnx")


def _raise(error):
    def raising(*_, **__):
        raise error

    return raising


def _port(kind="f32", shape=(1, 3), dynamic=False):
    """An input of a graph; None in ``shape`` is an open axis."""
    axes = [SimpleNamespace(is_static=axis is not None, get_length=lambda axis=axis: axis) for axis in shape]

    class Shape(list):
        rank = SimpleNamespace(is_dynamic=dynamic)

    return SimpleNamespace(
        names={"x"}, any_name="x", partial_shape=Shape(axes),
        get_node=lambda: SimpleNamespace(get_friendly_name=lambda: "x"),
        element_type=SimpleNamespace(get_type_name=lambda: kind),
    )  # fmt: skip


class Core:
    """Reads every file as a graph of ``port``, and compiles it for ``threads``."""

    able = ("FP32",)
    threads = 1
    port = _port()
    infer = staticmethod(lambda *_, **__: {"y": np.zeros(2)})

    def get_property(self, *_):
        return self.able

    def read_model(self, _):
        return SimpleNamespace(inputs=[self.port], reshape=lambda _: None)

    def compile_model(self, *_):
        request = SimpleNamespace(infer=self.infer)
        return SimpleNamespace(get_property=lambda _: self.threads, create_infer_request=lambda: request)


@pytest.fixture
def library(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(get_version=lambda: "1", Core=Core))
    return monkeypatch


def _runtime(precision="f32"):
    return OpenvinoRuntime({"threads": 1, "precision": precision})


def test_bf16_needs_a_cpu_that_has_it(library):
    with pytest.raises(TargetError, match="precision=bf16 needs a CPU with bfloat16; use precision=f32"):
        _runtime("bf16")
    library.setattr(Core, "able", ("FP32", "BF16"))
    _runtime("bf16")


def test_fewer_threads_than_were_asked_for_are_refused(library):
    assert _runtime().load(PATH).run({"x": np.zeros((1, 3))})[0].shape == (2,)
    library.setattr(Core, "threads", 4)
    with pytest.raises(TargetError, match="threads=1 is not possible; OpenVINO uses at most 4 here"):
        _runtime().load(PATH)


@pytest.mark.parametrize(
    ("port", "said"),
    [
        (_port("string"), r"^m\.onnx: input 'x' has type string, which cannot be passed to OpenVINO as an array$"),
        (_port(dynamic=True), r"^m\.onnx: input 'x' does not say how many axes it has; export it with a shape$"),
    ],
)
def test_inputs_that_cannot_be_passed_are_refused(library, port, said):
    library.setattr(Core, "port", port)
    with pytest.raises(ModelError, match=said):
        _runtime().load(PATH)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("read_model", r"^m\.onnx: odd$"),
        ("compile_model", r"^m\.onnx: cannot be compiled for x 1x3: odd$"),
        ("infer", r"^m\.onnx: cannot be run with x 1x3: odd$"),
    ],
)
def test_memory_that_is_used_up_is_not_the_files_fault(library, step, said):
    """Everything else that the library raises is; a session that exists is still asked."""
    for error, kind, words in ((MemoryError("9 GB"), MemoryError, "9 GB"), (RuntimeError("odd"), ModelError, said)):
        library.setattr(Core, step, staticmethod(_raise(error)))
        with pytest.raises(kind, match=words):
            OpenvinoSession(_runtime(), PATH).run({"x": np.zeros((1, 3))})

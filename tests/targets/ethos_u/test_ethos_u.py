"""An NPU that a compiler models: conformance, cycles to the digit, what is left to the CPU, files that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from golden_files import golden_file
from targets.benches.benching import bench
from targets.errors import MeasurementError, ModelError, TargetError, TargetUnavailable
from targets.ethos_u import vela_installation
from targets.ethos_u.ethos_u import EthosU
from targets.ethos_u.variants import VARIANTS
from targets.probing.probe_models import SIDE, write_probe_model
from targets.registry import get, install
from targets.target import Target
from targets.testing import TargetConformance, reference_model, samples
from targets.tflite import installation
from targets.tflite.conversion import convert
from targets.workers.process import Launch

onnx = pytest.importorskip("onnx")
LACKING = vela_installation.missing()
installed = pytest.mark.skipif(LACKING is not None, reason=f"needs {LACKING}; run: {vela_installation.COMMAND}")

GOLDEN = {"u55-32": 266_947, "u55-128": 89_900, "u55-256": 58_340, "u65-512": 39_857, "u85-512": 40_206}
"""Cycles of MLPerf Tiny's keyword spotter."""


class Crashing(EthosU):
    """A shell that ends itself runs in the worker's place."""

    def launch(self) -> Launch:
        return Launch(("sh", "-c", "kill -SEGV $$"), {})


@installed
class TestEthosU(TargetConformance):
    def make(self) -> Target:
        return get("ethos-u:variant=u55-128")

    def make_crashing(self) -> Target | None:
        return Crashing()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    made = get("ethos-u")
    yield made
    made.close()


@installed
@pytest.mark.parametrize("variant", GOLDEN)
def test_cycles_of_the_reference_model_are_known_to_the_digit(variant):
    made = get(f"ethos-u:variant={variant}")
    try:
        [found] = made.measure([golden_file("kws_ref_model.tflite")])
        assert found.cycles == GOLDEN[variant]
        assert (found.latency, found.instructions, found.stand_in) == (None, None, False)
        # Vela says 21.67 KiB for one of them; weights are compressed for the NPU.
        assert 15_000 < found.memory < 25_000
        assert 30_000 < found.flash < 45_000 < found.size
        layers = made.audit(golden_file("kws_ref_model.tflite"))
        assert len(layers) == 13
        assert all(layer.on_npu and layer.integer and not layer.why for layer in layers)
        assert made.remarks() == ()
    finally:
        made.close()


def _int8(folder: Path, source: Path, x: np.ndarray) -> Path:
    return convert(source, "int8", {"x": x}, folder / f"{source.stem}.tflite").path


@installed
def test_a_float_file_costs_what_the_int8_file_of_it_costs_and_it_is_said(tmp_path):
    source = reference_model(tmp_path / "m.onnx")
    int8 = _int8(tmp_path, source, samples(64))
    made = EthosU()
    try:
        float_, small = made.measure([source, int8], inputs={"x": samples(1)})
        assert (float_.cycles, float_.stand_in, small.stand_in) == (small.cycles, True, False)
        assert float_.size == source.stat().st_size
        assert "a float file does not run on the NPU" in made.remarks()[0]
        assert len(made.remarks()) == 1
        np.testing.assert_array_equal(made.run(int8, {"x": samples(9)})[0], get("tflm").run(int8, {"x": samples(9)})[0])
        assert "TensorFlow Lite Micro's reference kernels" in made.remarks()[1]
    finally:
        made.close()


@installed
def test_a_width_that_fills_the_npu_is_cheap_and_one_channel_more_is_dear(target, tmp_path):
    cycles = {}
    for width in (31, 32, 33):
        x = np.random.default_rng(0).normal(size=(4, width, SIDE, SIDE)).astype(np.float32)
        int8 = _int8(tmp_path, write_probe_model(tmp_path, "fp32", width), x)
        cycles[width] = target.measure([int8])[0].cycles
    assert 0.97 < cycles[31] / cycles[32] <= 1.01
    assert cycles[33] > 1.5 * cycles[32]


def _with_a_sine(path: Path) -> Path:
    """A convolution, and then an operator that no NPU here has."""
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    kernel = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("Sin", ["c"], ["y"])], "sine",
        [value("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])], [value("y", onnx.TensorProto.FLOAT, [1, 8, 8, 8])],
        [onnx.numpy_helper.from_array(kernel, "w")],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@installed
def test_what_is_left_to_the_cpu_is_named(tmp_path):
    int8 = _int8(tmp_path, _with_a_sine(tmp_path / "sine.onnx"), samples(16))
    found = bench([int8], ["ethos-u"])
    [audit] = found.found[0].audits
    left = {layer.operator: layer.why for layer in audit if not layer.on_npu}
    assert left["SIN"] == "SIN on the CPU (Unsupported opType)"
    assert "CONV_2D" not in left
    [entry] = found.to_json()["results"]
    assert entry["audit"]["npu"] == len(audit) - len(left) > 0
    [warning] = [text for text in found.warnings if "not in the cycles" in text]
    assert warning.endswith("SIN")


@installed
def test_files_without_anything_for_the_npu_are_refused(target, tmp_path):
    source = reference_model(tmp_path / "m.onnx")
    floats = convert(source, "fp32", {}, tmp_path / "fp32.tflite").path
    with pytest.raises(ModelError, match=r"fp32\.tflite: none of its operators runs on Ethos-U55-128 \(AVERAGE_POOL"):
        target.measure([floats])
    stored = convert(source, "int8-dynamic", {}, tmp_path / "stored.tflite").path
    with pytest.raises(ModelError, match=r"stored\.tflite: floats meet stored weights in CONV_2D, which no NPU"):
        target.measure([stored])


@installed
def test_a_crash_of_the_compiler_names_the_file(tmp_path):
    int8 = _int8(tmp_path, reference_model(tmp_path / "m.onnx"), samples(16))
    with pytest.raises(MeasurementError, match=r"^ethos-u: .*SIGSEGV") as raised:
        Crashing().measure([int8])
    assert "\n" not in str(raised.value)


def test_an_unknown_variant_is_one_line_that_names_what_there_is():
    with pytest.raises(TargetError, match=r"variant=u55-100 is not allowed; variant is one of u55-32, .*, u85-2048$"):
        EthosU(variant="u55-100")
    assert {one.title for one in VARIANTS.values()} >= {"Ethos-U55-128", "Ethos-U65-512", "Ethos-U85-2048"}
    assert EthosU(variant="u55-128").name == "ethos-u"
    assert EthosU(variant="u65-256").name == "ethos-u:variant=u65-256"


def test_what_is_missing_is_said_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv(installation.VARIABLE, str(tmp_path / "litert"))
    monkeypatch.setenv(vela_installation.VARIABLE, str(tmp_path / "vela"))
    assert "litert" in str(vela_installation.missing())
    with pytest.raises(TargetUnavailable, match="run: paretopress targets --install ethos-u"):
        get("ethos-u")


@installed
def test_half_an_installation_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv(vela_installation.VARIABLE, str(tmp_path / "vela"))
    monkeypatch.setattr(vela_installation, "VELA", {"ethos-u-vela": "0.0.0"})
    assert vela_installation.missing() == f"Vela 0.0.0 in {tmp_path / 'vela'}"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(TargetUnavailable, match=r"the packages \(from PyPI, with pip\) cannot be had"):
        install("ethos-u", print)
    assert list(tmp_path.iterdir()) == []

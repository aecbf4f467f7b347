"""ONNX Runtime Web in Node: conformance, every precision, and that no process stays behind."""

from __future__ import annotations

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
from local_runtimes import graph_model, node_model
from processes import alive, descendants, wait_for
from targets.errors import MeasurementError, ModelError, TransientError
from targets.runtimes.ort.ort_cpu import OrtCpu
from targets.runtimes.ort_web import web_installation
from targets.runtimes.ort_web.ort_web import OrtWeb
from targets.target import Protocol, Target
from targets.testing import QUICK, reference_model, reference_output, samples
from targets.workers.local import LocalTarget

onnx = pytest.importorskip("onnx")
quantization = pytest.importorskip("onnxruntime.quantization")
LACKING = web_installation.missing()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=f"needs {LACKING}; run: {web_installation.COMMAND}")
TensorProto, helper = onnx.TensorProto, onnx.helper
ROOT = Path(__file__).resolve().parents[4]


needs_chromium = pytest.mark.skipif(
    web_installation.browser_version() is None, reason="needs Chromium; run: apt-get install chromium"
)


class TestNode(local.Conformance):
    def make(self) -> Target:
        return OrtWeb()


@pytest.mark.slow
@needs_chromium
class TestPage(local.Conformance):
    def make(self) -> Target:
        return OrtWeb(host="chromium")


class Counting(local.ThreadsBesideOne):
    def process(self, target: LocalTarget) -> int:
        assert target.scorer is not None
        return descendants(target.scorer.pid)[0]


def test_two_threads_are_two(model):
    with closing(OrtWeb(threads=2)) as two:
        assert Counting().thread_count(two, model) == 2
        assert two.facts()["threads"] == 2


@pytest.fixture(scope="module")
def target() -> Iterator[OrtWeb]:
    """One for all tests, so that its scoring process starts once."""
    made = OrtWeb()
    yield made
    made.close()


@pytest.fixture(scope="module")
def native() -> Iterator[OrtCpu]:
    made = OrtCpu()
    yield made
    made.close()


class Calibration(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        self._rows = iter(samples(32)[:, None])

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else {"x": row}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reference model in every precision that a search makes for it."""
    folder = tmp_path_factory.mktemp("ort-web")
    source = reference_model(folder / "fp32.onnx")
    kinds = {"fp32": source}
    for kind, weights in (("u8s8", quantization.QuantType.QInt8), ("u8u8", quantization.QuantType.QUInt8)):
        kinds[kind] = folder / f"{kind}.onnx"
        quantization.quantize_static(
            source, kinds[kind], Calibration(), activation_type=quantization.QuantType.QUInt8, weight_type=weights
        )
    kinds["dynamic"] = folder / "dynamic.onnx"
    quantization.quantize_dynamic(source, kinds["dynamic"])
    return kinds


@pytest.mark.parametrize("kind", ["fp32", "u8s8", "u8u8", "dynamic"])
def test_every_precision_gives_what_onnx_runtime_gives(files, target, native, kind):
    x = samples(9)
    (y,) = target.run(files[kind], {"x": x})
    (expected,) = native.run(files[kind], {"x": x})
    # Where u8s8 saturates, on x86 without VNNI, it is the native one that is off.
    tolerance = 0.05 if native.capabilities().reduce_range and kind == "u8s8" else 1e-5
    np.testing.assert_allclose(y, expected, atol=tolerance)
    assert np.abs(y - reference_output(x)).max() < (1e-5 if kind == "fp32" else 0.2)


def test_products_of_8_bits_do_not_saturate(target, tmp_path):
    """Two of the largest make 64,770: more than 16 bits hold, which is where x86 without VNNI is off."""
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
    ends = [("x", TensorProto.UINT8, ["n", 64])], [("y", TensorProto.INT32, ["n", 8])]
    path = graph_model(tmp_path / "m.onnx", nodes, *ends, {"w": np.full((64, 8), 127, np.int8)})
    (y,) = target.run(path, {"x": np.full((4, 64), 255, np.uint8)})
    np.testing.assert_array_equal(y, np.full((4, 8), 64 * 255 * 127))


def test_models_of_two_precisions_are_measured_against_each_other(files, target):
    said: list[str] = []
    protocol = Protocol(width=0.5, seconds=0.2, rounds=3, block=0.002, warmup=0.002)
    measured = target.measure(
        [files["fp32"], files["u8s8"]], protocol=protocol, watch=lambda estimate: said.append(estimate.stage)
    )
    assert all(one.latency is not None and one.latency.p50 > 0 for one in measured)
    assert all(one.memory is not None and 0 <= one.memory < 50e6 for one in measured)
    assert "looking at memory" in said


@needs_chromium
def test_a_page_computes_the_same_and_is_timed_by_its_coarse_clock(files):
    with closing(OrtWeb(host="chromium")) as page:
        (measured,) = page.measure([files["u8s8"]], protocol=QUICK)
        assert page.name == "ort-web:host=chromium"
        before = set(descendants(os.getpid()))
        (y,) = page.run(files["fp32"], {"x": samples(5)})
        browser = set(descendants(os.getpid())) - before
        facts, described = page.facts(), page.describe()
    np.testing.assert_allclose(y, reference_output(samples(5)), atol=1e-5)
    # Such a model takes some microseconds: values last 200 steps or more, so that each is a mean of many runs.
    assert 0 < min(run for one in measured.samples for run in one.runs) < 100 * facts["tick"]
    assert facts["isolated"]
    assert facts["tick"] < 5e-5
    assert facts["host"].split("/")[1].split(".")[0] == described["packages"]["chromium"].split(".")[0]
    assert len(browser) > 3
    wait_for(lambda: not any(alive(pid) for pid in browser))


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "INT8", "UINT8", "INT32", "INT64", "BOOL", "STRING"])
def test_arrays_of_every_type_go_in_and_come_out(target, tmp_path, kind):
    path = node_model(tmp_path / "m.onnx", "Identity", dtype=getattr(TensorProto, kind))
    x = np.array([["a", "", "äöü→𝄞"], ["b", "c", "d"]]) if kind == "STRING" else np.arange(6).reshape(2, 3)
    if kind != "STRING":
        x = x.astype({"FLOAT": "float32", "DOUBLE": "float64"}.get(kind, kind.lower()))
    (y,) = target.run(path, {"x": x})
    np.testing.assert_array_equal(y, x)


def test_dynamic_axes_get_the_shape_they_are_run_with(target, tmp_path):
    local.see_windows(target, local.window_model(tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("op", "options", "said"),
    [
        ("Frobnicate", {}, "operator Frobnicate"),
        ("Relu", {"opset": 999}, "opset 999 is too new"),
        ("Relu", {"ir": 999}, "IR version 999 is too new"),
    ],
)
def test_what_is_not_supported_is_named_on_one_line(target, tmp_path, op, options, said):
    local.see_refused_on_one_line(target, node_model(tmp_path / "m.onnx", op, **options), said, longest=400)


def test_inputs_that_fail_while_it_runs_are_named(target, tmp_path):
    with pytest.raises(ModelError, match=r"m\.onnx: cannot be run with x 1x1x1x1"):
        target.run(local.window_model(tmp_path / "m.onnx"), {"x": np.zeros((1, 1, 1, 1), np.float32)})


def test_weights_in_a_file_of_their_own_are_found(target, tmp_path):
    path = reference_model(tmp_path / "m.onnx")
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    (y,) = target.run(path, {"x": samples(3)})
    np.testing.assert_allclose(y, reference_output(samples(3)), atol=1e-4)


def endless(path: Path) -> Path:
    """A loop that ends after 2**62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Relu", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n", 3]),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, ["n", 3]),
        ],
    )
    node = helper.make_node("Loop", ["m", "t", "x"], ["y"], body=body)
    ends = [("x", TensorProto.FLOAT, ["n", 3])], [("y", TensorProto.FLOAT, ["n", 3])]
    return graph_model(path, [node], *ends, {"m": np.array(2**62), "t": np.array(True)})


def test_a_hang_is_ended_with_all_its_processes(tmp_path):
    path = endless(tmp_path / "m.onnx")
    made = OrtWeb()
    made.patience = 2.0
    before = set(descendants(os.getpid()))
    seen: set[int] = set()

    def watch(_: object) -> None:
        seen.update(set(descendants(os.getpid())) - before)

    with pytest.raises(MeasurementError, match=r"hung: no answer in 2 s while .*m\.onnx"):
        made.measure([path], protocol=QUICK, watch=watch)
    assert len(seen) >= 2
    wait_for(lambda: not any(alive(pid) for pid in seen))


def test_too_much_memory_is_noticed_in_node(model):
    made = OrtWeb()
    made.memory_limit = 30_000_000
    with pytest.raises(TransientError, match="more than the limit"):
        made.measure([model], protocol=QUICK)


def test_a_death_of_node_is_told_and_the_next_call_works(model):
    with closing(OrtWeb()) as made:
        made.run(model, {"x": samples(1)})
        assert made.scorer is not None
        os.kill(descendants(made.scorer.pid)[0], signal.SIGSEGV)
        with pytest.raises(MeasurementError, match="killed by SIGSEGV"):
            made.run(model, {"x": samples(1)})
        assert made.run(model, {"x": samples(1)})[0].shape == (1, 5)


def test_node_ends_when_the_parent_is_killed(tmp_path):
    path = endless(tmp_path / "m.onnx")
    code = (
        "import pathlib, sys; from targets.runtimes.ort_web.ort_web import OrtWeb;"
        "OrtWeb().measure([pathlib.Path(sys.argv[1])], watch=lambda one: print(one.stage, flush=True))"
    )
    words = [sys.executable, "-c", code, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        while "for the first time" not in parent.stdout.readline():
            assert parent.poll() is None
        started = descendants(parent.pid)
        assert len(started) == 2
        parent.kill()
    wait_for(lambda: not any(alive(pid) for pid in started))


def test_it_says_its_versions_and_what_it_can(target):
    described, facts = target.describe(), target.facts()
    assert described["packages"]["onnxruntime-web"] == facts["version"]
    assert f"Node {described['packages']['node']}" == facts["host"]
    assert target.capabilities().opset >= 20

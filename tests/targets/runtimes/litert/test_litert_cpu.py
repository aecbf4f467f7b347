"""LiteRT on this machine: conformance, every precision of converted files, and what is said of what it executes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import targets
from local_runtimes import ThreadsSeenWorking
from targets.errors import ModelError, TargetError
from targets.registry import get
from targets.target import Target
from targets.testing import QUICK, reference_model, reference_output, samples
from targets.tflite import installation
from targets.tflite.conversion import convert

pytest.importorskip("onnx")
LACKING = installation.missing()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=f"needs {LACKING}; run: {installation.COMMAND}")


class TestLitertCpu(ThreadsSeenWorking):
    def make(self) -> Target:
        return get("litert-cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reference model in every precision."""
    folder = tmp_path_factory.mktemp("litert")
    source = reference_model(folder / "m.onnx")
    kinds = ("fp32", "fp16", "int8", "int8-float-io", "int8-dynamic", "int8-weights")
    return {kind: convert(source, kind, {"x": samples(64)}, folder / f"{kind}.tflite").path for kind in kinds}


@pytest.fixture(scope="module")
def target() -> Target:
    return get("litert-cpu")


@pytest.mark.parametrize(
    ("kind", "error", "integer", "why"),
    [
        ("fp32", 1e-5, False, "float in the file"),
        ("fp16", 5e-3, False, "its weights are made floats while it runs"),
        ("int8", 0.5, True, ""),
        ("int8-float-io", 0.5, True, ""),
        ("int8-dynamic", 0.1, True, "its activations are quantized while it runs"),
        ("int8-weights", 0.05, False, "its weights are made floats while it runs"),
    ],
)
def test_every_precision_runs_and_is_told(files, target, kind, error, integer, why):
    x = samples(7)
    (y,) = target.run(files[kind], {"x": x})
    assert np.abs(y - reference_output(x)).max() < error
    layers = target.audit(files[kind])
    assert [(one.operator, one.integer, one.why) for one in layers] == [
        ("XNNPACK CONV_2D", integer, why),
        ("XNNPACK FULLY_CONNECTED", integer, why),
    ]


def test_int8_with_floats_in_and_out_computes_the_same(files, target):
    x = samples(5)
    found = [target.run(files[kind], {"x": x})[0] for kind in ("int8", "int8-float-io")]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_files_of_both_kinds_are_measured_against_each_other(files, target, tmp_path):
    source = reference_model(tmp_path / "m.onnx")
    measured = target.measure([source, files["int8"]], protocol=QUICK)
    assert [one.size for one in measured] == [source.stat().st_size, files["int8"].stat().st_size]
    assert all(one.latency is not None for one in measured)


def test_other_kernels_say_so(files):
    target = get("litert-cpu:kernels=reference")
    try:
        assert [one.operator for one in target.audit(files["int8"]) or ()] == ["CONV_2D", "FULLY_CONNECTED"]
    finally:
        target.close()


def test_settings_decide_the_format_of_int8():
    assert get("litert-cpu").capabilities().int8_format == "tflite"
    assert get("litert-cpu:io=float").capabilities().int8_format == "tflite-float-io"
    with pytest.raises(TargetError, match="io"):
        get("litert-cpu:io=uint8")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1c\x00\x00\x00TFL3" + bytes(40)])
def test_a_broken_tflite_file_is_refused_by_name(target, tmp_path, content):
    (tmp_path / "broken.tflite").write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.tflite: truncated or not a \.tflite file$"):
        target.run(tmp_path / "broken.tflite", {"x": samples(1)})


def test_compare_takes_tflite_files(files):
    comparison = targets.compare([files["fp32"], files["int8"]], target="litert-cpu", protocol=QUICK)
    assert comparison.ratio(files["int8"]).value > 0

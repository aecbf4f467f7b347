"""The interpreter of microcontrollers: conformance, an arena that repeats, outputs that are LiteRT's reference ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from targets.errors import ModelError
from targets.registry import get
from targets.target import Target
from targets.testing import TargetConformance, reference_model, samples
from targets.tflite import installation
from targets.tflite.conversion import convert
from targets.tflite.tflite_files import read_tflite

pytest.importorskip("onnx")
LACKING = installation.missing_tflm()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=f"needs {LACKING}; run: {installation.COMMAND}")


class TestTflm(TargetConformance):
    @pytest.fixture(autouse=True)
    def _crash(self, misbehaving: Callable[..., Target]) -> None:
        self._misbehaving = misbehaving

    def make(self) -> Target:
        return get("tflm")

    def make_crashing(self) -> Target | None:
        return self._misbehaving("segfault")


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    made = get("tflm")
    yield made
    made.close()


def _file(folder: Path, kind: str) -> Path:
    return convert(reference_model(folder / "m.onnx"), kind, {"x": samples(64)}, folder / f"{kind}.tflite").path


def test_the_arena_is_counted_and_int8_takes_less(target, tmp_path):
    source, int8 = reference_model(tmp_path / "m.onnx"), _file(tmp_path, "int8")
    first, second = (target.measure([source, int8]) for _ in range(2))
    assert [one.memory for one in first] == [one.memory for one in second]
    # The input alone is 768 bytes in floats; the convolution's output, beside it, 2,048.
    assert first[0].memory > 2816 > first[1].memory > 704
    assert all(one.latency is None and one.instructions is None for one in first)


def test_outputs_are_within_a_step_of_the_reference_kernels(target, tmp_path):
    """LiteRT rounds some products otherwise: one step of the int8 output at most."""
    int8, x = _file(tmp_path, "int8"), samples(16)
    reference = get("litert-cpu:kernels=reference")
    try:
        step = read_tflite(int8).outputs[0].tensor.scale
        np.testing.assert_allclose(target.run(int8, {"x": x})[0], reference.run(int8, {"x": x})[0], atol=1.01 * step)
    finally:
        reference.close()


@pytest.mark.parametrize("kind", ["fp16", "int8-dynamic", "int8-weights"])
def test_stored_weights_are_refused_by_the_operator(target, tmp_path, kind):
    with pytest.raises(ModelError, match=r"floats meet stored weights in (CONV_2D|DEQUANTIZE), .* fp32 or in int8"):
        target.run(_file(tmp_path, kind), {"x": samples(1)})

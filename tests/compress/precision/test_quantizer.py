"""Failures of ONNX Runtime's quantizer and calibrators: one line of ours that names the file and the cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compress.precision import refining
from compress.precision.quantizer import quantize_dynamic, quantize_static
from compress.precision.ranges import collect_ranges
from compress.precision.refining import refine
from compress.values.configs import PrecisionSettings
from onnx_models import f32, node, write
from targets.errors import QuantizeError
from targets.target import Capabilities

ROWS = {"x": np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)}
ABLE = Capabilities()


@pytest.fixture
def product(tmp_path: Path) -> Path:
    return write(tmp_path / "m.onnx", [node("MatMul", "x w", name="product")], {"x": f32(8, 6)}, {"w": f32(6, 3)})[0]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file without products."""
    return write(tmp_path / "plain.onnx", [node("Relu", "x")], {"x": f32(8, 6)})[0]


def _without_ranges(source: Path, folder: Path) -> None:
    collect_ranges(source, ROWS, "minmax", folder / "r.json")
    document = json.loads((folder / "r.json").read_text())
    document["data"] = {}
    (folder / "r.json").write_text(json.dumps(document))
    quantize_static(source, folder / "q.onnx", folder / "r.json", "minmax", ABLE)


def _into_nothing(source: Path, folder: Path) -> None:
    quantize_dynamic(source, folder / "absent" / "q.onnx", ABLE)


@pytest.mark.parametrize("fail", [_without_ranges, _into_nothing])
def test_a_quantizer_that_fails_is_quoted_in_one_line(
    product: Path, tmp_path: Path, fail: Callable[[Path, Path], None]
) -> None:
    with pytest.raises(QuantizeError, match=r"^m\.onnx cannot be quantized: \S") as caught:
        fail(product, tmp_path)
    assert "\n" not in str(caught.value)


def test_ranges_are_not_searched_where_nothing_is_quantized(plain: Path, tmp_path: Path) -> None:
    """What the quantizer refuses is said as it says it, not as a failure of calibration."""
    with pytest.raises(QuantizeError, match=r"^\S+ has no convolution or matrix product to quantize"):
        collect_ranges(plain, ROWS, "search", tmp_path / "r.json", ABLE)
    collect_ranges(plain, ROWS, "minmax", tmp_path / "r.json", ABLE)


def test_what_the_quantizer_refuses_is_said_of_biases_as_it_says_it(
    product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise QuantizeError("model.onnx is of opset 9, 13 is needed")

    monkeypatch.setattr(refining, "correct_biases", refuse)
    with pytest.raises(QuantizeError, match=r"^model\.onnx is of opset 9, 13 is needed$"):
        refine(product, ROWS, ABLE, PrecisionSettings(correct_bias=True))


@pytest.mark.parametrize(
    ("kind", "why"), [(np.float64, "; its weights are in double precision, convert them to"), (None, "")]
)
def test_weights_of_another_precision_are_the_reason(tmp_path: Path, kind: type | None, why: str) -> None:
    rows = ROWS["x"].astype(kind or np.float32)
    nodes = [node("MatMul", "x w")] if kind else [node("Relu", "x")]
    constants = {"w": f32(6, 3).astype(kind)} if kind else {}
    path, _ = write(tmp_path / "m.onnx", nodes, {"x": rows}, constants, [("y", 11 if kind else 1)])
    with pytest.raises(
        QuantizeError, match=rf"^m\.onnx has no matrix product: dynamic int8 would change nothing{why}"
    ) as said:
        quantize_dynamic(path, tmp_path / "q.onnx", ABLE)
    assert ("precision" in str(said.value)) == bool(why)

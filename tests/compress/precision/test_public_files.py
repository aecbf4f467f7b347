"""Files of operator sets 7 to 22 in every scheme: right, or refused by name; nothing is wrong without a word."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from compress.precision.quantizer import quantizable_layers
from compress.precision.quantizing import quantize
from public_files import FILES, FIRST
from public_graph import Samples
from targets.errors import QuantizeError

FLOORS = {
    "int8": 28.0, "products": 28.0, "mixed": 28.0, "int8-dynamic": 30.0, "fp16": 60.0, "int8-weights": 35.0,
    "int4-weights": 13.0,
}  # fmt: skip
"""Decibels of signal to noise at least, for each output of floats."""
REFUSALS = (
    "no convolution or matrix product to quantize", "no matrix product: dynamic int8 would change nothing",
    "would change nothing",
)  # fmt: skip


def _run(path: Path, samples: Samples) -> list[np.ndarray]:
    """Outputs of a file, its quantized layers computed in floats; sample by sample where the batch is not in front."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    together = list(session.run(None, samples))
    count = len(next(iter(samples.values())))
    free = all(not isinstance(item.shape[0], int) for item in session.get_inputs())
    if not free or all(x.ndim and len(x) == count for x in together):
        return together
    alone = [session.run(None, {name: x[i : i + 1] for name, x in samples.items()}) for i in range(count)]
    return [np.stack(column) for column in zip(*alone, strict=True)]


def _decibels(a: np.ndarray, b: np.ndarray) -> float:
    assert np.isfinite(b).all()
    noise = np.linalg.norm((a - b).astype(np.float64))
    return float(20 * np.log10(np.linalg.norm(a.astype(np.float64)) / noise)) if noise else np.inf


def _check(name: str, scheme: str, folder: Path) -> None:
    model, samples = FILES[name]()
    path, made = folder / f"{name}.onnx", folder / "made.onnx"
    onnx.save(model, path)
    onnx.checker.check_model(str(path))
    before = path.read_bytes()
    options = {"operators": "products"} if scheme == "products" else {}
    # Dynamic int8 is computed in integers whatever a session is told, and on x86 without VNNI these saturate unless
    # weights have seven bits: as this machine's own target says.
    target = "ort-cpu" if scheme == "int8-dynamic" else "fake"
    layers = quantizable_layers(path)
    if scheme == "mixed" and layers:
        options = {"keep_float": (layers[0],)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused, found = "", None
        try:
            found = quantize(
                path, made, "int8" if scheme in ("products", "mixed") else scheme, samples, target, **options
            )
        except QuantizeError as error:
            refused = str(error)
    if found is None:
        assert any(text in refused for text in REFUSALS), refused
        assert not made.exists()
        return
    assert path.read_bytes() == before
    expected = _run(path, samples)
    floats = [i for i, x in enumerate(expected) if np.issubdtype(x.dtype, np.floating)]
    outputs = _run(made, samples)
    ratios = {model.graph.output[i].name: _decibels(expected[i], outputs[i]) for i in floats}
    assert min(ratios.values()) > FLOORS[scheme], ratios
    assert found.sqnr == pytest.approx({key: min(200.0, value) for key, value in ratios.items()}, abs=0.02)


def test_there_are_enough_of_them() -> None:
    opsets = {FILES[name]()[0].opset_import[0].version for name in FILES}
    assert len(FILES) >= 50
    assert opsets >= {7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22}


@pytest.mark.parametrize("name", sorted(FIRST.values()))
def test_int8_of_a_legal_file_is_right_or_refused(tmp_path: Path, name: str) -> None:
    _check(name, "int8", tmp_path)


@pytest.mark.parametrize("scheme", [scheme for scheme in FLOORS if scheme != "int8"])
@pytest.mark.parametrize("name", ["gemm1-9", "shared_weights-11", "mask_added-13", "group_norm_operator-21"])
def test_other_schemes_of_a_legal_file_are_right(tmp_path: Path, name: str, scheme: str) -> None:
    _check(name, scheme, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", list(FLOORS))
@pytest.mark.parametrize("name", sorted(FILES))
def test_every_scheme_of_every_file_is_right_or_refused(tmp_path: Path, name: str, scheme: str) -> None:
    _check(name, scheme, tmp_path)

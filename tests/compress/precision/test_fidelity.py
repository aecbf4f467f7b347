"""A quantized file against its float source: what is measured, what is said, what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from compress.float_models import plain_models
from compress.onnx_files import opsets
from compress.precision import damage, fidelity
from compress.precision.damage import locate
from compress.precision.fidelity import FLOOR, compare_quantized, decibels, made_up_samples
from compress.precision.quantizing import quantize
from public_files import FILES
from public_graph import Graph
from targets.errors import QuantizeError


def _save(path: Path, name: str = "plain_cnn-15") -> tuple[Path, dict[str, np.ndarray]]:
    model, samples = FILES[name]()
    onnx.save(model, path)
    return path, samples


def _outliers(path: Path, *, opset: int = 17) -> tuple[Path, dict[str, np.ndarray]]:
    """A product of values that are squared and scaled by hugely uneven factors before they are evened out again."""
    g = Graph(opset)
    x = g.linear(g.input(16), 16, 16)
    factors = np.logspace(0, 6, 16).astype(np.float32)
    wide = g.add("Mul", x, g.constant(factors))
    even = g.add("Mul", wide, g.constant(1 / factors))
    model, samples = g.file(g.linear(even, 16, 8))
    onnx.save(model, path)
    return path, samples


def _changed(source: Path, path: Path, change: Callable[[onnx.GraphProto], None]) -> Path:
    model = onnx.load(source)
    change(model.graph)
    onnx.save(model, path)
    return path


@given(st.floats(-40, 90), st.integers(0, 5))
def test_decibels_are_those_of_the_noise_that_was_added(wanted: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal(500)
    noise = random.standard_normal(500)
    noise *= np.linalg.norm(x) / np.linalg.norm(noise) * 10 ** (-wanted / 20)
    assert decibels(x, x + noise) == pytest.approx(wanted, abs=1e-6)


def test_equal_outputs_and_outputs_of_nothing() -> None:
    zeros, ones = np.zeros(3), np.ones(3)
    assert decibels(ones, ones) == decibels(zeros, zeros) == 200.0
    assert decibels(zeros, ones) == -200.0
    masked = np.asarray([-np.inf, 1.0])
    assert decibels(masked, masked) == 200.0


def test_a_good_file_has_nothing_to_say(tmp_path: Path) -> None:
    source, samples = _save(tmp_path / "m.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = quantize(source, tmp_path / "q.onnx", "int8", samples, "fake")
    assert list(found.sqnr) == [onnx.load(source).graph.output[0].name]
    assert min(found.sqnr.values()) > 30
    near = compare_quantized(source, tmp_path / "q.onnx", samples)
    assert near.said() == ""
    assert near.cause == ()


def test_a_bad_file_is_said_with_the_operator_and_products_alone_are_good(tmp_path: Path) -> None:
    source, samples = _outliers(tmp_path / "m.onnx")
    with pytest.warns(UserWarning, match=r"m.onnx: output .* below 10 dB; .* lost in Mul 'Mul3'"):
        found = quantize(source, tmp_path / "q.onnx", "int8", samples, "fake")
    assert min(found.sqnr.values()) < FLOOR
    assert found.path.exists()
    better = quantize(source, tmp_path / "p.onnx", "int8", samples, "fake", operators="products")
    assert min(better.sqnr.values()) > 30
    kept = quantize(source, tmp_path / "k.onnx", "mixed", samples, "fake", keep_float=("Mul",))
    assert min(kept.sqnr.values()) > 30
    assert kept.int8 == better.int8 == found.int8


def _lossy(folder: Path) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """A file, what int8 makes of it, which loses nearly all, and samples."""
    source, samples = _outliers(folder / "m.onnx")
    with pytest.warns(UserWarning, match="below 10 dB"):
        quantize(source, folder / "q.onnx", "int8", samples, "fake")
    return source, folder / "q.onnx", samples


def test_damage_is_charged_to_where_it_shows(tmp_path: Path) -> None:
    source, made, samples = _lossy(tmp_path)
    first, *others = locate(source, made, {"x": samples["x"][:4]}, fidelity.checker())
    assert (first.layer, first.operator) == ("Mul3", "Mul")
    before = next(one for one in others if one.layer == "Add1")
    assert before.sqnr > 30 > 10 > first.sqnr
    assert sum(one.added for one in others) < first.added


def test_damage_is_the_same_whether_looked_at_at_once_or_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made, samples = _lossy(tmp_path)
    one = {"x": samples["x"][:1]}
    expected = locate(source, made, one, fidelity.checker())
    sizes = []
    look = damage._inside

    def watched(*of: Any) -> list[np.ndarray]:
        found = look(*of)
        sizes.append(sum(x.nbytes for x in found))
        return found

    monkeypatch.setattr(damage, "_inside", watched)
    monkeypatch.setattr(damage, "_FIRST", 2)
    monkeypatch.setattr(damage, "_ROOM", 1)
    monkeypatch.setattr(damage, "_LOOKS", 10**9)
    # There is no room for more than one sample.
    assert locate(source, made, samples, fidelity.checker()) == expected
    assert len(sizes) > 4


def test_of_gigabytes_some_values_are_looked_at_and_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made, samples = _lossy(tmp_path)
    monkeypatch.setattr(damage, "_FIRST", 1)
    monkeypatch.setattr(damage, "_ROOM", 1)
    found = locate(source, made, samples, fidelity.checker())
    assert 2 <= len(found) <= 1 + damage._LOOKS
    assert sum(one.added for one in found) > 0.1, "what is lost shows in one that is looked at"


def test_what_a_folded_activation_adds_is_its_layers(tmp_path: Path) -> None:
    source, samples = _save(tmp_path / "m.onnx")
    quantize(source, tmp_path / "q.onnx", "int8", samples, "fake")
    found = locate(source, tmp_path / "q.onnx", samples, fidelity.checker())
    assert "Relu" not in {one.operator for one in found}
    assert {one.operator for one in found} >= {"BatchNormalization", "Conv", "Gemm"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda graph: graph.node.insert(0, onnx.helper.make_node("Conv", ["x"], ["z"])), "does not run"),
        (
            lambda graph: graph.node[-1].attribute.append(onnx.helper.make_attribute("alpha", float("inf"))),
            "has NaN or inf",
        ),
        (lambda graph: graph.initializer.extend([numpy_helper.from_array(np.int64([-1, 5]), "cut")]), "has shape"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, change: Callable[[onnx.GraphProto], None], said: str) -> None:
    source, samples = _save(tmp_path / "m.onnx")

    def broken(graph: onnx.GraphProto) -> None:
        change(graph)
        if said == "has shape":
            name = graph.node[-1].output[0]
            graph.node[-1].output[0] = "whole"
            graph.node.append(onnx.helper.make_node("Reshape", ["whole", "cut"], [name]))
            del graph.output[0].type.tensor_type.shape.dim[:]

    made = _changed(source, tmp_path / "q.onnx", broken)
    with pytest.raises(QuantizeError, match=rf"the quantized file of m.onnx .*{said}") as caught:
        compare_quantized(source, made, samples)
    assert "\n" not in str(caught.value)


def test_nothing_is_written_where_the_quantizer_made_something_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As versions of the quantizer have done, without a word."""
    from compress.precision import quantizing

    source, samples = _save(tmp_path / "m.onnx")
    real = quantizing.quantize_static

    def bad(source: Path, destination: Path, *args: object, **options: object) -> object:
        found = real(source, destination, *args, **options)  # type: ignore[arg-type]  # handed on as they come
        _changed(destination, destination, lambda graph: graph.initializer[0].ClearField("raw_data"))
        return found

    monkeypatch.setattr(quantizing, "quantize_static", bad)
    with pytest.raises(QuantizeError, match=r"the quantized file of m\.onnx"):
        quantize(source, tmp_path / "q.onnx", "int8", samples, "fake")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_conversion_that_changes_what_a_file_computes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, samples = _save(tmp_path / "m.onnx", "plain_cnn-9")

    def wrong(model: onnx.ModelProto, least: int, name: str) -> onnx.ModelProto:
        found = opsets.raised_opset(model, least, name)
        if found is not model:
            weight = next(t for t in found.graph.initializer if len(t.dims) == 4)
            weight.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(weight), weight.name))
        return found

    monkeypatch.setattr(plain_models, "raised_opset", wrong)
    with pytest.raises(QuantizeError, match=r"m.onnx is of opset 9, and cannot be converted to 13 .* export it anew"):
        quantize(source, tmp_path / "q.onnx", "int8", samples, "fake")
    assert not (tmp_path / "q.onnx").exists()


def test_an_opset_that_cannot_be_converted_is_refused_by_name(tmp_path: Path) -> None:
    source, samples = _save(tmp_path / "m.onnx", "plain_cnn-9")
    made = _changed(source, tmp_path / "odd.onnx", lambda graph: setattr(graph.node[1], "op_type", "Ruler"))
    with pytest.raises(QuantizeError, match=r"odd.onnx is of opset 9, 13 is needed, and it cannot be converted"):
        plain_models.read_plain(made, 13)
    assert samples


@pytest.mark.parametrize("name", ["shared_weights-17", "plain_cnn-9", "two_inputs-11"])
def test_without_calibration_samples_are_made_up(tmp_path: Path, name: str) -> None:
    source, _ = _save(tmp_path / "m.onnx", name)
    found = quantize(source, tmp_path / "q.onnx", "fp16", target="fake")
    assert min(found.sqnr.values()) > 60
    samples = made_up_samples(onnx.load(source))
    assert all(x.dtype.kind == ("i" if key == "ids" else "f") for key, x in samples.items())
    assert set(samples.get("ids", np.zeros(0)).flat) <= {0, 1}, "indices that every table has"


def test_where_made_up_samples_do_not_run_that_is_said(tmp_path: Path) -> None:
    g = Graph(17)
    model, _ = g.file(g.add("MatMul", g.input(16), g.weight(16, 16)))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "any"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.warns(UserWarning, match=r"m.onnx: nothing was compared, it does not run on made-up samples"):
        found = quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", "fp16", target="fake")
    assert found.sqnr == {}
    assert found.path.exists()

"""``paretopress check``: does one file do what another does."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console

from compress.commands.check import check_models, print_check
from compress.onnx_files import agreements
from compress.onnx_files.graphs import load_model
from targets.errors import ModelError, RequestError
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import Capabilities


def _model(path: Path, scale: float = 1.0, *, width: int = 3, batch: str | int = "n", kind: str = "MatMul") -> Path:
    """(n, 3) -> (n, width): a product with a fixed matrix, times ``scale``."""
    weight = np.random.default_rng(0).standard_normal((3, width)).astype(np.float32) * scale
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, width])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_a_model_agrees_with_itself(tmp_path: Path) -> None:
    a = _model(tmp_path / "a.onnx")
    found = check_models(a, a, "fake", None)
    assert found["runs"]
    assert found["same_interface"]
    assert found["parity"] == {"max_abs": 0.0, "relative": 0.0, "agreement": 1.0}
    assert (found["size"], found["size_ratio"], found["problem"]) == (a.stat().st_size, 1.0, None)
    json.dumps(found, allow_nan=False)


def test_differences_are_said_in_numbers(tmp_path: Path) -> None:
    a, b, c = (_model(tmp_path / f"{s}.onnx", s) for s in (1.0, 1.5, -1.0))
    found = check_models(b, a, "fake", None)
    assert found["parity"]["relative"] == pytest.approx(0.5, rel=1e-5)
    assert found["parity"]["agreement"] == 1.0
    assert check_models(c, a, "fake", None)["parity"]["agreement"] < 0.5


def test_nan_is_not_lost(tmp_path: Path) -> None:
    a, b = _model(tmp_path / "a.onnx"), _model(tmp_path / "b.onnx", float("nan"))
    parity = check_models(b, a, "fake", None)["parity"]
    assert np.isnan(parity["max_abs"])
    assert parity["agreement"] == 0.0


def _doubled(path: Path, scale: float) -> Path:
    """The same with a second output, ``scale`` times the first."""
    model = onnx.load(_model(path))
    model.graph.node.append(helper.make_node("Mul", ["y", "s"], ["z"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(scale), "s"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3]))
    onnx.save(model, path)
    return path


def test_every_output_counts(tmp_path: Path) -> None:
    a, b, c = (_doubled(tmp_path / f"{s}.onnx", s) for s in (2.0, 3.0, float("nan")))
    assert check_models(b, a, "fake", None)["parity"]["relative"] == pytest.approx(0.5, rel=1e-5)
    assert np.isnan(check_models(c, a, "fake", None)["parity"]["max_abs"])


def test_given_samples_are_used(tmp_path: Path) -> None:
    a, b = _model(tmp_path / "a.onnx"), _model(tmp_path / "b.onnx", 2.0)
    np.savez(tmp_path / "d.npz", x=np.zeros((5, 3), np.float32), labels=np.zeros(5))
    found = check_models(b, a, "fake", tmp_path / "d.npz")
    assert found["samples"] == 5
    assert found["parity"]["max_abs"] == 0.0


def test_a_static_batch_is_no_obstacle(tmp_path: Path) -> None:
    a, b = (_model(tmp_path / f"{s}.onnx", s, batch=1) for s in (1.0, 2.0))
    assert check_models(b, a, "fake", None)["parity"]["relative"] == pytest.approx(1.0, rel=1e-5)


def test_another_interface_is_said_and_not_compared(tmp_path: Path) -> None:
    a, b = _model(tmp_path / "a.onnx"), _model(tmp_path / "b.onnx", width=4)
    found = check_models(b, a, "fake", None)
    assert (found["same_interface"], found["parity"], found["runs"]) == (False, None, False)
    assert found["interface"]["outputs"] == [["y", TensorProto.FLOAT, [4]]]


def test_a_model_the_target_does_not_run_is_said(tmp_path: Path) -> None:
    a, b = _model(tmp_path / "a.onnx"), _model(tmp_path / "b.onnx")
    model = onnx.load(b)
    model.graph.node[0].op_type, model.graph.node[0].domain = "NoSuchOperator", "nowhere"
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    onnx.save(model, b)
    found = check_models(b, a, "fake", None)
    assert not found["runs"]
    assert "NoSuchOperator" in found["problem"]


@pytest.mark.parametrize("write", [lambda p: p.write_text("no"), lambda p: np.savez(p, y=np.zeros(3))])
def test_samples_that_cannot_be_used(tmp_path: Path, write: Any) -> None:
    a = _model(tmp_path / "a.onnx")
    write(tmp_path / "d.npz")
    with pytest.raises(RequestError, match=r"d.npz"):
        check_models(a, a, "fake", tmp_path / "d.npz")


@pytest.mark.parametrize("keep", [0, 1, 0.3, 0.9])
def test_truncated_files_are_model_errors(tmp_path: Path, keep: float) -> None:
    a, b = _model(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    content = a.read_bytes()
    b.write_bytes(content[: int(keep * len(content)) if keep < 1 else 1])
    for pair in ((b, a), (a, b)):
        with pytest.raises(ModelError, match=r"b.onnx' is truncated or not a valid ONNX file") as caught:
            check_models(*pair, "fake", None)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("break_it", [lambda n: n.input.append("w"), lambda n: n.input.__setitem__(0, "undefined")])
def test_files_that_parse_and_make_no_sense_are_model_errors(tmp_path: Path, break_it: Any) -> None:
    a, b = _model(tmp_path / "a.onnx"), _model(tmp_path / "b.onnx")
    model = onnx.load(b)
    break_it(model.graph.node[0])
    onnx.save(model, b)
    with pytest.raises(ModelError, match=r"b.onnx' is truncated or not a valid ONNX file") as caught:
        check_models(b, a, "fake", None)
    assert "\n" not in str(caught.value)


def test_external_data_may_not_leave_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 36)
    model = onnx.load(_model(folder / "a.onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError):
        load_model(folder / "a.onnx")


def test_people_get_the_same(tmp_path: Path) -> None:
    a, b = _model(tmp_path / "a.onnx"), _model(tmp_path / "b.onnx", 1.5)
    out = io.StringIO()
    print_check(check_models(b, a, "fake", None), Console(file=out, width=200))
    assert "runs on fake" in out.getvalue()
    assert "relative 0.5" in out.getvalue()
    out = io.StringIO()
    print_check(check_models(_model(tmp_path / "c.onnx", width=4), a, "fake", None), Console(file=out, width=200))
    assert "inputs or outputs differ" in out.getvalue()


def test_each_output_has_its_own_verdict(tmp_path: Path) -> None:
    a, near, far, broken = (_doubled(tmp_path / f"{s}.onnx", s) for s in (2.0, 2.1, -2.0, float("nan")))
    found = check_models(near, a, "fake", None)
    assert found["agrees"]
    assert [one["name"] for one in found["outputs"]] == ["y", "z"]
    assert found["outputs"][0]["sqnr"] is None  # nothing differs
    assert found["outputs"][1]["sqnr"] == pytest.approx(20 * np.log10(20), abs=0.01)  # a twentieth of the output
    for other in (far, broken):
        found = check_models(other, a, "fake", None)
        assert [one["same"] for one in found["outputs"]] == [True, False]
        assert found["parity"]["agreement"] < 0.5
        assert not found["agrees"]
        out = io.StringIO()
        print_check(found, Console(file=out, width=200))
        assert "output y: agrees" in out.getvalue()
        assert "output z: differs" in out.getvalue()


def test_infinities_in_the_same_place_agree(tmp_path: Path) -> None:
    a = _doubled(tmp_path / "a.onnx", float("inf"))
    found = check_models(a, a, "fake", None)
    assert found["agrees"]
    assert found["parity"]["max_abs"] == 0.0


@pytest.mark.parametrize(("equal", "same"), [(9, True), (8, False)])
def test_whole_numbers_are_equal_or_not(equal: int, same: bool) -> None:
    reference = np.arange(10)
    (found,) = agreements.compare(["class"], [reference], [np.where(reference < equal, reference, -1)])
    assert (found.agreement, found.sqnr, found.same) == (equal / 10, None, same)


def test_scores_on_a_large_offset_must_still_decide_alike() -> None:
    scores = 100 + np.random.default_rng(0).standard_normal((50, 5))
    (found,) = agreements.compare(["scores"], [scores], [200 - scores])
    assert found.sqnr is not None
    assert found.sqnr > agreements.LEAST_SQNR
    assert not found.same


@pytest.mark.parametrize(("scale", "same"), [(1.5, True), (0.5, True), (2.5, False), (-1.0, False)])
def test_scores_that_decide_alike_may_differ_by_less_than_they_are(scale: float, same: bool) -> None:
    scores = np.random.default_rng(0).standard_normal((50, 5))
    (found,) = agreements.compare(["scores"], [scores], [scale * scores])
    (other,) = agreements.compare(["numbers"], [scores[:, :1]], [scale * scores[:, :1]])
    assert (found.same, other.same) == (same, False)


def _noise(share: float, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and others that decide alike on that share of 200 samples and are unrelated and larger on the rest."""
    draw = np.random.default_rng(0)
    scores = draw.standard_normal((200, classes))
    other = 3 * np.roll(scores, 1, axis=1)
    other[: int(200 * share)] = 3 * scores[: int(200 * share)]
    return scores, other


@pytest.mark.parametrize(("share", "related"), [(0.3, True), (0.05, False)])
def test_on_random_samples_only_what_is_unrelated_differs(share: float, related: bool) -> None:
    scores, other = _noise(share)
    assert agreements.compare(["scores"], [scores], [other], real=False)[0].same == related
    assert not agreements.compare(["scores"], [scores], [other], real=True)[0].same
    decisions, others = scores.argmax(1), other.argmax(1)
    assert agreements.compare(["class"], [decisions], [others], real=False)[0].same == related
    assert not agreements.compare(["class"], [decisions], [others], real=True)[0].same
    other[0, 0] = np.nan
    assert not agreements.compare(["scores"], [scores], [other], real=False)[0].same


def test_text_is_equal_or_not() -> None:
    (found,) = agreements.compare(["word"], [np.array(["a", "b"])], [np.array(["a", "c"])])
    assert (found.agreement, found.same) == (0.5, False)


def test_operators_the_target_lacks_are_named(tmp_path: Path) -> None:
    a = _doubled(tmp_path / "a.onnx", 2.0)
    place = FakeTarget(capabilities=Capabilities(lacks=("Mul", "Conv")))
    found = check_models(a, a, place, None)
    assert found["lacks"] == ["Mul"]
    out = io.StringIO()
    print_check(found, Console(file=out, width=200))
    assert "operators that fake lacks: Mul" in out.getvalue()


def _renamed(path: Path, name: str) -> Path:
    model = onnx.load(_model(path))
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a[/b]", "a[/b]"), ("[red]x", "[red]x"), ("x\npicked: all", "x\\npicked: all"), ("x\x1b[2J", "x\\x1b[2J")],
)
def test_names_are_shown_as_they_are_and_do_nothing(tmp_path: Path, name: str, shown: str) -> None:
    a, b = _model(tmp_path / "a.onnx"), _renamed(tmp_path / "b.onnx", name)
    out = io.StringIO()
    print_check(check_models(b, a, "fake", None), Console(file=out, width=400))
    assert shown.replace("\\", "\\\\") in out.getvalue() or shown in out.getvalue()
    assert len(out.getvalue().splitlines()) == 2
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(("dims", "samples"), [([10**6], 50), ([3 * 10**5, 1000], None), ([4], 64)])
def test_samples_are_made_up_within_reason(tmp_path: Path, dims: list[int], samples: int | None) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *dims])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *dims])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    place = FakeTarget(run=lambda _, inputs: [next(iter(inputs.values()))[:1, :1]])
    if samples is None:
        with pytest.raises(ModelError, match=r"1\.2 GB a sample"):
            check_models(path, path, place, None)
    else:
        assert check_models(path, path, place, None)["samples"] == samples

"""A bench of several models on several targets: its document, its shapes, and the warnings that name the cure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import targets
from targets.benches import advice, bench_results, benching
from targets.benches.advice import short_names
from targets.benches.comparing import CAREFUL
from targets.errors import MeasurementError, ModelError, RequestError, TargetError
from targets.machine import environment
from targets.model_files.onnx_files import FileFacts, FileInput
from targets.target import Layer, Measurement
from targets.testing import QUICK, reference_model


class Staged(targets.FakeTarget):
    """A fake whose measurements are changed by ``change``, and whose audit is ``layers`` (or raises it)."""

    def __init__(self, *arguments: Any, change: Any = None, layers: Any = None, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.change, self.layers = change, layers

    def measure(self, models: Sequence[Path], **named: Any) -> list[Measurement]:
        found = super().measure(models, **named)
        return [self.change(one) for one in found] if self.change else found

    def audit(self, model: Path) -> tuple[Layer, ...] | None:  # noqa: ARG002
        if isinstance(self.layers, Exception):
            raise self.layers
        return self.layers


@pytest.fixture
def paths(tmp_path):
    return [reference_model(tmp_path / f"{name}.onnx", seed=number) for number, name in enumerate("abc")]


@pytest.fixture
def quantized(tmp_path):
    """A file that looks quantized."""
    return model(tmp_path / "q.onnx", {"x": (TensorProto.FLOAT, [1, 4])}, "DequantizeLinear")


def model(path: Path, inputs: dict[str, tuple[int, Any]], operator: str = "Identity", kind: int = TensorProto.FLOAT):
    """A file with these inputs (element type, shape), of which the first goes through ``operator``."""
    made = [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()]
    first, (first_kind, shape) = next(iter(inputs.items()))
    extra, weights = [], []
    if operator == "DequantizeLinear":
        weights = [numpy_helper.from_array(np.int8([1, 2]), "w"), numpy_helper.from_array(np.float32(0.1), "s")]
        extra = [helper.make_node("DequantizeLinear", ["w", "s"], ["unused"])]
        operator = "Identity"
    kind = first_kind if operator == "Identity" else kind
    nodes = [*extra, helper.make_node(operator, [first], ["y"])]
    graph = helper.make_graph(nodes, "g", made, [helper.make_tensor_value_info("y", kind, shape)], weights)
    document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(document.SerializeToString())
    return path


COST = {"a.onnx": 100e-6, "b.onnx": 53e-6, "c.onnx": 98e-6, "q.onnx": 120e-6}


def quiet(found: bench_results.Bench) -> list[str]:
    """The warnings without that of the machine the test runs on."""
    return [text for text in advice.warnings(found) if "governor" not in text]


def test_the_document_has_an_entry_for_every_model_on_every_target(paths):
    fakes = [targets.FakeTarget(name, cost=COST) for name in ("one", "two")]
    found = benching.bench(paths, fakes)
    document = json.loads(json.dumps(found.to_json()))
    assert list(document) == ["schema", "environment", "targets", "asked", "results", "warnings"]
    assert [(one["target"], one["path"]) for one in document["results"]] == [
        (target, str(path)) for target in ("one", "two") for path in paths
    ]
    assert [one["tied"] for one in document["results"][:3]] == [False, False, True]
    assert document["targets"]["two"] == {**fakes[1].describe(), "now": {}}
    assert "samples" not in document["results"][0]
    full = found.to_json(samples=True)["results"][1]
    assert len(full["samples"]) == CAREFUL.processes
    assert full["fastest"] == [pytest.approx(53e-6)] * 3
    assert quiet(found) == []


def test_targets_are_checked_before_anything_is_measured(paths):
    fake = targets.FakeTarget(cost=COST)
    with pytest.raises(TargetError, match="unknown target 'elsewhere'"):
        benching.bench(paths, [fake, "elsewhere"])
    with pytest.raises(RequestError, match="target 'fake' is given 2 times"):
        benching.bench(paths, [fake, targets.FakeTarget(cost=COST)])
    with pytest.raises(ModelError, match=r"missing\.onnx: no such file"):
        benching.bench([*paths, "missing.onnx"], [fake])
    with pytest.raises(ModelError, match="no model"):
        benching.bench([], [fake])
    assert fake.calls == []


# -- warnings


def test_equal_files_are_said(paths, tmp_path):
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(paths[0].read_bytes())
    fake = targets.FakeTarget(cost=lambda _: 1e-3)
    [text] = quiet(benching.bench([paths[0], copy, paths[1]], [fake]))
    assert text.startswith("a.onnx and copy.onnx are the same file, byte for byte")
    [text] = quiet(benching.bench([paths[0], paths[0]], [fake]))
    assert text.startswith("a.onnx is given 2 times")


def test_an_interval_that_stayed_wide_comes_with_the_time_it_takes(paths):
    def wide(one: Measurement) -> Measurement:
        assert one.latency is not None
        latency = replace(one.latency, low=one.latency.ratio * 0.985, high=one.latency.ratio * 1.015)
        return replace(one, latency=latency, settled=one.path.name != "b.onnx")

    found = benching.bench(paths[:2], [Staged(cost=COST, change=wide)])
    slow = replace(found, found=(replace(found.found[0], seconds=20.0),))
    assert quiet(slow) == ["fake: b.onnx is known within ±1.5 % only, not ±1 %: --time 50s would likely do"]


def test_contention_is_said_with_its_share_and_then_time_is_no_cure(paths):
    def busy(one: Measurement) -> Measurement:
        shares = (1.0, 0.5, 1.0, 1.0, 0.6, 1.0, 1.0, 1.0, 1.0, 1.0)
        return replace(one, settled=False, samples=tuple(replace(part, cpu=shares) for part in one.samples))

    contention, interval = quiet(benching.bench(paths[:1], [Staged(cost=COST, change=busy)]))
    assert "something else held up or slowed this CPU in 20 % of the rounds" in contention
    assert "close other programs" in contention
    assert "a quieter machine would help" in interval


def test_too_few_processes_are_said(paths):
    found = benching.bench(paths[:2], [Staged(cost=COST, change=lambda one: replace(one, samples=one.samples[:2]))])
    slow = replace(found, found=(replace(found.found[0], seconds=40.0),))
    assert quiet(slow) == [
        "fake: only 2 of 5 processes fitted into the time, intervals are wide: --time 2min would likely do"
    ]


@pytest.mark.parametrize(("seconds", "said"), [(120e-6, True), (102e-6, False), (50e-6, False)])
def test_int8_that_is_slower_than_float_is_said(paths, quantized, seconds, said):
    fake = Staged(cost={**COST, "q.onnx": seconds})
    texts = quiet(benching.bench([paths[0], quantized], [fake]))
    assert [text for text in texts if "ship the float one" in text] == texts
    assert bool(texts) == said
    if said:
        assert texts[0].startswith("q.onnx is int8 and takes 1.20x [1.20, 1.20] the time of a.onnx")


LAYERS = tuple(Layer(str(number), "Conv", number == 0, "" if number == 0 else "no s8 kernel") for number in range(9))


@pytest.mark.parametrize(
    ("layers", "counted", "said"),
    [
        (LAYERS, {"integer": 1, "layers": 9}, True),
        (LAYERS[:1], {"integer": 1, "layers": 1}, False),
        (None, None, False),
        (MeasurementError("crashed"), None, False),
    ],
)
def test_audits_show_how_much_of_an_int8_file_runs_in_integers(paths, quantized, layers, counted, said):
    fake = Staged(cost={**COST, "q.onnx": 50e-6}, layers=layers)
    found = benching.bench([paths[0], quantized], [fake])
    assert [one["audit"] for one in found.to_json()["results"]] == [None, counted], "floats are not audited"
    expected = (
        "q.onnx: int8 in the file, but only 1 of 9 products run in integers on fake (no s8 kernel): "
        "quantize it for this target"
    )
    assert quiet(found) == ([expected] if said else [])


def test_made_up_integers_and_axes_are_said_unless_somebody_spoke_of_them(tmp_path):
    kinds = {"image": (TensorProto.FLOAT, ["n", 3, "side", "side"]), "ids": (TensorProto.INT64, ["n", "length"])}
    path, fake = model(tmp_path / "m.onnx", kinds), targets.FakeTarget(cost=lambda _: 1e-3)
    axes, lengths, integers = quiet(benching.bench([path, path], [fake]))[1:]
    assert axes == "input image: side of it measured as 1: say the real size, as --shape image=1,3,224,224"
    assert lengths.endswith("length of it measured as 1: say the real size, as --shape ids=1,128")
    assert "integers 0 to 7 were made up" in integers
    shapes = {"image": (1, 3, 8, 8), "ids": (1, 16)}
    assert len(quiet(benching.bench([path], [fake], shapes=shapes))) == 1
    inputs = {"image": np.zeros((1, 3, 8, 8), np.float32), "ids": np.zeros((1, 16), np.int64)}
    assert quiet(benching.bench([path], [fake], inputs=inputs)) == []


@pytest.mark.parametrize(("governor", "said"), [("powersave", True), ("performance", False), (None, False)])
def test_the_governor_is_said_where_times_depend_on_it(paths, monkeypatch, governor, said):
    known = environment.describe_environment()
    monkeypatch.setattr(environment, "describe_environment", lambda: {**known, "governor": governor})
    texts = benching.bench(paths[:1], [targets.FakeTarget(cost=COST)]).warnings
    assert ["governor is powersave" in text for text in texts] == [True] * said
    assert benching.bench(paths[:1], [targets.FakeTarget(cost=COST, instructions=True)]).warnings == []


def test_short_names_tell_files_apart():
    assert short_names([Path("a/x.onnx"), Path("b/y.onnx")]) == ["x.onnx", "y.onnx"]
    assert short_names([Path("r/a/m.onnx"), Path("r/b/m.onnx")]) == ["a/m.onnx", "b/m.onnx"]
    assert short_names([Path("m.onnx"), Path("m.onnx")]) == ["m.onnx", "m.onnx"]
    assert short_names([Path("/m.onnx"), Path("/a/m.onnx")]) == ["/m.onnx", "a/m.onnx"]


# -- shapes


@pytest.mark.parametrize(
    ("texts", "shapes"),
    [
        ((), {}),
        (("x=1,3,224,224",), {"x": (1, 3, 224, 224)}),
        (("1,3,8,8",), {"": (1, 3, 8, 8)}),
        (("a:0=2x3", " b = 4"), {"a:0": (2, 3), "b": (4,)}),
    ],
)
def test_shapes_are_parsed(texts, shapes):
    assert benching.parse_shapes(texts) == shapes


@pytest.mark.parametrize("texts", [("x=",), ("x",), ("x=1,a",), ("x=0,3",), ("=1,3",), ("x=-1",), ("x=1", "x=2")])
def test_shapes_that_are_none_are_said(texts):
    with pytest.raises(RequestError, match="--shape '"):
        benching.parse_shapes(texts)


def facts(*inputs: FileInput) -> FileFacts:
    return FileFacts(inputs, {}, False)


def test_a_shape_without_a_name_is_every_models_only_input():
    one, other = facts(FileInput("x", False, ("n", 3))), facts(FileInput("input", False, ("n", 3)))
    assert benching.fill_shapes([one, other], {"": (1, 3)}) == {"x": (1, 3), "input": (1, 3)}
    two = facts(FileInput("x", False, ("n",)), FileInput("z", False, ("n",)))
    with pytest.raises(RequestError, match=r"--shape 1,3: a model has 2 inputs \(x, z\); say which, as --shape x=1,3"):
        benching.fill_shapes([one, two], {"": (1, 3)})


def test_axes_of_one_symbol_have_one_size():
    axes = ("batch", "length")
    bert = facts(FileInput("ids", True, axes), FileInput("mask", True, axes), FileInput("scale", False, (3,)))
    assert benching.fill_shapes([bert], {"ids": (1, 128)}) == {"ids": (1, 128), "mask": (1, 128)}
    given = {"ids": (1, 128), "mask": (1, 64)}
    assert benching.fill_shapes([bert], given) == given


# -- any file, really run


KINDS: dict[str, tuple[dict[str, tuple[int, Any]], dict[str, tuple[int, ...]]]] = {
    "several inputs": ({"a": (TensorProto.FLOAT, ["n", 3]), "b": (TensorProto.DOUBLE, [2])}, {}),
    "integers": ({"ids": (TensorProto.INT64, ["n", "length"]), "mask": (TensorProto.INT32, ["n", "length"])}, {}),
    "symbols given": ({"ids": (TensorProto.INT64, ["n", "length"])}, {"ids": (1, 9)}),
    "nameless axes": ({"x": (TensorProto.FLOAT, [None, None])}, {"": (1, 5)}),
    "a scalar": ({"x": (TensorProto.FLOAT, [])}, {}),
    "booleans": ({"x": (TensorProto.BOOL, ["n"])}, {}),
    "half": ({"x": (TensorProto.FLOAT16, [1, 4])}, {}),
    "text": ({"x": (TensorProto.STRING, ["n"])}, {}),
    "a static batch": ({"x": (TensorProto.FLOAT, [8, 3])}, {}),
}


def test_files_of_all_kinds_are_timed(tmp_path):
    for number, (kind, (inputs, shapes)) in enumerate(KINDS.items()):
        path = model(tmp_path / f"{number}.onnx", inputs)
        found = benching.bench([path], shapes=shapes, protocol=QUICK)
        [entry] = found.to_json()["results"]
        assert entry["p50"] > 0, kind
        assert entry["load_s"] > 0, kind


def test_a_sequence_is_refused_with_its_type(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("xs", TensorProto.FLOAT, ["n"])
    output = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    graph = helper.make_graph([helper.make_node("SequenceLength", ["xs"], ["y"])], "g", [sequence], [output])
    path = tmp_path / "s.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    with pytest.raises(ModelError, match=r"s\.onnx: input 'xs' has type seq\(tensor\(float\)\)"):
        benching.bench([path], protocol=QUICK)


def test_a_model_that_does_not_run_with_axes_of_1_says_what_to_give(tmp_path):
    path = tmp_path / "conv.onnx"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "side", "side"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, "out", "out"])]
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    weights = [numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")]
    graph = helper.make_graph([node], "g", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    with pytest.raises(ModelError, match=r"side were taken as 1: give --shape x=1,1,224,224"):
        benching.bench([path], protocol=QUICK)
    found = benching.bench([path], shapes={"": (1, 1, 8, 8)}, protocol=QUICK)
    assert found.to_json()["asked"]["shapes"] == {"x": [1, 1, 8, 8]}

"""Comparing models: ratios, ties, and the entries of `bench --json`."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

import targets
from targets.benches.comparing import CAREFUL, Comparison, Ratio, careful, disturbed, fastest
from targets.errors import ModelError, RequestError
from targets.testing import QUICK, reference_model


@pytest.fixture
def paths(tmp_path):
    return [reference_model(tmp_path / f"{name}.onnx") for name in "abc"]


@pytest.fixture
def comparison(paths):
    fake = targets.FakeTarget(cost={"a.onnx": 100e-6, "b.onnx": 53e-6, "c.onnx": 98e-6})
    return targets.compare(paths, target=fake)


def test_ratios_are_to_the_first_model(comparison, paths):
    assert float(comparison.ratio(paths[1])) == pytest.approx(0.53)
    assert str(comparison.ratio(paths[1])) == "0.53x [0.53, 0.53]"
    assert comparison.ratio("b.onnx") == comparison.ratio(str(paths[1])) == comparison.ratio(paths[1])
    assert comparison.ratio(paths[0]) == Ratio(1.0, 1.0, 1.0)


def test_small_differences_are_ties(comparison, paths):
    assert [comparison.tied(path) for path in paths] == [True, False, True]
    assert Ratio(0.9, 0.7, 1.1).tied
    assert not Ratio(0.9, 0.88, 0.92).tied


def test_a_path_that_was_not_compared_is_refused(comparison):
    with pytest.raises(ModelError, match=r"z\.onnx was not compared"):
        comparison.ratio("z.onnx")


def test_entries_are_those_of_bench_json(comparison, paths):
    entries = json.loads(json.dumps(comparison.to_json()))
    assert [entry["path"] for entry in entries] == [str(path) for path in paths]
    promised = "target path p50 p95 ratio low high runs load first memory instructions size"
    ours = "load_s processes settled tied disturbed fastest"
    assert set(entries[0]) == {*promised.split(), *ours.split()}
    assert [entry["tied"] for entry in entries] == [False, False, True]
    assert entries[1]["load_s"] == pytest.approx(1e-3)
    assert entries[1]["fastest"] == [pytest.approx(53e-6)] * 3
    assert entries[1]["p50"] == pytest.approx(53e-6)
    assert entries[1]["size"] == paths[1].stat().st_size


def test_counted_costs_compare_too(paths):
    fake = targets.FakeTarget(instructions=True, cost={"a.onnx": 2e-6, "b.onnx": 1e-6})
    found = targets.compare(paths[:2], target=fake)
    assert found.ratio("b.onnx") == Ratio(0.5, 0.5, 0.5)
    assert found.to_json()[1]["p50"] is None
    assert found.to_json()[1]["instructions"] == 1000


def test_the_same_file_twice_is_measured_twice(paths):
    found = targets.compare([paths[0], paths[0]], target="ort-cpu", protocol=QUICK)
    assert len(found.measurements) == len(found.to_json()) == 2
    assert found.measurements[1].samples != found.measurements[0].samples


def test_a_single_path_needs_no_list(paths):
    fake = targets.FakeTarget()
    for one in (paths[0], str(paths[0])):
        assert [measured.path for measured in targets.compare(one, target=fake).measurements] == [paths[0]]


@pytest.fixture
def broken(tmp_path, paths):
    whole = paths[0].read_bytes()
    (tmp_path / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.onnx").write_bytes(whole[:-3])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "picture.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10)
    (tmp_path / "folder.onnx").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.onnx", "no such file"),
        ("a.onnx/b.onnx", "no such file"),
        ("folder.onnx", "not a file"),
        ("truncated.onnx", "truncated or not an ONNX file"),
        ("cut.onnx", "truncated or not an ONNX file"),
        ("empty.onnx", "truncated or not an ONNX file"),
        ("picture.onnx", "truncated or not an ONNX file"),
    ],
)
def test_what_is_no_model_is_said_in_one_line(broken, paths, name, said):
    for order in ([paths[0], broken / name], [broken / name, paths[0]]):
        with pytest.raises(ModelError) as caught:
            targets.compare(order, protocol=QUICK)
        assert str(broken / name) in str(caught.value)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def sum_model(path, dtype):
    """y = a + b, both (n, 3)."""
    onnx = pytest.importorskip("onnx")
    values = {name: onnx.helper.make_tensor_value_info(name, dtype, ["n", 3]) for name in "aby"}
    node = onnx.helper.make_node("Add", ["a", "b"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [values["a"], values["b"]], [values["y"]])
    opsets = [onnx.helper.make_opsetid("", 17)]
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


def test_models_of_all_shapes_and_types_are_compared(tmp_path, paths):
    from onnx import TensorProto

    models = [
        sum_model(tmp_path / "two.onnx", TensorProto.FLOAT),
        sum_model(tmp_path / "integers.onnx", TensorProto.INT64),
        reference_model(tmp_path / "one.onnx", batch=1),
        reference_model(tmp_path / "eight.onnx", batch=8),
        paths[0],
    ]
    found = targets.compare(models, protocol=QUICK)
    assert [entry["path"] for entry in found.to_json()] == [str(path) for path in models]
    assert all(entry["p50"] > 0 and entry["ratio"] > 0 for entry in found.to_json())


def test_careful_is_the_default(paths):
    fake = targets.FakeTarget()
    assert len(targets.compare(paths, target=fake).measurements[1].samples) == 5


def test_careful_narrows_until_the_width_or_the_time_that_was_asked_for():
    assert careful() == CAREFUL
    assert careful(width=0.005) == replace(CAREFUL, width=0.005)
    short, long = careful(seconds=2), careful(seconds=600)
    assert (short.total, long.total) == (2, 600)
    assert short.processes * (short.seconds + short.warmup) < 2
    assert long.seconds == CAREFUL.seconds
    assert long.most > CAREFUL.most
    for wrong in ({"width": 0.0}, {"width": 0.5}, {"width": math.nan}, {"seconds": 0}, {"seconds": -1}):
        with pytest.raises(RequestError, match="is not allowed"):
            careful(**wrong)


def test_compare_takes_a_width_and_a_time(paths):
    asked = []

    class Told(targets.FakeTarget):
        def measure(self, models, **named):
            asked.append(named["protocol"])
            return super().measure(models, **named)

    targets.compare(paths, Told(), width=0.02, seconds=60)
    targets.compare(paths, Told(), protocol=QUICK)
    assert asked == [careful(0.02, 60), QUICK]


def test_no_process_is_started_once_the_total_is_spent(paths):
    protocol = replace(QUICK, processes=3, most=5, width=1e-9, total=1e-6)
    found = targets.compare(paths[:2], protocol=protocol)
    assert len(found.measurements[1].samples) == 1
    assert not found.measurements[1].settled


def test_watch_hears_of_every_process(paths):
    heard = []
    targets.compare(paths[:2], protocol=replace(QUICK, processes=2), watch=heard.append)
    assert {one.process for one in heard} == {1, 2}
    assert {(one.target, one.processes) for one in heard} == {("ort-cpu", 2)}


def test_disturbed_is_the_share_of_rounds_and_fastest_is_over_processes(comparison):
    [part, *_] = comparison.measurements[0].samples
    parts = [
        replace(part, cpu=(1.0, 0.5, 0.95, 1.0), blocks=(best, best, best, 2 * best), reference=(1.0,) * 4)
        for best in (1.0, 1.5, 1.2)
    ]
    one = replace(comparison.measurements[0], samples=tuple(parts))
    assert disturbed(one) == 0.5, "one round held up, one slowed, of four"
    assert fastest(one) == [1.2, 1.0, 1.5]
    bare = replace(one, samples=())
    assert (disturbed(bare), fastest(bare)) == (0.0, None)


def test_a_target_that_gives_no_cost_is_said(comparison):
    first, second, *_ = (replace(one, latency=None, instructions=None, memory=None) for one in comparison.measurements)
    counted = replace(first, instructions=100)
    assert Comparison((counted, replace(second, instructions=50))).ratio_at(1).value == 0.5
    for reference in (first, counted):
        with pytest.raises(ModelError, match=r"target fake gave neither"):
            Comparison((reference, second)).ratio_at(1)

"""Comparing models: ratios, ties, and the entries of `bench --json`."""

from __future__ import annotations

import json

import pytest

import targets
from targets.comparing import Ratio
from targets.errors import ModelError
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
    keys = "target path p50 p95 ratio low high runs load first memory instructions size"
    assert list(entries[0]) == keys.split()
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
    assert len(found.measurements) == 2
    assert found.measurements[1].samples != found.measurements[0].samples


def test_careful_is_the_default(paths):
    fake = targets.FakeTarget()
    assert len(targets.compare(paths, target=fake).measurements[1].samples) == 5

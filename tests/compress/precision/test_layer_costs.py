"""Which layers stay in float: by what int8 costs each in accuracy and saves in time, both measured."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compress.onnx_files.exporting import export
from compress.precision.layer_costs import Saving, float_order, layer_savings
from compress.precision.quantizer import quantizable_layers
from compress.precision.ranges import collect_ranges
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import Capabilities


def test_error_per_time_saved_decides() -> None:
    """The second layer loses most, but saves a hundred times as much as the first."""
    savings = [Saving(0.01, 0.001), Saving(1.0, 0.001), Saving(0.5, 0.001)]
    assert float_order([1.0, 2.0, 0.5], savings) == (0, 1, 2)
    assert float_order([1.0, 2.0, 0.5], []) == (1, 0, 2)


def test_layers_that_are_faster_in_float_come_first() -> None:
    savings = [Saving(0.3, 0.01), Saving(-0.1, 0.01), Saving(-0.3, 0.01), Saving(-0.02, 0.05)]
    order = float_order([9.0, 1e-6, 1e-7, 1e-3], savings)
    assert order[:2] == (2, 1)
    assert set(order[2:]) == {0, 3}, "within the noise is not faster"


def test_savings_too_small_to_tell_count_as_the_noise() -> None:
    """Neither divides by nothing nor lets chance decide between two layers."""
    assert float_order([2.0, 1.0], [Saving(0.004, 0.01), Saving(0.0, 0.01)]) == (0, 1)
    assert float_order([0.0, 0.0], [Saving(0.0, 0.0), Saving(0.0, 0.0)]) == (0, 1)


def test_an_error_that_is_not_finite_is_the_worst() -> None:
    assert float_order([1.0, None], [Saving(0.1, 0.0), Saving(0.1, 0.0)]) == (1, 0)
    assert float_order([1.0, None], []) == (1, 0)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """Seven layers, the second much larger than the others; its ranges; samples."""
    torch.manual_seed(0)
    widths = [4, 512, 512, 4, 4, 4, 4, 2]
    body = [m for a, b in itertools.pairwise(widths) for m in (torch.nn.Linear(a, b), torch.nn.ReLU())]
    folder = tmp_path_factory.mktemp("deep")
    export(torch.nn.Sequential(*body[:-1]), torch.randn(4, 4), folder / "m.onnx")
    name = onnx.load(folder / "m.onnx").graph.input[0].name
    samples = {name: np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)}
    collect_ranges(folder / "m.onnx", samples, "minmax", folder / "r.json")
    return folder / "m.onnx", folder / "r.json", samples


@pytest.mark.parametrize("counted", [True, False])
def test_what_int8_saves_is_measured_on_the_target(
    deep: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path, counted: bool
) -> None:
    path, ranges, samples = deep
    target = FakeTarget(instructions=counted)
    found = layer_savings(path, ranges, "minmax", samples, Capabilities(), target, tmp_path)
    assert len(found) == len(quantizable_layers(path)) == 7
    largest = max(range(len(found)), key=lambda i: found[i].value)
    assert largest == 1
    assert found[largest].value > 5 * sorted(one.value for one in found)[len(found) // 2]
    assert len(target.calls) == 1
    assert len(target.calls[0][1]) == 8
    again = layer_savings(path, ranges, "minmax", samples, Capabilities(), FakeTarget(instructions=counted), tmp_path)
    assert again == found


def test_layers_beyond_the_most_are_timed_together(
    deep: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target that is slow to load gets fewer files; neighbours share what they save."""
    path, ranges, samples = deep
    monkeypatch.setattr("compress.precision.layer_costs.MOST", 9)
    target = FakeTarget()
    target.slow_to_load = True
    found = layer_savings(path, ranges, "minmax", samples, Capabilities(), target, tmp_path)
    assert len(target.calls[0][1]) == 4
    assert len(found) == len(quantizable_layers(path))
    assert found[0] == found[1]


@pytest.mark.parametrize(("each", "files"), [(0, 8), (200_000_000, 6), (10**12, 4)])
def test_no_more_files_are_timed_at_once_than_have_room(
    deep: tuple[Path, Path, dict[str, np.ndarray]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    each: int,
    files: int,
) -> None:
    """All of them are loaded at the same time: the whole in int8, and one for each layer or some neighbours."""
    path, ranges, samples = deep
    monkeypatch.setattr("compress.precision.layer_costs.grown_by_one", lambda *_: each)
    target = FakeTarget()
    found = layer_savings(path, ranges, "minmax", samples, Capabilities(), target, tmp_path)
    assert len(target.calls[0][1]) == files
    assert len(found) == len(quantizable_layers(path))

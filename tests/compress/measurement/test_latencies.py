"""Latencies are measured once for a structure, whatever its weights, and come back as they were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.measurement.latencies import integer_share, latency_result, measure
from compress.run_folder.caching import Cache
from onnx_models import f32, node, write
from targets.errors import MeasurementError
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import Layer


class Audited(FakeTarget):
    """Shows what it was told of its layers, or fails to."""

    def __init__(self, layers: Any = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.layers = layers

    def audit(self, _: Path) -> Any:
        if isinstance(self.layers, Exception):
            raise self.layers
        return self.layers


def _file(path: Path, width: int = 3) -> Path:
    return write(path, [node("MatMul", "x w")], {"x": f32(2, 6)}, {"w": f32(6, width)})[0]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """The baseline, two of one structure, and one that is narrower."""
    widths = {"baseline": 3, "a": 2, "b": 2, "c": 1}
    return [_file(tmp_path / f"{name}.onnx", width) for name, width in widths.items()]


def _measured(folder: Path, target: FakeTarget, paths: list[Path], device: str = "a board") -> list[dict[str, Any]]:
    return measure(Cache(folder, lambda *_: None), target, device, paths[0], paths[1:], {"x": f32(2, 6)})


def test_a_structure_is_measured_once_on_a_device(tmp_path: Path, paths: list[Path]) -> None:
    target = Audited(cost={"baseline.onnx": 4e-3, "a.onnx": 2e-3, "b.onnx": 9e-3, "c.onnx": 1e-3})
    found = _measured(tmp_path / "cache", target, paths)
    assert target.calls == [("measure", (paths[0], paths[1], paths[3]))]
    assert [latency_result(one).ratio for one in found] == pytest.approx([0.5, 0.5, 0.25])  # type: ignore[union-attr]
    assert _measured(tmp_path / "cache", target, paths) == found
    assert len(target.calls) == 1
    _measured(tmp_path / "cache", target, paths, "another board")
    assert len(target.calls) == 2


def test_files_of_one_structure_are_measured_each_where_weights_act_on_cost(tmp_path: Path, paths: list[Path]) -> None:
    target = FakeTarget(cost={"baseline.onnx": 4e-3, "a.onnx": 2e-3, "b.onnx": 1e-3, "c.onnx": 1e-3}, cycles=True)
    target.cost_by_weights = True
    write(paths[2], [node("MatMul", "x w")], {"x": f32(2, 6)}, {"w": f32(6, 2) + 1})
    found = _measured(tmp_path / "cache", target, paths)
    assert [one["cycles"] for one in found] == [2_000_000, 1_000_000, 1_000_000]


def test_what_is_counted_has_no_latency(tmp_path: Path, paths: list[Path]) -> None:
    [timed, *_] = _measured(tmp_path / "timed", FakeTarget(cost=lambda _: 1e-3), paths)
    found = latency_result(timed)
    assert found is not None
    assert (found.p50, found.ratio, found.settled, found.disturbed) == (1e-3, 1.0, True, 0.0)
    [counted, *_] = _measured(tmp_path / "counted", FakeTarget(cost=lambda _: 1e-3, instructions=True), paths)
    assert latency_result(counted) is None
    assert counted["instructions"] == 10**6


NPU, CPU = Layer("a", "Conv", True, on_npu=True), Layer("b", "Sin", True, "Sin on the CPU", on_npu=False)
INT, FLOAT = Layer("a", "Conv", True, ""), Layer("b", "Conv", False, "its bias is not")


@pytest.mark.parametrize(
    ("layers", "share"),
    [
        (None, None),
        (MeasurementError("crashed"), None),
        ((INT, FLOAT, FLOAT, Layer("c", "Gemm", False, "not fused")), (1, 4, ("its bias is not", "not fused"))),
        ((INT,), (1, 1, ())),
        ((), (0, 0, ())),
        ((NPU, CPU), (1, 2, ("Sin on the CPU",))),
    ],
)
def test_what_a_runtime_shows_of_itself_is_an_extra(tmp_path: Path, paths: list[Path], layers: Any, share: Any) -> None:
    found = integer_share(_measured(tmp_path / "cache", Audited(layers, cost=lambda _: 1e-3), paths)[0])
    assert (None if found is None else (found.integer, found.layers, found.why)) == share

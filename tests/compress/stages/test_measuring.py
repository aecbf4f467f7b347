"""Files that are measured together, and what becomes of those that do not run: none takes another with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compress.precision.schemes import Variant
from compress.stages import measuring
from targets.errors import MeasurementError, TransientError
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import Capabilities

A, B, C = (Path(f"{name}.onnx") for name in "abc")
TARGET: Any = FakeTarget()
NOTHING: Any = None


class Device:
    """Runs files but those that it is told to fail on: alone, or (``together``) several at a time."""

    def __init__(self, *failing: Path, together: bool = False, error: type[Exception] = MeasurementError) -> None:
        self.failing, self.together, self.error = failing, together, error
        self.asked: list[tuple[Path, ...]] = []

    def __call__(self, _: Any, __: Any, paths: Sequence[Path], ___: Any = None) -> list[dict[str, Any]]:
        self.asked.append(tuple(paths))
        wrong = [path for path in paths if path in self.failing]
        if wrong or (self.together and len(paths) > 1):
            raise self.error(f"{(wrong or paths)[0]} crashed")
        return [{"file": path.name} for path in paths]


def _measured(monkeypatch: pytest.MonkeyPatch, device: Device, *paths: Path) -> Any:
    monkeypatch.setattr(measuring, "measure_on", device)
    return measuring.measure_each(NOTHING, TARGET, paths)


def test_files_that_run_are_measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    assert _measured(monkeypatch, device, A, B) == ({A: {"file": "a.onnx"}, B: {"file": "b.onnx"}}, {})
    assert device.asked == [(A, B)]


def test_a_file_that_does_not_run_is_told_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found, failed = _measured(monkeypatch, Device(B), A, B, C)
    assert list(found) == [A, C]
    assert {path: str(error) for path, error in failed.items()} == {B: "b.onnx crashed"}


@pytest.mark.parametrize(
    ("device", "paths", "said", "asked"),
    [
        (Device(A), [A], "a.onnx crashed", 1),
        (Device(A, B), [A, B], "a.onnx crashed", 3),
        # Alone every one of them runs: it was not their fault, and may be tried again.
        (Device(together=True), [A, B], "a.onnx crashed", 3),
        (Device(A, error=TransientError), [B, A], "a.onnx crashed", 1),
    ],
)
def test_what_is_not_the_fault_of_some_files_is_raised(
    monkeypatch: pytest.MonkeyPatch, device: Device, paths: list[Path], said: str, asked: int
) -> None:
    with pytest.raises(device.error, match=said):
        _measured(monkeypatch, device, *paths)
    assert len(device.asked) == asked


def test_a_device_that_goes_while_files_are_tried_alone_is_not_their_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Going(Device):
        def __call__(self, *given: Any) -> list[dict[str, Any]]:
            self.error = MeasurementError if len(self.asked) < 2 else TransientError
            return super().__call__(*given)

    with pytest.raises(TransientError, match=r"b\.onnx crashed"):
        _measured(monkeypatch, Going(B), A, B)


def _variant(name: str) -> Variant:
    return Variant(name, "int8", Capabilities(), ("fake",))


def _scored(monkeypatch: pytest.MonkeyPatch, errors: list[Exception], *files: Path) -> Any:
    """What ``measure_files`` finds where scoring raises ``errors``, one after another, and then works."""

    def score(*_: Any) -> str:
        if errors:
            raise errors.pop(0)
        return "measured"

    monkeypatch.setattr(measuring, "measure_on", Device())
    monkeypatch.setattr(measuring, "scored_on_val", score)
    context: Any = SimpleNamespace(targets=SimpleNamespace(all=[TARGET]), instruments=None)
    found, failed = measuring.measure_files(context, {_variant(path.stem): path for path in files})
    return [variant.name for variant in found], failed


def test_a_score_that_fails_once_is_tried_again_where_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [MeasurementError("first"), MeasurementError("second")]
    assert _scored(monkeypatch, wrong[:1], A, B) == (["a", "b"], [])
    assert _scored(monkeypatch, wrong[:2], A, B) == (["b"], [("a", "fake: second")])
    with pytest.raises(MeasurementError, match="first"):
        _scored(monkeypatch, wrong[:1], A)


def test_a_device_that_is_gone_when_files_are_scored_ends_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = [TransientError("gone"), MeasurementError("not asked")]
    with pytest.raises(TransientError, match="gone"):
        _scored(monkeypatch, errors, A, B)
    assert len(errors) == 1

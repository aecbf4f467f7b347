"""The exporter's table of translations: made once, the same every time, and left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import compress
from compress.onnx_files import translations

registration = pytest.importorskip("torch.onnx._internal.exporter._registration", reason="this torch has another one")


def test_it_is_made_once_and_nobody_adds_to_another_ones() -> None:
    table = registration.ONNXRegistry
    before = table.__dict__["from_torchlib"]
    with translations.kept_translations():
        first, second = table.from_torchlib(opset_version=18), table().from_torchlib(opset_version=18)
        other = table.from_torchlib(opset_version=20)
    assert table.__dict__["from_torchlib"] is before
    fresh = table.from_torchlib(opset_version=18)
    assert first.functions.keys() == fresh.functions.keys()
    target, removed = list(first.functions)[:2]
    assert first.functions[target][0] is second.functions[target][0], "made once"
    first.functions[target].clear()
    first.functions.pop(removed)
    assert second.functions[target]
    assert removed in second.functions
    assert other.opset_version == 20


def test_a_failing_export_leaves_torch_as_it_was() -> None:
    before = registration.ONNXRegistry.__dict__["from_torchlib"]
    with pytest.raises(ZeroDivisionError), translations.kept_translations():
        raise ZeroDivisionError
    assert registration.ONNXRegistry.__dict__["from_torchlib"] is before


def test_a_torch_that_makes_it_otherwise_exports_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(registration, "ONNXRegistry")
    with translations.kept_translations():
        pass
    monkeypatch.undo()
    compress.export(nn.Linear(3, 2).eval(), torch.rand(2, 3), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").exists()

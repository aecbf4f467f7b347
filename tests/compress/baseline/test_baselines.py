"""A baseline that is not the one the run began with is never put in its place."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import compress
from compress.baseline import modules, onnx_baselines
from compress.metrics.metrics import Metric
from compress.networks.weights_files import read_weights, write_weights
from compress.onnx_files import exporting
from compress.onnx_import.importer import NotImportable
from compress.results import Result
from targets.errors import RunError, TaskError

Search = Callable[..., Result]


def test_a_baseline_that_cannot_be_made_again_as_it_was_is_refused(
    search: Search, task: compress.Task, finished: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    folder = tmp_path / "run" / "baseline"
    damaged = (folder / "model.onnx").read_bytes()[:-1]
    (folder / "model.onnx").write_bytes(damaged)
    real = exporting.bind

    def newer(*given: Any) -> onnx.ModelProto:
        model = real(*given)
        model.producer_name = "a newer exporter"
        return model

    monkeypatch.setattr(exporting, "bind", newer)
    said = r"model\.onnx' is damaged or gone, and what is made in its place is another file than the one that was"
    with pytest.raises(RunError, match=said):
        search(trials=6)
    assert (folder / "model.onnx").read_bytes() == damaged
    assert list(folder.glob(".*")) == [], "nothing is left beside it"
    state = read_weights(folder / "weights.pt")
    write_weights({name: 2 * array for name, array in state.items()}, folder / "weights.pt")
    with pytest.raises(
        RunError, match=r"weights\.pt' does not hold the weights the run began with; choose another --out"
    ):
        search(task=replace(task, model=lambda: task.model), trials=6)


def test_a_network_is_exported_for_one_length_alone(search: Search) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Linear(4, 2))
    sets = {
        name: TensorDataset(torch.randn(12, size), torch.arange(12) % 2)
        for name, size in {"train": 6, "val": 5}.items()
    }
    said = (
        r"^input 0 is of shape \(6,\) in train and \(5,\) in val, but an exported network takes one shape: let collate"
    )
    with pytest.raises(TaskError, match=said):
        search(task=compress.Task("lengths", module, **sets), trials=1)


def test_a_full_disk_is_not_taken_for_a_module_that_cannot_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(modules, "_save", full)
    with pytest.raises(OSError, match="No space left"):
        modules.save(nn.Linear(2, 2), tmp_path, whole=True)


def test_data_that_a_file_cannot_be_worked_with_is_named() -> None:
    splits: Any = SimpleNamespace(val=SimpleNamespace(inputs=(1, 2)), train=None)
    onnx_baselines.check_inputs(["a", "b"], splits)
    with pytest.raises(TaskError, match=r"^val gives 2 inputs, the model takes 1 \(a\)$"):
        onnx_baselines.check_inputs(["a"], splits)
    own: Any = SimpleNamespace(metric=Metric("mine", lambda *_: 0.0), loss=None, finetune=None)
    with pytest.raises(NotImportable, match="there is no train split to recover on"):
        onnx_baselines.imported(own, splits, Path("m.onnx"))
    trained: Any = SimpleNamespace(val=splits.val, train=splits.val)
    with pytest.raises(NotImportable, match="metric 'mine' has no usual loss to train with; give the task a loss="):
        onnx_baselines.imported(own, trained, Path("m.onnx"))

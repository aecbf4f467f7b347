"""What belongs to a run: what is given anew is used throughout or refused by name; figures of two are never mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.utils.data import TensorDataset

import compress
from compress.results import Result
from compress.tasks.onnx_tasks import onnx_space, onnx_task
from targets.errors import MeasurementError, RunError
from targets.runtimes.fake.fake_target import FakeTarget

Search = Callable[..., Result]
Content = Callable[[Path], dict[str, str]]


@pytest.fixture
def copied(finished: Result, tmp_path: Path) -> Path:
    """A copy of the finished run, where ``search`` continues it."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return tmp_path / "run"


def forget(folder: Path, *names: str) -> None:
    """Make of a run one of before, which did not say these things of its task."""
    request = json.loads((folder / "run.json").read_text())
    for name in names:
        del request["task"][name]
    (folder / "run.json").write_text(json.dumps(request))


@pytest.mark.parametrize("old", [False, True])
def test_a_module_with_other_weights_is_refused_and_touches_nothing(
    search: Search, task: compress.Task, copied: Path, content: Content, old: bool
) -> None:
    if old:
        forget(copied, "weights", "metric_code")
    model = compress.prune(task.model, task.val.tensors[0][:2], ratio=0.0).module
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    before = content(copied)
    with pytest.raises(RunError, match=r"other weights of the model.*choose another --out"):
        search(task=replace(task, model=model), trials=7)
    after = content(copied)
    touched = {name for name in before if after[name] != before[name]}
    assert touched <= ({"record.jsonl", "run.json"} if old else set())
    assert search(trials=6).report["trials"]["finished"] == 6
    assert json.loads((copied / "run.json").read_text())["task"]["weights"]


def test_a_function_that_makes_the_model_gave_the_run_its_weights(
    search: Search, task: compress.Task, tmp_path: Path
) -> None:
    other = compress.prune(task.model, task.val.tensors[0][:2], ratio=0.0).module
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    first = search(task=replace(task, model=lambda: task.model), trials=1).report["candidates"][0]
    again = search(task=replace(task, model=lambda: other), trials=1).report["candidates"][0]
    assert first["sha256"] == again["sha256"], "it is called once"
    for path in (tmp_path / "run" / "baseline").glob("*.pt"):
        path.unlink()
    with pytest.raises(RunError, match="the model function gave other weights now than when the run began"):
        search(task=replace(task, model=lambda: other), trials=1)
    assert search(task=replace(task, model=lambda: task.model), trials=1).report["trials"]["finished"] == 1


def test_an_onnx_file_of_the_same_graph_with_other_weights_is_refused(exported: Path, tmp_path: Path) -> None:
    file, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    shutil.copyfile(exported, file)
    name = onnx.load(file).graph.input[0].name
    draw = np.random.default_rng(0)
    np.savez(data, **{name: draw.random((60, 1, 8, 8), np.float32), "labels": np.arange(60) % 10})  # type: ignore[arg-type]

    def go() -> Result:
        task = onnx_task(file, data)
        space = replace(onnx_space(task, labelled=True), epochs=1, precision="fp32")
        return compress.search(task, FakeTarget(), trials=1, space=space, out=tmp_path / "run")

    go()
    model = onnx.load(file)
    changed = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    changed.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(changed) * 1.5, changed.name))
    onnx.save(model, file)
    with pytest.raises(RunError, match="other weights of the model"):
        go()
    shutil.copyfile(exported, file)
    assert go().report["trials"]["finished"] == 1


def scaled(task: compress.Task, factor: float, words: str = "") -> compress.Task:
    """The task with a metric of its own; ``words`` change its code and not what it gives."""

    def mine(outputs: Any, labels: Any) -> float:
        return factor * float((outputs.argmax(1) == labels).mean()) + 0.0 * len(words)

    return replace(task, metric=compress.Metric("mine", mine, loss="cross_entropy"))


def test_another_function_for_the_metric_is_refused_unless_it_gives_the_same(
    search: Search, task: compress.Task, tmp_path: Path
) -> None:
    first = search(task=scaled(task, 1.0), trials=1).report
    with pytest.raises(RunError, match=r"another function for the metric 'mine': for baseline on val it gives 0\.4"):
        search(task=scaled(task, 0.5), trials=2)
    forget(tmp_path / "run", "metric_code")
    with pytest.raises(RunError, match="another function for the metric 'mine'"):
        search(task=scaled(task, 0.5), trials=2)
    again = search(task=scaled(task, 1.0, "written anew"), trials=1).report
    assert again["candidates"] == first["candidates"]


@pytest.mark.parametrize("what", ["train", "loss", "optimizer"])
def test_what_networks_are_trained_with_is_used_throughout(search: Search, task: compress.Task, what: str) -> None:
    images, labels = task.train.tensors
    changes: dict[str, dict[str, Any]] = {
        "train": {"train": TensorDataset(images[:200], labels[:200])},
        "loss": {"loss": lambda outputs, labels: 3.0 * torch.nn.functional.cross_entropy(outputs, labels)},
        "optimizer": {"optimizer": lambda parameters, _: torch.optim.SGD(parameters, lr=0.5)},
    }
    space = compress.SearchSpace(epochs=1, l1=0.0, lr=1e-2, prune_ratio=0.5, precision="fp32", distill_weight=0.0)
    first = search(space=space, trials=2).report
    other = search(space=space, task=replace(task, **changes[what]), trials=2).report
    assert other["trials"] == first["trials"]
    trained = [{c["sha256"] for c in report["candidates"][1:]} for report in (first, other)]
    assert not trained[0] & trained[1], "none of the networks that were trained otherwise is left"
    back = search(space=space, trials=2).report
    assert {c["sha256"] for c in back["candidates"][1:]} == trained[0]
    assert back["stages"]["finetune"]["count"] == other["stages"]["finetune"]["count"], "from the cache"


class Machine(FakeTarget):
    """A device with a name of its own, on which everything but the baseline takes ``slower`` times as long."""

    def __init__(self, cpu: str, slower: float, gone: bool = False) -> None:
        super().__init__()
        self.cpu, self.slower, self.gone = cpu, slower, gone

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "machine": {"cpu": self.cpu, "memory": id(self)}}

    def measure(self, models: Any, **options: Any) -> Any:
        if self.gone:
            raise MeasurementError("fake: it does not run here")
        found = super().measure(models, **options)
        return [found[0], *(replace(one, latency=self._slower(one.latency)) for one in found[1:])]

    def _slower(self, latency: Any) -> Any:
        return replace(latency, **{name: getattr(latency, name) * self.slower for name in ("ratio", "low", "high")})


def ratios(result: Result) -> dict[str, float]:
    """Candidate -> ratio of its latency."""
    return {c.id: c.latency.ratio for c in result.candidates() if c.id != "baseline" and c.latency is not None}


def test_on_another_machine_everything_is_measured_again(search: Search, tmp_path: Path) -> None:
    first = ratios(search(target=Machine("A", 1.0), trials=2))
    assert ratios(search(target=Machine("A", 1.0), trials=2)) == first
    assert '"moved"' not in (tmp_path / "run" / "record.jsonl").read_text(), "memory makes no other machine"
    with pytest.raises(MeasurementError):
        search(target=Machine("B", 3.0, gone=True), trials=2)
    assert ratios(compress.open_run(tmp_path / "run")) == first, "until all is measured there, the old figures stand"
    there = search(target=Machine("B", 3.0), trials=3)
    assert {name: ratio for name, ratio in ratios(there).items() if name in first} == {
        name: pytest.approx(3 * ratio) for name, ratio in first.items()
    }
    assert there.report["picks"]["fake"]["fastest"]["read"] == 1, "and the picks are read again"
    back = ratios(search(target=Machine("A", 1.0), trials=3))
    assert {name: back[name] for name in first} == first


def test_what_cannot_be_measured_again_has_no_figures_there(search: Search, tmp_path: Path) -> None:
    before = search(target=Machine("A", 1.0), trials=2)
    lost = before.pick("fastest").id
    shutil.rmtree(tmp_path / "run" / "cache")
    before.pick("fastest").path.unlink()
    after = search(target=Machine("B", 3.0), trials=2)
    assert lost not in ratios(after)
    assert all(ratio == pytest.approx(3 * ratios(before)[name]) for name, ratio in ratios(after).items())

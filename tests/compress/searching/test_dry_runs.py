"""``--dry-run``: what would be searched; nothing is trained, nothing is written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console
from torch import nn

import compress
from compress.reports import plans
from compress.results import Result
from compress.searching import dry_runs
from compress.searching.requests import Asked, resolved
from compress.tasks.loading import LoadedTask, load_task
from compress.training import finetuning, training_modes
from targets.errors import RequestError, RunError
from targets.testing import reference_model

Content = Callable[[Path], dict[str, str]]
ASK = "not asked for; name it in the precision of the space"


@pytest.fixture
def asked(
    quick: None,  # noqa: ARG001
    task: compress.Task, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, Any]]:  # fmt: skip
    """``plan`` of the tiny task; ``task`` and ``space`` replace what its file would bring."""

    # Timed on one core: others may be busy.
    monkeypatch.setattr(training_modes.os, "sched_getaffinity", lambda _: {0}, raising=False)

    def plan(**options: Any) -> dict[str, Any]:
        loaded = LoadedTask(options.pop("task", task), options.pop("space", tiny.SPACE))
        given = {"target": "fake", "out": tmp_path / "run", "space": loaded.space, "brought": loaded, **options}
        return dry_runs.plan(Asked(loaded.task, **given))

    return plan


def test_a_plan_says_what_is_prunable_what_is_searched_and_how_long_it_takes(
    asked: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = asked()
    assert json.loads(json.dumps(found)) == found
    assert [(name, channels) for name, channels, _ in found["prunable"]] == [("0", 16), ("3", 32), ("6", 32)]
    assert ["11", "output layer"] in found["kept"]
    assert found["targets"] == {
        "fake": {
            "precisions": ["fp32", "int8", "mixed", "int8-dynamic"], "int8_format": "u8s8",
            "left_out": [
                ["int8-qat", "qat_epochs is 0 in the space"],
                *([one, ASK] for one in ("fp16", "int8-weights", "int4-weights")),
            ],
            "channel_step": 8, "int8_step": 8, "opset": 23, "ir_version": 11,
        }
    }  # fmt: skip
    assert {"prune_ratio", "prune_delta.0", "epochs", "precision"} <= set(found["dimensions"])
    assert "l1" not in found["dimensions"], "fixed in the task file"
    assert found["parameters"] > 14_000
    assert found["macs"] > 200_000
    assert 0 < found["trial_seconds"] < 60
    assert found["constraints"] == ["quality_drop<=0.01"]
    assert not (tmp_path / "run").exists()


def test_a_plan_trains_nothing(
    asked: Callable[..., dict[str, Any]], task: compress.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "finetune", lambda *_: pytest.fail("trained"))
    calls: list[bool] = []

    def model(trained: bool = True) -> Any:
        calls.append(trained)
        return task.model

    asked(task=replace(task, model=model))
    assert calls == [False], "a function that can leave out the training is asked to"


def test_longer_training_takes_longer(asked: Callable[..., dict[str, Any]], tiny: Any) -> None:
    short = asked(space=replace(tiny.SPACE, epochs=1))["trial_seconds"]
    for epochs in (compress.Int(1, 2000), compress.Choice(1, 2000), 2000):
        assert asked(space=replace(tiny.SPACE, epochs=epochs))["trial_seconds"] > short
    assert asked(space=replace(tiny.SPACE, batch_size=compress.Choice(32, 64)))["trial_seconds"] > 0


def test_warnings_about_the_data_are_in_it(asked: Callable[..., dict[str, Any]], task: compress.Task) -> None:
    assert any("no test split" in text for text in asked(task=replace(task, test=None))["warnings"])


def test_a_training_loop_of_ones_own_cannot_be_timed(asked: Callable[..., dict[str, Any]], task: compress.Task) -> None:
    assert asked(task=replace(task, finetune=lambda *_: pytest.fail("trained")))["trial_seconds"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials=0"),
        ({"time": "soon"}, "time 'soon'"),
        ({"sampler": "magic"}, "unknown sampler 'magic'"),
        ({"pick": "best"}, "unknown pick 'best'"),
        ({"keep": "none"}, "keep 'none'"),
        ({"workers": "many"}, "workers='many'"),
        ({"seed": -3}, "seed=-3"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"target": "nowhere"}, "unknown target 'nowhere'"),
        ({"objectives": ("quality",)}, "two or more"),
        ({"constraints": ("beauty<=3",)}, "unknown quantity 'beauty'"),
    ],
)
def test_what_a_search_would_refuse_is_refused(
    asked: Callable[..., dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        asked(**options)
    assert message in str(caught.value)


def test_a_run_that_is_there_gives_the_defaults_and_is_not_touched(
    asked: Callable[..., dict[str, Any]], finished: Result, content: Content, task: compress.Task
) -> None:
    before = content(finished.folder)
    found = asked(out=str(finished.folder), target=None)
    assert list(found["targets"]) == ["fake"]
    with pytest.raises(RunError, match=r"another task \(another name"):
        asked(out=str(finished.folder), task=replace(task, name="other"))
    assert content(finished.folder) == before


def _of_file(model: Path, folder: Path) -> dict[str, Any]:
    images = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=images, labels=np.arange(40) % 5)
    loaded = load_task(str(model), str(folder / "data.npz"))
    return dry_runs.plan(Asked(loaded.task, "fake", out=folder / "run", space=loaded.space))


def test_an_onnx_file_is_pruned_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_modes.os, "sched_getaffinity", lambda _: {0}, raising=False)
    found = _of_file(reference_model(tmp_path / "m.onnx"), tmp_path)
    assert found["prunable"] == [["conv", 8, ["conv", "gemm"]]]
    assert found["kept"] == [["gemm", "output layer"]]
    assert found["trial_seconds"] > 0
    assert "prune_ratio" in found["dimensions"]
    assert not (tmp_path / "run").exists()


def test_an_onnx_file_that_cannot_be_pruned_says_why(tmp_path: Path) -> None:
    model = onnx.load(reference_model(tmp_path / "m.onnx"))
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(onnx.helper.make_node("Hardmax", ["scores"], ["y"]))
    onnx.save(model, tmp_path / "m.onnx")
    found = _of_file(tmp_path / "m.onnx", tmp_path)
    assert found["prunable"] == []
    assert found["kept"] == [["(whole model)", "quantized, not pruned: operator Hardmax not covered"]]
    assert found["trial_seconds"] is None
    assert "prune_ratio" not in found["dimensions"]
    assert "warning: m.onnx is quantized, not pruned: operator Hardmax not covered" in printed(found)


def printed(found: dict[str, Any]) -> str:
    file = io.StringIO()
    plans.print_plan(found, Console(file=file, width=500))
    return file.getvalue()


def test_a_plan_is_printed_for_people(asked: Callable[..., dict[str, Any]]) -> None:
    text = printed(asked())
    assert "prunable: 0, 16 channels (cut together with " in text
    assert "left alone: 11: output layer" in text
    assert "a trial with half of the channels takes about " in text
    assert "target fake: runs fp32, int8, mixed, int8-dynamic; int8 in the format u8s8; " in text
    assert "channels in multiples of 8 (in int8 of 8)" in text
    assert f"left out on fake: fp16, int8-weights, int4-weights: {ASK}\n" in text


@pytest.mark.parametrize(("name", "counted"), [("q:heads", "4 heads"), ("q:width", "4 channels in each head")])
def test_a_plan_says_what_a_group_counts(asked: Callable[..., dict[str, Any]], name: str, counted: str) -> None:
    assert f"prunable: {name}, {counted} (cut together with v)" in printed(
        asked() | {"prunable": [[name, 4, [name, "v"]]]}
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another seed": ({"seed": 5}, "begun with seed 0"),
    "a target twice": ({"target": ["fake", "fake"]}, "each may be given once"),
    "an unknown target": ({"target": "abacus"}, "abacus"),
    "one objective": ({"objectives": ["latency"]}, "two or more"),
    "a constraint that is none": ({"constraints": ["speed<=1"]}, "unknown quantity"),
    "no time": ({"time": "0s"}, "time '0s'"),
    "an unknown pick": ({"pick": "best"}, "unknown pick"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_search_refuses_its_dry_run_refuses_in_the_same_words(
    name: str, asked: Callable[..., dict[str, Any]], finished: Result, task: compress.Task, content: Content
) -> None:
    changes, said = REFUSED[name]
    before = content(finished.folder)
    options = {"target": None, "out": finished.folder, "space": None, **changes}
    with pytest.raises(RequestError, match=said) as planned:
        asked(**options)
    with pytest.raises(type(planned.value), match=said) as searched:
        compress.search(task, **options)
    assert str(planned.value) == str(searched.value)
    assert content(finished.folder) == before


def test_a_dry_run_of_another_model_is_refused_as_its_search(
    asked: Callable[..., dict[str, Any]], finished: Result, task: compress.Task
) -> None:
    other = replace(task, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    options = {"target": None, "out": finished.folder}
    with pytest.raises(RunError, match="is the run of another model") as planned:
        asked(**options, task=other)
    with pytest.raises(RunError) as searched:
        compress.search(other, **options)
    assert str(planned.value) == str(searched.value)


def test_a_new_run_begins_with_what_the_task_file_brings_and_an_old_one_goes_on(
    task: compress.Task, finished: Result, tmp_path: Path
) -> None:
    brought = LoadedTask(task, None, ("quality", "size"), ("size<=0.5x",))
    with resolved(Asked(task, "fake", out=tmp_path / "new", brought=brought)) as found:
        assert (found.request.objectives, found.request.constraints) == (("quality", "size"), ("size<=0.5x",))
    given = Asked(task, "fake", ["quality", "memory"], ["size<=1x"], out=tmp_path / "new", brought=brought)
    with resolved(given) as found:
        assert (found.request.objectives, found.request.constraints) == (("quality", "memory"), ("size<=1x",))
    with resolved(Asked(task, out=finished.folder, brought=brought)) as found:
        assert found.request.objectives == ("quality", "latency")
        assert found.request.constraints == ("quality_drop<=0.01",)
        assert found.request.targets == ("fake",)
    assert not (tmp_path / "new").exists()

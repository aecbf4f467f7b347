"""Requests that are wrong: each is status 2 and one clear line, and nothing of the user's is touched."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import commands
from commands import TASK_FILE, Done, task_file
from compress.run_folder.records import Record
from targets.errors import TargetUnavailable

command, run = commands.command, commands.run
Command = Callable[..., Any]
Content = Callable[[Path], dict[str, str]]


def see_refused(done: Done, *said: str) -> None:
    """Status 2, nothing on stdout, and one line that says it."""
    assert (done.status, done.out) == (2, "")
    assert all(text in done.line for text in said), done.line


# -- task files and data


WRONG_TASKS: dict[str, tuple[str, str]] = {
    "no task()": ("x = 1\n", "has no function task()"),
    "raises at import": ("import compress\n\nraise ValueError('no disk')\n", "ValueError: no disk"),
    "raises in task()": ("def task():\n    x = {}\n    return x['data']\n", "wrong.py:3)"),
    "does not parse": ("def task(:\n", "wrong.py:1)"),
    "returns nothing": ("def task():\n    pass\n", "returned NoneType, not a compress.Task"),
}


@pytest.mark.parametrize("name", WRONG_TASKS)
def test_a_task_file_that_is_wrong_is_said_in_one_line(
    command: Command, run: Path, tmp_path: Path, content: Content, name: str
) -> None:
    text, message = WRONG_TASKS[name]
    (tmp_path / "wrong.py").write_text(text)
    before = content(run)
    for options in (("--out", run), ("--dry-run",), ("--out", "fresh")):
        done = command("search", "wrong.py", "--target", "fake", *options)
        see_refused(done, message, "wrong.py")
    assert content(run) == before
    assert not (tmp_path / "fresh").exists()


WRONG_DATA: dict[str, tuple[str, str]] = {
    "empty train": ("'train': Subset(sets['train'], [])", "train is empty"),
    "empty val": ("'val': Subset(sets['val'], [])", "val is empty"),
    "one class": ("'val': TensorDataset(sets['val'].tensors[0], torch.ones(400, dtype=torch.long))", "of one class"),
    "no val": ("'val': None", "val is None"),
    "NaN": ("'test': TensorDataset(sets['test'].tensors[0] * float('nan'), sets['test'].tensors[1])", "NaN"),
    "a bad name": ("'name': '../elsewhere'", "task name '../elsewhere'"),
    "unknown metric": ("'metric': 'beauty'", "unknown metric 'beauty'"),
    "no parameters": ("'model': torch.nn.Flatten()", "has no parameters"),
    "not a module": ("'model': lambda: 3", "returned int, not an nn.Module"),
    "slices": ("'slices': {'who': [1, 2]}", "slices['who'] has 2 labels, test has 497 examples"),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_data_that_cannot_be_used_is_said_in_one_line(
    command: Command, run: Path, tmp_path: Path, content: Content, name: str
) -> None:
    changes, message = WRONG_DATA[name]
    file = task_file(tmp_path / "wrong.py", changes)
    before = content(run)
    if name not in ("no parameters", "not a module"):  # a continued run has its model already
        done = command("search", file, "--out", run, "--trials", 7)
        see_refused(done, message)
        assert content(run) == before
    done = command("search", file, "--target", "fake", "--trials", 1, "--out", "fresh")
    see_refused(done, message)
    assert not (tmp_path / "fresh").exists()


WRONG_OPTIONS: dict[str, tuple[tuple[object, ...], str]] = {
    "constraint": (("--constraint", "small please"), "constraint 'small please' is not QUANTITY<=NUMBER[UNIT]"),
    "quantity": (("--constraint", "beauty<=3"), "unknown quantity 'beauty'"),
    "unit": (("--constraint", "latency<=3kg"), "kg unit does not fit latency"),
    "objective": (("--objective", "quality", "--objective", "beauty"), "unknown objective 'beauty'"),
    "one objective": (("--objective", "quality"), "two or more"),
    "target": (("--target", "fakke"), "unknown target 'fakke', did you mean 'fake'?"),
    "target setting": (("--target", "ort-cpu:thread=2"), "has no setting 'thread'; it takes "),
    "target value": (("--target", "ort-cpu:threads=many"), "threads=many is not allowed"),
    "target form": (("--target", "ort-cpu:threads"), "is not KEY=VALUE"),
    "sampler": (("--sampler", "magic"), "unknown sampler 'magic'; use one of auto, gp, tpe, nsga2, random, grid"),
    "pick": (("--pick", "best"), "unknown pick 'best'; use one of fastest, knee"),
    "keep": (("--keep", "nothing"), "keep 'nothing': use 'all' or 'front'"),
    "time": (("--time", "soon"), "time 'soon' is not a duration; write 90s, 10min or 1h"),
    "trials": (("--trials", 0), "trials=0: a whole number, at least 1"),
    "workers": (("--workers", 0), "workers=0: a whole number, at least 1, is needed, or 'auto'"),
    "device": (("--device", "tpu"), "device 'tpu' cannot be used"),
    "seed": (("--seed", 1), "the run was begun with seed 0; continue it with that, or choose another --out"),
    "data": (("--data", "x.zip"), "--data 'x.zip': task() of"),
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_an_option_that_is_wrong_is_said_in_one_line(command: Command, run: Path, content: Content, name: str) -> None:
    options, message = WRONG_OPTIONS[name]
    before = content(run)
    done = command("search", TASK_FILE, "--out", run, *options)
    see_refused(done, message)
    assert content(run) == before
    if name != "seed":
        planned = command("search", TASK_FILE, "--dry-run", "--out", run, *options)
        see_refused(planned, message)
        assert content(run) == before


def test_a_recipe_that_is_not_there_names_the_nearest(command: Command) -> None:
    done = command("search", "digit")
    assert done.status == 2
    assert "no task 'digit': did you mean 'digits'?" in done.line


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/paretopress", "folder", "other"])
def test_an_out_that_cannot_be_used_is_said_and_left_alone(
    command: Command, run: Path, tmp_path: Path, content: Content, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    task = TASK_FILE
    if place == "other":
        shutil.move(run, tmp_path / "other")
        task = task_file(tmp_path / "theirs.py", "'name': 'theirs'")
    before = content(tmp_path)
    done = command("search", task, "--target", "fake", "--trials", 1, "--out", place)
    see_refused(done, "--out", place)
    assert content(tmp_path) == before


def test_a_folder_that_another_search_is_using_is_left_alone(command: Command, run: Path, content: Content) -> None:
    record = Record(run / "record.jsonl")
    before = content(run)
    done = command("search", TASK_FILE, "--trials", 7, "--out", run)
    see_refused(done, "is in use by another search")
    assert content(run) == before
    record.close()


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
@pytest.mark.parametrize("name", ["front", "pick", "report"])
def test_what_is_no_run_cannot_be_read(command: Command, tmp_path: Path, name: str, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    done = command(name, place)
    see_refused(done, f"'{place}' is ")


def test_a_place_to_copy_to_that_cannot_be_written_is_said(command: Command, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (("pick", run, "--out", "file/below"), ("report", run, "--out", "file/x.html")):
        done = command(*arguments)
        see_refused(done, "cannot be written: Not a directory; choose another --out")
    assert "pick 'best': use one of fastest" in command("pick", run, "--pick", "best").line
    assert "target 'ort' is not in this run" in command("pick", run, "--target", "ort").line


@pytest.mark.parametrize("broken", ["truncated", "text", "absent"])
def test_a_broken_onnx_file_is_said_in_one_line(command: Command, run: Path, tmp_path: Path, broken: str) -> None:
    whole = run / "baseline" / "model.onnx"
    path = tmp_path / "broken.onnx"
    if broken != "absent":
        path.write_bytes(whole.read_bytes()[:5000] if broken == "truncated" else b"hello, this is not a model")
    np.savez(tmp_path / "data.npz", x=np.zeros((20, 1, 8, 8), np.float32))
    for arguments in (
        ("search", path, "--data", "data.npz", "--target", "fake"),
        ("bench", whole, path, "--target", "fake"),
        ("check", path, "--against", whole, "--target", "fake"),
        ("check", whole, "--against", path, "--target", "fake"),
    ):
        done = command(*arguments)
        assert (done.status, done.out) == (2, ""), arguments
        assert "broken.onnx" in done.line
    assert not (tmp_path / "runs").exists()


def test_a_target_that_is_not_installed_comes_with_the_command_that_installs_it(
    command: Command, run: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    from targets.runtimes.ort.ort_cpu import OrtCpu

    monkeypatch.setattr(OrtCpu, "requires", ("a_module_nobody_has",), raising=False)
    monkeypatch.setattr(OrtCpu, "install", "pip install 'paretopress[ort]'", raising=False)
    before = content(run)
    for arguments in (
        ("search", TASK_FILE, "--out", run, "--target", "ort-cpu"),
        ("bench", run / "baseline" / "model.onnx"),
    ):
        done = command(*arguments)
        see_refused(done, "pip install 'paretopress[ort]'")
    rows = {row["name"]: row for row in command("targets", "--json").json}
    assert not rows["ort-cpu"]["available"]
    assert "pip install" in rows["ort-cpu"]["install"]
    assert issubclass(TargetUnavailable, Exception)
    assert content(run) == before


@pytest.mark.parametrize(
    "arguments", [("--frobnicate",), ("search",), ("search", "x", "--trials", "many"), ("nothing",)]
)
def test_wrong_usage_is_status_2(command: Command, arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert (done.status, done.out) == (2, "")
    assert "Error: " in done.err
    assert "Traceback" not in done.err


def test_what_nobody_expected_is_one_line_and_a_stack_trace_in_a_file(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise BufferError("what\nis this")

    monkeypatch.setattr("compress.reports.reporting.make_report", explode)
    done = command("front", run)
    assert (done.status, done.out) == (1, "")
    assert done.line.startswith("paretopress: BufferError: what; stack trace: ")
    trace = Path(done.line.rpartition("stack trace: ")[2])
    assert "explode" in trace.read_text()
    trace.unlink()


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "pipe"), ("check", "pipe", "--against", "pipe"), ("search", "pipe.onnx", "--data", "pipe"),
        ("bench", "m.onnx", "--target", "fake", "--compare", "pipe"),
        ("bench", "m.onnx", "--target", "fake", "--save", "pipe"),
        ("bench", "m.onnx", "--target", "fake", "--data", "pipe"),
        ("front", "pipe"), ("front", "run"), ("report", "recorded"),
    ],
)  # fmt: skip
def test_a_pipe_is_no_file_and_is_not_waited_for(
    command: Command, tmp_path: Path, exported: Path, arguments: tuple[str, ...]
) -> None:
    shutil.copy(exported, tmp_path / "m.onnx")
    (tmp_path / "run").mkdir()
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "run.json").write_text("{}")
    for name in ("pipe", "pipe.onnx", "run/run.json", "recorded/record.jsonl"):
        os.mkfifo(tmp_path / name)
    done = command(*arguments)
    assert done.status == 2
    assert done.line.startswith("paretopress: ")


@pytest.mark.parametrize("error", [BufferError("what"), asyncio.CancelledError("what")])
def test_without_a_folder_for_the_stack_trace_it_is_one_line_all_the_same(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def explode(*_: object) -> None:
        raise error

    def nowhere(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("compress.reports.reporting.make_report", explode)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", nowhere)
    done = command("front", run)
    assert (done.status, done.out) == (1, "")
    assert done.line == (
        f"paretopress: {type(error).__name__}: what; stack trace: not kept, since no temporary file can be written "
        "(No usable temporary directory found)"
    )


@pytest.mark.parametrize("where", ["before", "task"])
def test_sys_exit_in_a_task_file_is_not_a_search_that_is_done(command: Command, tmp_path: Path, where: str) -> None:
    leave = "import sys; sys.exit(0)"
    file = task_file(tmp_path / "t.py", **({"before": leave} if where == "before" else {"inside": leave}))
    done = command("search", file, "--target", "fake", "--trials", 1)
    assert (done.status, done.out) == (2, "")
    assert "raised SystemExit: 0 (" in done.line

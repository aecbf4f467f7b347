"""A run's folder: what is a run, what is not, and that what is not is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import compress
from compress.run_folder import runs
from compress.run_folder.records import Record
from compress.run_folder.runs import Request, Run, link, reading
from compress.tasks import tasks
from compress.tasks.tasks import TaskIdentity
from compress.values.candidates import Candidate
from compress.values.domains import Choice, Float
from compress.values.search_spaces import SearchSpace
from targets.errors import RunError

Content = Callable[[Path], dict[str, str]]
IDENTITY = TaskIdentity("tiny", "accuracy", "g", "v", "t", {"val": 3, "test": 2})
REQUEST = Request(
    IDENTITY, SearchSpace(prune_ratio=Float(0.1, 0.5), precision=Choice("fp32", "int8"), lr=1e-3),
    ("quality", "latency"), ("quality_drop<=0.01",), ("fake",), 3, "tpe", "knee", {"python": "3"},
)  # fmt: skip


def make_run(folder: Path, request: Request = REQUEST) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, Record(folder / "record.jsonl"), request)
    run.write_request()
    return run


def test_a_request_comes_back_as_it_was_written(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert runs.read_request(tmp_path) == REQUEST


def test_absent_and_empty_folders_may_become_runs(tmp_path: Path) -> None:
    assert runs.read_request(tmp_path) is None
    assert runs.read_request(tmp_path / "absent") is None


def test_what_a_start_leaves_that_was_killed_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").touch()
    (tmp_path / ".probe-17").touch()
    (tmp_path / ".run.json.x1").write_text("{")
    assert runs.read_request(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("thesis.tex", "years of work"),
        ("record.jsonl", '{"event":"call"}\n'),
        ("run.json", ""),
        ("run.json", "{}"),
        ("run.json", "[1]"),
        ("run.json", '{"schema": 1}'),
        ("run.json", '{"schema": 2, "task": null}'),
        ("run.json", "\x00binary"),
    ],
)
def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path: Path, content: Content, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    before = content(tmp_path)
    with pytest.raises(RunError, match="--out") as caught:
        runs.read_request(tmp_path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert content(tmp_path) == before


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="is a file, not a run's folder"):
        runs.read_request(tmp_path / "file")


@pytest.mark.parametrize("where", ["file/below", "/proc/paretopress"])
def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        runs.check_writable(tmp_path / where)


def test_the_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    runs.check_writable(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "other"}, "another name ('tiny', not 'other')"),
        ({"metric": "f1"}, "another metric ('accuracy', not 'f1')"),
        ({"val": "w"}, "another val data"),
        ({"test": None}, "another test data"),
        ({"graph": "h"}, "another model"),
    ],
)
def test_a_run_belongs_to_one_task(changes: dict[str, str | None], why: str) -> None:
    assert tasks.same_task(IDENTITY, IDENTITY) is None
    assert tasks.same_task(IDENTITY, replace(IDENTITY, **changes)) == why


@pytest.mark.parametrize("make", [Path.exists, Path.mkdir, Path.touch])
def test_only_runs_can_be_opened(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "it")
    with pytest.raises(RunError, match=r"is not a run|is a file"):
        compress.open_run(tmp_path / "it")


def test_opening_changes_nothing_also_while_a_search_writes(tmp_path: Path, content: Content) -> None:
    run = make_run(tmp_path)
    run.record.note("blocks", 1)
    before = content(tmp_path)
    opened = runs.open_for_reading(tmp_path)
    assert opened.state.facts.blocks == 1
    assert content(tmp_path) == before


def test_a_run_without_a_measured_baseline_says_so(tmp_path: Path) -> None:
    make_run(tmp_path)
    result = compress.open_run(tmp_path)
    for ask in (
        lambda: result.report,
        lambda: result.front(),
        lambda: result.pick("fastest"),
        lambda: result.study(),
        lambda: result.baseline,
    ):
        with pytest.raises(RunError, match="no measured baseline yet"):
            ask()


def test_only_candidates_with_their_file_are_available(tmp_path: Path, candidate: Callable[..., Candidate]) -> None:
    run = make_run(tmp_path)
    for name in ("0000-fp32", "0001-fp32"):
        run.record.append("candidate", candidate=candidate(name))
    path = run.path("0001-fp32")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"onnx")
    assert [c.id for c in run.available()] == ["0001-fp32"]


def test_linking_replaces_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("new")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    runs.link(tmp_path / "source", tmp_path / "there" / "file")
    assert (tmp_path / "there" / "file").read_text() == "new"
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["file"]


def test_run_json_is_json_with_the_schema(tmp_path: Path) -> None:
    make_run(tmp_path)
    data = json.loads((tmp_path / "run.json").read_text())
    assert (data["schema"], data["seed"], data["pick"]) == (1, 3, "knee")


def test_a_link_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        link(tmp_path / "a", tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "taken"]


@pytest.mark.parametrize("error", [KeyError("targets"), ZeroDivisionError("division by zero"), RecursionError("deep")])
def test_values_that_make_no_sense_are_the_runs_fault(tmp_path: Path, error: Exception) -> None:
    said = rf"holds values that make no sense \({type(error).__name__}: .*\): its run\.json or record\.jsonl is damaged"
    with pytest.raises(RunError, match=said), reading(tmp_path):
        raise error
    with pytest.raises(RunError, match=r"^said already$"), reading(tmp_path):
        raise RunError("said already")

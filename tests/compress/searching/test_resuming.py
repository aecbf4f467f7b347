"""Continuing a run: nothing is repeated, nothing is lost, and what may not change is refused and touches nothing."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import torch
from torch.utils.data import TensorDataset

import compress
from compress.executing import evaluating
from compress.results import Result
from compress.run_folder.records import Record
from compress.searching import trial_loop
from processes import naming
from targets.errors import CompressError, MeasurementError, ModelError, RequestError, RunError
from targets.runtimes.fake import costs
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import Capabilities

Search = Callable[..., Result]
Content = Callable[[Path], dict[str, str]]
TASK_FILE = Path(__file__).parents[1] / "shared" / "tiny_task.py"


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    """What must be the same however often a run was interrupted: not what an earlier pick was read and timed for."""
    names = ("front", "picks", "nearest_miss", "failures", "trials", "targets", "satisfied")
    candidates = copy.deepcopy(report["candidates"])
    picked = {pick["id"] for picks in report["picks"].values() for pick in picks.values() if pick}
    for candidate in candidates:
        for measured in candidate["measured"].values() if candidate["id"] not in picked else ():
            for name in ("quality", "quality_drop"):
                measured[name].pop("test")
                measured[name].pop("classes", None)
            measured["latency"].pop("runs")
    return {**{name: report[name] for name in names}, "candidates": candidates}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The record's events of one kind."""
    lines = (folder / "record.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture
def copied(finished: Result, tmp_path: Path) -> Path:
    """A copy of the finished run, where ``search`` continues it."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return tmp_path / "run"


# -- the same, in pieces


def test_three_trials_and_then_three_more_are_the_same_as_six(search: Search, finished: Result) -> None:
    first = search(trials=3)
    assert first.report["trials"]["finished"] == 3
    counts = first.report["stages"]["finetune"]["count"]
    second = search(trials=6)
    assert numbers(second.report) == numbers(finished.report)
    assert second.report["stages"]["finetune"]["count"] == finished.report["stages"]["finetune"]["count"] > counts
    asked = [event["trial"] for event in events(second.folder, "asked")]
    assert asked == [0, 1, 2, 3, 4, 5]


def test_continuing_a_finished_run_computes_nothing(search: Search, copied: Path) -> None:
    before = json.loads((copied / "report.json").read_text())
    again = search(trials=6).report
    assert numbers(again) == numbers(before)
    for stage in ("finetune", "quantize", "export", "score", "prune"):
        assert again["stages"][stage]["count"] == before["stages"][stage]["count"], stage
    assert again["wall_s"] > before["wall_s"]


def test_a_torn_last_line_is_cut_and_the_trial_is_done_again(search: Search, copied: Path, finished: Result) -> None:
    lines = (copied / "record.jsonl").read_bytes().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if b'"event":"finished"' in line)
    (copied / "record.jsonl").write_bytes(b"".join(lines[:last]) + lines[last][:100])
    before = Record(copied / "record.jsonl", write=False).state
    assert before.trials[5].state == "asked"
    again = search(trials=6)
    assert numbers(again.report) == numbers(finished.report)
    assert [event["trial"] for event in events(copied, "finished")] == [0, 1, 2, 3, 4, 5]
    assert [event["trial"] for event in events(copied, "asked")] == [0, 1, 2, 3, 4, 5], "under the same number"


class Interrupted(FakeTarget):
    """Ctrl-C while the third trial is measured."""

    measured = 0

    def measure(self, models: Any, **options: Any) -> Any:
        self.measured += 1
        if self.measured == 7:
            raise KeyboardInterrupt
        return super().measure(models, **options)


def test_an_interrupted_trial_is_finished_under_its_number(search: Search, finished: Result) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(target=Interrupted(), trials=6)
    result = search(trials=6)
    assert numbers(result.report) == numbers(finished.report)
    assert [event["trial"] for event in events(result.folder, "asked")] == [0, 1, 2, 3, 4, 5]
    assert [event["trial"] for event in events(result.folder, "finished")] == [0, 1, 2, 3, 4, 5]


def test_an_interrupted_run_has_a_report_of_what_is_finished(search: Search, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(target=Interrupted(), trials=6)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["trials"] == {"asked": 3, "finished": 2, "gated": 0, "failed": 0}
    assert {pick["verdict"] for pick in report["picks"]["fake"].values()} == {"open"}
    opened = compress.open_run(tmp_path / "run")
    assert opened.report == report
    assert opened.pick("fastest").path.exists()


def test_a_run_whose_time_was_up_is_finished_by_the_next_call(
    search: Search, finished: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        """Jumps far ahead when the third trial begins to train."""

        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

        def monotonic(self) -> float:
            state["ahead"] += 1e6 if state["late"] else 0.0
            return time.monotonic() + state["ahead"]

    state = {"late": False, "ahead": 0.0}

    def submit(self: Any, trial: Any, **more: Any) -> Any:
        state["late"] = trial.number == 2
        return real(self, trial, **more)

    real = trial_loop.Loop._submit
    monkeypatch.setattr(evaluating, "clock", Clock())
    monkeypatch.setattr(trial_loop.Loop, "_submit", submit)
    result = search(trials=6, time="1h")
    assert result.report["trials"] == {"asked": 3, "finished": 2, "gated": 0, "failed": 0}
    monkeypatch.undo()
    assert numbers(search(trials=6).report) == numbers(finished.report)


# -- what may change


def test_other_constraints_are_judged_anew_without_training(search: Search, copied: Path) -> None:
    before = compress.open_run(copied).report
    loose = search(constraints=["quality_drop<=0.9"], trials=6).report
    assert loose["constraints"] == ["quality_drop<=0.9"]
    assert all(c["measured"]["fake"]["feasible"] for c in loose["candidates"])
    assert len(loose["front"]["fake"]) > len(before["front"]["fake"])
    strict = search(constraints=["size<=1B"], trials=6).report
    assert not any(c["measured"]["fake"]["feasible"] for c in strict["candidates"])
    assert not strict["satisfied"]
    assert not (copied / "best").exists()
    back = search(constraints=["quality_drop<=0.01"], trials=6).report
    assert back["stages"]["finetune"]["count"] == before["stages"]["finetune"]["count"]
    assert back["picks"] == before["picks"]
    assert (copied / "best" / "model.onnx").exists()


def test_what_is_not_given_stays(search: Search, copied: Path, tiny: ModuleType) -> None:
    search(constraints=["quality_drop<=0.5"], sampler="tpe", pick="smallest", trials=6)
    search(target=None, space=None, trials=6)
    request = json.loads((copied / "run.json").read_text())
    assert request["constraints"] == ["quality_drop<=0.5"]
    assert (request["sampler"], request["pick"], request["seed"]) == ("tpe", "smallest", 0)
    assert request["targets"] == ["fake"]
    assert request["space"]["epochs"] == {"low": 1, "high": 2, "log": False, "domain": "Int"}
    assert tiny.SPACE.epochs.high == 2
    manifest = json.loads((copied / "best" / "manifest.json").read_text())
    report = compress.open_run(copied).report
    assert manifest["id"] == report["picks"]["fake"]["smallest"]["id"]


def test_a_sampler_of_ones_own_has_to_be_given_again(search: Search, copied: Path, content: Content) -> None:
    search(sampler=optuna.samplers.RandomSampler(), trials=6)
    before = content(copied)
    with pytest.raises(RequestError, match=r"begun with a sampler of your own \(RandomSampler\): give it again"):
        search(trials=7)
    assert content(copied) == before
    assert search(sampler="random", trials=7).report["trials"]["finished"] == 7


def test_a_second_target_measures_what_is_there_without_training(search: Search, copied: Path) -> None:
    before = compress.open_run(copied).report
    other = FakeTarget("fake2", cost=lambda path: costs.inference_seconds(path, step=16) ** 0.5, channel_step=16)
    report = search(target=[FakeTarget(), other], trials=6).report
    assert report["stages"]["finetune"] == before["stages"]["finetune"]
    assert list(report["targets"]) == ["fake", "fake2"]
    for candidate, old in zip(report["candidates"], before["candidates"], strict=True):
        assert set(candidate["measured"]) == {"fake", "fake2"}
        assert candidate["config"] == old["config"], "the other target's widths may be others: what is there stays"
        assert candidate["sha256"] == old["sha256"]
        one, two = candidate["measured"]["fake"], candidate["measured"]["fake2"]
        assert one["latency"] == old["measured"]["fake"]["latency"]
        assert one["quality"]["val"] == two["quality"]["val"]
        # What differs from the baseline in nothing but its weights costs the same everywhere.
        same = candidate["macs"] == report["candidates"][0]["macs"] and candidate["id"].endswith(("baseline", "fp32"))
        assert same or one["latency"]["ratio"] != two["latency"]["ratio"]
    assert report["picks"]["fake"] == before["picks"]["fake"]
    assert report["front"]["fake2"]
    more = search(target=[FakeTarget(), other], trials=7).report
    assert more["trials"]["finished"] == 7
    alone = search(target=FakeTarget(), trials=7).report
    assert list(alone["targets"]) == ["fake"]
    assert all(set(c["measured"]) == {"fake"} for c in alone["candidates"])


@pytest.mark.parametrize("error", [MeasurementError, ModelError])
def test_a_target_that_refuses_some_of_what_is_there_leaves_those_out(
    search: Search, copied: Path, error: type[CompressError]
) -> None:
    class Picky(FakeTarget):
        """Takes no file of the third trial."""

        def measure(self, models: Any, **options: Any) -> Any:
            if any("0002-" in str(path) for path in models):
                raise error("fake2: unsupported operator")
            return super().measure(models, **options)

    report = search(target=[FakeTarget(), Picky("fake2")], trials=6).report
    lacking = {c["id"] for c in report["candidates"] if "fake2" not in c["measured"]}
    assert lacking
    assert all(name.startswith("0002-") for name in lacking)
    assert not lacking & set(report["front"]["fake2"])
    assert compress.open_run(copied).report == report


def test_another_space_only_concerns_what_comes(search: Search, copied: Path, tiny: ModuleType) -> None:
    before = {c["id"]: c for c in compress.open_run(copied).report["candidates"]}
    space = replace(tiny.SPACE, prune_ratio=compress.Float(0.05, 0.1), epochs=1, precision="fp32")
    report = search(space=space, trials=7).report
    for candidate in report["candidates"]:
        if candidate["id"] in before:
            assert candidate["config"] == before[candidate["id"]]["config"]
        else:
            assert 0.05 <= candidate["config"]["prune"]["ratio"] <= 0.1
            assert candidate["config"]["finetune"]["epochs"] == 1
            assert candidate["config"]["precision"]["scheme"] == "fp32"


def test_keeping_only_the_front_keeps_what_can_be_picked(search: Search, copied: Path, finished: Result) -> None:
    report = search(keep="front", trials=6).report
    # What a pick was tied with is gone with the rest.
    without = [
        {which: pick | {"tied_with": []} for which, pick in r["picks"]["fake"].items()}
        for r in (report, finished.report)
    ]
    assert without[0] == without[1]
    kept = {c["id"] for c in report["candidates"] if c["path"] is not None}
    picks = report["picks"]["fake"].values()
    named = {name for pick in picks for name in (pick["id"], *pick["refuted"])}
    assert kept == {"baseline", *report["front"]["fake"]} | named
    assert {p.parent.name for p in copied.glob("candidates/*/model.onnx")} == kept - {"baseline"}
    # Other constraints choose among what was kept; new trials go on.
    loose = search(constraints=["quality_drop<=0.9"], trials=7, keep="front").report
    assert loose["trials"]["finished"] == 7
    assert all((copied / c["path"]).exists() for c in loose["candidates"] if c["id"] in loose["front"]["fake"])
    gone = next(c["id"] for c in loose["candidates"] if c["path"] is None)
    opened = compress.open_run(copied)
    assert gone not in [c.id for c in opened.front()]
    assert opened.pick("fastest").path.exists()


# -- what may not


@pytest.mark.parametrize("what", ["seed", "name", "model", "val", "test", "metric"])
def test_a_run_belongs_to_one_task_and_seed(
    search: Search, copied: Path, task: compress.Task, content: Content, what: str
) -> None:
    images, labels = task.val.tensors
    changes: dict[str, Any] = {
        "name": {"task": replace(task, name="other")},
        "model": {"task": replace(task, model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))},
        "val": {"task": replace(task, val=TensorDataset(images[:-1], labels[:-1]))},
        "test": {"task": replace(task, test=None)},
        "metric": {"task": replace(task, metric="macro_f1")},
        "seed": {"seed": 1},
    }
    before = content(copied)
    with pytest.raises(RunError, match=r"choose another --out") as caught:
        search(trials=7, **changes[what])
    assert "\n" not in str(caught.value)
    assert what in str(caught.value)
    assert content(copied) == before


def test_a_request_that_is_wrong_leaves_a_run_as_it_was(search: Search, copied: Path, content: Content) -> None:
    before = content(copied)
    wrong: list[dict[str, Any]] = [
        {"constraints": ["beauty<=3"]},
        {"objectives": ["quality", "beauty"]},
        {"target": "nowhere"},
        {"target": FakeTarget(capabilities=Capabilities(precisions=("int4",)))},
        {"device": "tpu"},
        {"sampler": "magic"},
        {"workers": 0},
        {"trials": -1},
    ]
    for changes in wrong:
        with pytest.raises(RequestError):
            search(**{"trials": 7, **changes})
        assert content(copied) == before, changes


@pytest.mark.parametrize("what", ["a folder", "a file", "below a file", "/proc"])
def test_what_is_no_run_is_left_alone(search: Search, tmp_path: Path, content: Content, what: str) -> None:
    place = tmp_path / "mine"
    if what == "a folder":
        place.mkdir()
        (place / "thesis.tex").write_text("years of work")
    elif what != "/proc":
        place.write_text("mine")
    out = {"below a file": place / "run", "/proc": Path("/proc/paretopress")}.get(what, place)
    before = content(place)
    with pytest.raises(RunError, match=r"--out|another folder"):
        search(out=out, trials=1)
    assert content(place) == before


def test_two_searches_in_one_folder_are_kept_apart(search: Search, copied: Path, content: Content) -> None:
    first = Record(copied / "record.jsonl")
    before = content(copied)
    with pytest.raises(RunError, match="is in use by another search"):
        search(trials=7)
    assert content(copied) == before
    first.close()


# -- killed


def _start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PARETOPRESS_TEST": str(folder)}
    command = [sys.executable, "-m", "compress.commands.command_line", "search", str(TASK_FILE), "--target", "fake"]
    with (folder.parent / "stderr").open("ab") as stderr:
        return subprocess.Popen(
            [*command, "--out", str(folder), *options],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment,
            preexec_fn=_hear_interrupts,
        )


def _hear_interrupts() -> None:
    """A shell without job control starts background commands deaf to SIGINT, and their children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_run_survives_being_killed_at_any_moment(tmp_path: Path) -> None:
    folder, generator = tmp_path / "run", random.Random(0)
    done: set[int] = set()
    for attempt in range(4):
        process = _start(folder, "--trials", "6")
        record = folder / "record.jsonl"
        # Killed some time after something new has happened, so that every attempt gets further than the last.
        size = record.stat().st_size if record.exists() else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if record.exists() and record.stat().st_size > size + 400 * attempt:
                break
            time.sleep(0.02)
        time.sleep(generator.random() * 2.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert naming(str(folder)) == {}
        if (folder / "report.json").exists():
            json.loads((folder / "report.json").read_text())
        known = Record(record, write=False).state
        now = {number for number, trial in known.trials.items() if trial.state == "finished"}
        assert done <= now, "what was finished stays finished"
        done = now
    process = _start(folder, "--trials", "6")
    assert process.wait(timeout=240) == 0, (folder.parent / "stderr").read_text()
    numbers_of = Counter(event["trial"] for event in events(folder, "finished"))
    assert sorted(numbers_of) == [0, 1, 2, 3, 4, 5]
    assert set(numbers_of.values()) == {1}, "no trial is finished twice"
    report = json.loads((folder / "report.json").read_text())
    assert report["trials"]["finished"] == 6
    assert all((folder / candidate["path"]).exists() for candidate in report["candidates"])
    assert (folder / "best" / "model.onnx").exists()
    assert list(folder.glob("cache/*/.making-*")) == []
    assert [p.name for p in folder.glob(".*")] == []
    assert naming(str(folder)) == {}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_keeps_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = _start(folder, "--trials", "50")
    deadline = time.monotonic() + 120
    while not (folder / "report.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(RunError, match="is in use"):
        Record(folder / "record.jsonl")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    said = (tmp_path / "stderr").read_text()
    assert f"everything finished so far is kept in {folder}" in said
    assert f"  paretopress search {TASK_FILE} --target fake --out {folder} --trials 50" in said
    assert "Traceback" not in said
    report = json.loads((folder / "report.json").read_text())
    assert report["trials"]["finished"] >= 1
    assert naming(str(folder)) == {}

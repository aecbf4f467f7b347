"""Searches with workers: the same results as with one, whatever becomes of a worker or of the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import compress
from compress.executing.local_workers import shares
from compress.executing.worker_counts import cores, worker_count
from compress.results import Result
from compress.run_folder.records import Record
from hearing import Heard
from processes import alive, naming, wait_for
from targets.errors import RequestError, StageError
from targets.runtimes.fake.fake_target import FakeTarget

Search = Callable[..., Result]
TASK_FILE = Path(__file__).parents[1] / "shared" / "tiny_task.py"
UNTRAINED = compress.SearchSpace(epochs=0, l1=0.0, precision="fp32", prune_ratio=compress.Float(0.1, 0.7))


def record(folder: Path) -> Any:
    return Record(folder / "record.jsonl", write=False).state


def test_two_workers_share_the_trials_and_one_goes_on_from_there(search: Search, tmp_path: Path) -> None:
    report = search(trials=4, workers=2).report
    state = record(tmp_path / "run")
    assert report["trials"] == {"asked": 4, "finished": 4, "gated": 0, "failed": 0}
    assert {span.worker for trial in state.trials.values() for span in trial.spans} == {0, 1}
    assert all(trial.spans[-1].ended is not None for trial in state.trials.values())
    assert report["satisfied"]
    assert state.stages["finetune"]["count"] >= 3, "the workers' stages are in the record"
    assert not list((tmp_path / "run" / "cache" / "workers").iterdir())
    more = search(trials=5).report
    assert more["trials"]["finished"] == 5
    before = {one["id"] for one in report["candidates"]}
    assert before <= {one["id"] for one in more["candidates"]}
    assert record(tmp_path / "run").stages["finetune"]["count"] <= state.stages["finetune"]["count"] + 2


def test_a_worker_that_dies_costs_its_trial_once(task: compress.Task, tmp_path: Path) -> None:
    """Killed as the system does it when memory is short: tried once more in smaller batches, then given up."""
    flags = tmp_path / "flags"
    flags.mkdir()

    def deaths(name: str) -> int:
        """How often the training of this network dies: the first one that comes once, the second one twice."""
        for role in ("1", "2"):
            taken = flags / f"role-{role}"
            if not taken.exists():
                taken.write_text(name)
            if taken.read_text() == name:
                return int(role)
        return 0

    def finetune(module: Any, data: Any, settings: Any) -> None:  # noqa: ARG001  what a task's own loop is given
        name = str(sum(p.numel() for p in module.parameters()))
        before = list(flags.glob(f"death-{name}-*"))
        if len(before) < deaths(name):
            (flags / f"death-{name}-{len(before)}").write_text(str(settings.batch_size))
            os.kill(os.getpid(), signal.SIGKILL)

    own, heard = replace(task, finetune=finetune), Heard()
    space = replace(UNTRAINED, epochs=1, batch_size=64)
    report = compress.search(
        own, FakeTarget(), trials=2, space=space, sampler="random", workers=2, out=tmp_path / "run", progress=heard
    ).report
    lost = [said for said in heard.outcomes if "was lost" in said]
    assert "ended by signal 9" in lost[0]
    assert "in batches of half the size" in lost[0]
    once, twice = ((flags / f"role-{role}").read_text() for role in "12")
    assert [path.read_text() for path in sorted(flags.glob(f"death-{once}-*"))] == ["64"]
    assert [path.read_text() for path in sorted(flags.glob(f"death-{twice}-*"))] == ["64", "32"]
    assert report["trials"]["finished"] == 2
    assert report["trials"]["failed"] == 1
    [failed] = [trial for trial in record(tmp_path / "run").trials.values() if trial.state == "failed"]
    assert failed.transient
    assert len(failed.spans) == 2


def test_what_cannot_travel_is_refused_before_anything_is_done(task: compress.Task, tmp_path: Path) -> None:
    lock = threading.Lock()

    def loss(outputs: Any, labels: Any) -> Any:
        with lock:
            return (outputs - labels).mean()

    with pytest.raises(RequestError, match=r"task 'tiny' cannot be sent to workers .*lock.*workers at 1"):
        compress.search(replace(task, loss=loss), FakeTarget(), trials=2, workers=2, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_worker_that_cannot_be_made_ready_says_why(task: compress.Task, tmp_path: Path) -> None:
    class OnlyHere(FakeTarget):
        def describe(self) -> dict[str, Any]:
            if os.getpid() != here:
                raise RuntimeError("no device in this process")
            return super().describe()

    here = os.getpid()
    with pytest.raises(StageError, match=r"worker . could not be made ready: RuntimeError: no device in this process"):
        compress.search(task, OnlyHere(), trials=2, space=UNTRAINED, workers=2, out=tmp_path / "run")


def test_workers_end_with_a_driver_that_is_killed_and_nothing_is_lost(tmp_path: Path, tiny: ModuleType) -> None:  # noqa: ARG001
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "compress.commands.command_line", "search", str(TASK_FILE), "--target", "fake"]
    command += ["--sampler", "random", "--workers", "2", "--trials", "8", "--out", str(folder)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _finished(folder) >= 2, lambda: "no worker has finished a trial", seconds=240)
        workers = [pid for pid in naming("compress.executing.worker") if pid in naming(str(folder))]
        assert len(workers) == 2
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: not any(alive(pid) for pid in workers), lambda: "workers outlive their driver")
    done = {name for trial in record(folder).trials.values() if trial.state == "finished" for name in trial.candidates}
    again = [*command[:-6], "--workers", "1", "--trials", "3", "--out", str(folder)]
    result = subprocess.run(again, capture_output=True, text=True)
    assert result.returncode in (0, 3), result.stderr
    state = record(folder)
    assert done <= set(state.candidates)
    assert state.count("finished") >= 3
    assert not list((folder / "cache" / "workers").iterdir())


def _finished(folder: Path) -> int:
    return int(record(folder).count("finished")) if (folder / "record.jsonl").exists() else 0


@pytest.fixture
def _affinity() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("workers", "among", "expected"),
    [
        (2, (0, 1, 2, 3, 4), [(0, 1), (2, 3)]),
        (3, (4, 7), [(4,), (7,), (4,)]),
        (2, (), [(), ()]),
    ],
)
def test_cores_are_divided(workers: int, among: tuple[int, ...], expected: list[tuple[int, ...]]) -> None:
    assert shares(workers, among) == expected


@pytest.mark.usefixtures("_affinity")
def test_auto_is_one_for_each_core_or_gpu_and_never_more_than_trials() -> None:
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    assert cores() == 1
    assert worker_count("auto", 0, None) == 1
    assert worker_count("auto", 8, None) == 8
    assert worker_count("auto", 8, 3) == 3
    assert worker_count(5, 0, None) == 5

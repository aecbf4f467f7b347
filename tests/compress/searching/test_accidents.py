"""Whatever happens, at whatever stage: what was finished stays, the cause is said, and the next call goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import compress
from compress.networks import weights_files
from compress.results import Result
from compress.run_folder.records import Record, State
from compress.searching.progress import Silent
from compress.stages import finetuning
from targets.documents import file_hash
from targets.errors import CompressError, MeasurementError, RunError, StageError, TaskError, TransientError
from targets.runtimes.fake.fake_target import FakeTarget

Search = Callable[..., Result]
Content = Callable[[Path], dict[str, str]]
STAGES = (
    "probe", "baseline", "profile", "ask", "prune", "export", "gate", "finetune", "quantize", "measure",
    "confirm: latency", "confirm: test", "report",
)  # fmt: skip


class At(Silent):
    """Something happens when a stage begins, the first time."""

    def __init__(self, stage: str, happens: Callable[[], object]) -> None:
        self._stage, self._happens = stage, happens
        self.met = False

    def stage(self, name: str) -> None:
        if name == self._stage and not self.met:
            self.met = True
            self._happens()


def throwing(error: BaseException) -> Callable[[], object]:
    def throw() -> None:
        raise error

    return throw


@pytest.fixture
def copied(finished: Result, tmp_path: Path) -> Path:
    """A copy of the finished run, where ``search`` continues it."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return tmp_path / "run"


def state(folder: Path) -> State:
    return Record(folder / "record.jsonl", write=False).state


def whole(folder: Path) -> set[str]:
    """The candidates of a run whose files are as they were measured."""
    found = state(folder).candidates.values()
    return {c.id for c in found if c.path and file_hash(folder / c.path) == c.sha256}


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(KeyboardInterrupt(), id="interrupted"),
        pytest.param(ZeroDivisionError("a fault of ours"), id="fault", marks=pytest.mark.slow),
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), id="full", marks=pytest.mark.slow),
    ],
)
def test_nothing_that_is_finished_is_lost_whatever_is_raised_at_whatever_stage(
    search: Search, copied: Path, error: BaseException
) -> None:
    kept, trials = whole(copied), 6
    for stage in STAGES:
        progress = At(stage, throwing(error))
        with contextlib.suppress(CompressError, KeyboardInterrupt, ZeroDivisionError, OSError):
            trials = search(trials=trials + 1, progress=progress).report["trials"]["finished"]
        assert progress.met, stage
        assert whole(copied) >= kept, stage
        kept = whole(copied)
        assert compress.open_run(copied).pick("fastest").path.exists(), stage
    report = search(trials=trials + 1).report
    assert report["trials"]["finished"] == trials + 1
    assert (copied / "best" / "model.onnx").exists()
    assert {path.name for path in copied.glob(".*")} == set()


def test_a_first_call_may_end_at_any_stage_and_the_next_goes_on(search: Search, tmp_path: Path) -> None:
    for stage in STAGES:
        with pytest.raises(KeyboardInterrupt):
            # The untouched network is tried before most stages; some trials are left for each of them.
            search(trials=2, progress=At(stage, throwing(KeyboardInterrupt())))
    report = search(trials=2).report
    assert (report["trials"]["finished"], report["satisfied"]) == (2, True)
    finished = [line for line in (tmp_path / "run" / "record.jsonl").read_text().splitlines() if '"finished"' in line]
    assert len(finished) == 2


@pytest.mark.slow
def test_a_call_may_be_killed_at_any_stage(copied: Path, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        f"import os, signal, sys\nsys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "import compress, tiny_task, test_accidents\nfrom targets import FakeTarget\n"
        "progress = test_accidents.At(sys.argv[1], lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
        f"compress.search(tiny_task.task(), FakeTarget(), trials=7, out={str(copied)!r}, progress=progress)\n"
    )
    kept = whole(copied)
    for stage in (*STAGES, "none"):
        ended = subprocess.run([sys.executable, script, stage], capture_output=True, text=True, check=False)
        assert ended.returncode == (0 if stage == "none" else -signal.SIGKILL), ended.stderr
        assert whole(copied) >= kept, stage
        kept = whole(copied)
    assert state(copied).count("finished") == 7


# -- after the trials


class Board(FakeTarget):
    """Is gone as soon as finalists are timed."""

    here = False

    def measure(self, models: Any, *, protocol: Any = None, **options: Any) -> Any:
        if protocol is not None and protocol.processes > 1 and not self.here:
            raise TransientError("fake: the board is gone")
        return super().measure(models, protocol=protocol, **options)


def test_a_confirmation_that_fails_leaves_everything_and_goes_on_when_called_again(
    search: Search, task: compress.Task, tmp_path: Path
) -> None:
    broken = [True]

    def mine(outputs: Any, labels: Any) -> float:
        if broken[-1] and len(labels) == len(task.test):
            raise KeyError("a label that val does not have")
        return float((outputs.argmax(1) == labels).mean())

    own = replace(task, metric=compress.Metric("mine", mine, loss="cross_entropy"))
    with pytest.raises(StageError, match=r"could not be confirmed: metric 'mine' raised KeyError.*goes on from there"):
        search(task=own, trials=2)
    opened = compress.open_run(tmp_path / "run")
    assert opened.report["trials"]["finished"] == 2
    assert [(f["stage"], f["trial"]) for f in opened.report["failures"]] == [("confirm", None)]
    assert opened.front()
    assert (tmp_path / "run" / "report.html").exists()
    trained = opened.report["stages"]["finetune"]
    broken.append(False)
    again = search(task=own, trials=2).report
    assert again["failures"] == []
    assert again["stages"]["finetune"] == trained, "nothing was trained again"
    assert all(pick["read"] for pick in again["picks"]["fake"].values())


def test_a_board_that_is_gone_when_finalists_are_confirmed_ends_the_call_at_once(search: Search) -> None:
    board = Board()
    with pytest.raises(StageError, match="no finalist could be timed again on fake: fake: the board is gone"):
        search(target=board, trials=3)
    assert len([1 for operation, _ in board.calls if operation == "measure"]) < 8
    board.here = True
    report = search(target=board, trials=3).report
    assert (report["failures"], report["trials"]["finished"]) == ([], 3)


def test_a_report_that_cannot_be_written_is_said_and_leaves_the_run(search: Search, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    progress = At("confirm: test", lambda: (tmp_path / "run" / "report.html").mkdir())
    with pytest.raises(StageError, match="the report could not be written: IsADirectoryError"):
        search(trials=1, progress=progress)
    assert state(tmp_path / "run").count("finished") == 1
    (tmp_path / "run" / "report.html").rmdir()
    assert search(trials=1).report["trials"]["finished"] == 1


# -- two searches


def test_a_search_that_is_refused_leaves_alone_what_another_made_meanwhile(
    search: Search, task: compress.Task, tmp_path: Path, content: Content
) -> None:
    made: dict[str, str] = {}

    class Slow(torch.utils.data.Dataset[Any]):
        """Another search runs and finishes while this is read."""

        def __len__(self) -> int:
            return len(task.val)

        def __getitem__(self, index: int) -> Any:
            if not made:
                search(trials=1)
                made.update(content(tmp_path / "run"))
            return task.val[index]

    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(RunError, match="written to by another search since this one began"):
        search(task=replace(task, model=other, val=Slow()), trials=1)
    assert content(tmp_path / "run") == made
    assert state(tmp_path / "run").count("finished") == 1


def test_a_refused_first_call_leaves_what_somebody_else_put_there(
    search: Search, task: compress.Task, tmp_path: Path
) -> None:
    def mine(*_: Any) -> float:
        (tmp_path / "run" / "thesis.tex").write_text("years of work")
        raise ValueError("no")

    with pytest.raises(TaskError, match="metric 'mine' raised ValueError"):
        search(task=replace(task, metric=compress.Metric("mine", mine, loss="cross_entropy")), trials=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


# -- what user code does


def _leaving(task: compress.Task, where: str, error: BaseException) -> compress.Task:
    """The task with a part of it that raises."""

    def leave(*_: Any) -> Any:
        raise error

    class Data(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            return leave() if index == 3 else task.val[index]

    changes: dict[str, Any] = {
        "model": {"model": leave}, "train": {"train": Data()}, "val": {"val": Data()}, "loss": {"loss": leave},
        "metric": {"metric": compress.Metric("mine", leave, loss="cross_entropy")}, "optimizer": {"optimizer": leave},
        "finetune": {"finetune": leave},
    }  # fmt: skip
    return replace(task, **changes[where])


@pytest.mark.parametrize("where", ["model", "train", "val", "loss", "metric", "optimizer", "finetune"])
def test_sys_exit_in_user_code_is_an_error_and_an_interrupt_an_interrupt(
    search: Search, task: compress.Task, where: str
) -> None:
    with pytest.raises(CompressError, match=r"SystemExit: 0 \(.*test_accidents.py:\d+\)") as caught:
        search(task=_leaving(task, where, SystemExit(0)), trials=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(KeyboardInterrupt):
        search(task=_leaving(task, where, KeyboardInterrupt()), trials=2)


def test_a_cause_that_repeats_ends_the_search_and_is_tried_again_by_the_next_call(
    search: Search, task: compress.Task
) -> None:
    broken = [True]

    def own(module: Any, *_: Any) -> Any:
        if broken[-1]:
            raise ValueError("a typo of mine")
        return module

    with pytest.raises(StageError, match=r"5 trials in a row failed in finetune for one reason: .*a typo of mine"):
        search(task=replace(task, finetune=own), trials=2)
    broken.append(False)
    report = search(task=replace(task, finetune=own), trials=2).report
    assert report["trials"]["finished"] == 2
    assert report["trials"]["failed"] == 0, "what failed so is tried again, or would be"


def test_a_run_stays_in_its_folder_wherever_user_code_goes(
    search: Search, task: compress.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(outputs: Any, labels: Any) -> float:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        os.chdir(tmp_path / "elsewhere")
        return float((outputs.argmax(1) == labels).mean())

    monkeypatch.chdir(tmp_path)
    own = replace(task, metric=compress.Metric("mine", mine, loss="cross_entropy"))
    result = search(task=own, trials=1, out="here")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert result.folder == tmp_path / "here"
    assert result.pick("fastest").path.exists()


# -- disks


def test_a_disk_that_was_full_for_a_moment_costs_no_trial(
    search: Search, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(_: Any, path: Path) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "write_weights", full)
        with pytest.raises(StageError, match=r"5 trials in a row failed in finetune.*Disk quota exceeded"):
            search(trials=2)
    assert all(t.transient for t in state(tmp_path / "run").trials.values() if t.state == "failed")
    report = search(trials=5).report
    assert (report["trials"]["finished"], report["trials"]["failed"]) == (5, 0)


def test_weights_that_a_disk_does_not_take_are_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        weights_files.write_weights({"w": torch.ones(9)}, Path("/dev/full"))
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="PytorchStreamReader"):
        weights_files.read_weights(tmp_path / "w.pt")


def _damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    path.unlink()
    if how == "changed":
        content[len(content) // 2] ^= 64
        path.write_bytes(content)
    elif how == "emptied":
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["emptied", "changed", "gone"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_damaged_candidate_is_restored_or_another_is_taken(
    search: Search, copied: Path, how: str, cached: bool
) -> None:
    picked = compress.open_run(copied).pick("fastest")
    sha256 = picked.candidate.sha256
    _damage(picked.path, how)
    if not cached:
        shutil.rmtree(copied / "cache" / "quantize")
        shutil.rmtree(copied / "cache" / "export")
    opened = compress.open_run(copied)
    assert picked.id not in [c.id for c in opened.front()]
    assert opened.pick("fastest").id != picked.id
    result = search(trials=6)
    assert (result.pick("fastest").id == picked.id) == cached
    assert file_hash(copied / "best" / "model.onnx") == result.pick("fastest").candidate.sha256
    assert (picked.path.exists() and file_hash(picked.path) == sha256) == cached


def test_a_damaged_baseline_is_made_again(search: Search, copied: Path) -> None:
    path = copied / "baseline" / "model.onnx"
    before = file_hash(path)
    _damage(path, "changed")
    assert search(trials=6).report["satisfied"]
    assert file_hash(path) == before


@pytest.mark.parametrize("how", ["emptied", "changed", "gone"])
def test_a_module_without_its_weights_is_an_error_not_an_untrained_network(
    search: Search, copied: Path, how: str
) -> None:
    result = search(trials=6)
    candidate = next(c for c in result.candidates() if c.config.get("finetune", {}).get("epochs"))
    weights = candidate.path.parent / "weights.pt"
    right = {name: x.clone() for name, x in candidate.module().state_dict().items()}
    _damage(weights, how)
    assert all(torch.equal(x, right[name]) for name, x in candidate.module().state_dict().items()), "from the cache"
    shutil.rmtree(copied / "cache" / "finetune")
    with pytest.raises(compress.RequestError, match=r"weights are gone|is damaged"):
        candidate.module()
    (candidate.path.parent / "candidate.json").write_text("{")
    with pytest.raises(RunError, match=r"candidate.json' is damaged"):
        candidate.module()


# -- precisions


def test_a_precision_that_does_not_run_takes_no_other_with_it(search: Search, tiny: ModuleType) -> None:
    class Float(FakeTarget):
        """Its runtime refuses what int8 files hold."""

        def measure(self, models: Any, **options: Any) -> Any:
            if any("quantize" in str(path) for path in models):
                raise MeasurementError("fake: unsupported type int8")
            return super().measure(models, **options)

    space = replace(tiny.SPACE, precision=compress.Choice("fp32", "int8"), prune_ratio=0.5)
    report = search(target=Float(), space=space, trials=1).report
    assert (report["trials"]["finished"], report["trials"]["failed"]) == (1, 0)
    assert [c["id"] for c in report["candidates"]] == ["baseline", "0000-fp32"]
    assert {f["cause"] for f in report["failures"]} == {"int8: fake: fake: unsupported type int8"}

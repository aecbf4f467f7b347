"""The command ``paretopress``: what it prints where, how it ends, and one clear line for everything that is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress import command_line, loops
from compress.records import Record
from compress.run_results import Result
from targets.errors import TargetUnavailable
from targets.testing import reference_model

Content = Callable[[Path], dict[str, str]]
TASK_FILE = Path(__file__).with_name("tiny_task.py")
HEAVY = ("torch", "optuna", "onnx", "onnxruntime", "scipy", "sklearn", "plotly", "jinja2")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which has to be one JSON document and nothing else."""
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """stderr, which has to be one line, and not a stack trace."""
        [line] = self.err.strip().splitlines()
        assert "Traceback" not in line
        return line


@pytest.fixture
def command(
    quick: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Done]:  # fmt: skip
    """Runs ``paretopress ARGUMENTS`` in this process, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("traces")))
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["paretopress", *map(str, arguments)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                command_line.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        said = capfd.readouterr()
        status = ended.value.code
        assert isinstance(status, int)
        return Done(status, said.out, said.err)

    return run


Command = Callable[..., Done]


@pytest.fixture
def run(finished: Result, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return tmp_path / "run"


def task_file(path: Path, *changes: str, before: str = "", inside: str = "") -> Path:
    """A task file: the tiny one, with code put before everything, into ``task()``, and ``Task`` arguments changed."""
    path.write_text(
        f"{before}\nimport importlib.util, torch, compress\n"
        f"spec = importlib.util.spec_from_file_location('tiny_task', {str(TASK_FILE)!r})\n"
        "tiny = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(tiny)\n"
        "SPACE = tiny.SPACE\n"
        "from torch.utils.data import TensorDataset, Subset\n"
        "def task():\n"
        f"    {inside or 'pass'}\n"
        "    sets = tiny.datasets()\n"
        f"    return compress.Task(**{{**dict(name='tiny', model=tiny.trained, **sets), {', '.join(changes)}}})\n"
    )
    return path


# -- searching


def test_a_search_prints_its_picks_and_where_they_are(command: Command, tmp_path: Path) -> None:
    done = command("search", TASK_FILE, "--target", "fake", "--trials", 2, "--out", "out/run")
    assert done.status == 0
    assert "best model: out/run/best/model.onnx" in done.out
    assert "report: out/run/report.html" in done.out
    assert "most accurate" in done.out
    assert "trial 0: " in done.err
    assert "trial 1: " in done.err
    assert (tmp_path / "out" / "run" / "report.html").exists()
    manifest = json.loads((tmp_path / "out" / "run" / "best" / "manifest.json").read_text())
    assert manifest["reproduce"]["command"] == (
        f"paretopress search {TASK_FILE} --target fake --trials 2 --out out/run"
    )
    again = command("search", TASK_FILE, "--trials", 2, "--out", "out/run", "--json")
    assert again.status == 0, "continued: its target is known"
    assert again.json == json.loads((tmp_path / "out" / "run" / "report.json").read_text())


def test_the_default_folder_is_named_for_the_task(command: Command, tmp_path: Path) -> None:
    assert command("search", TASK_FILE, "--target", "fake", "--trials", 1).status == 0
    assert (tmp_path / "runs" / "tiny" / "run.json").exists()


def test_with_json_stdout_is_one_document_whatever_user_code_prints(command: Command, tmp_path: Path) -> None:
    file = task_file(
        tmp_path / "noisy.py",
        "'metric': compress.Metric('own', own, True), 'loss': torch.nn.functional.cross_entropy",
        before="import os, sys\nprint('printed at import')\nos.system('echo printed by a program')\n"
        "said = []\ndef own(outputs, labels):\n    said or print('printed by the metric')\n    said.append(1)\n"
        "    return float((outputs.argmax(1) == labels).mean())\n",
        inside="print('printed in task()')",
    )
    done = command("search", file, "--target", "fake", "--trials", 1, "--json", "--out", "run")
    assert done.status == 0
    assert done.json["trials"]["finished"] == 1
    for text in ("printed at import", "printed by a program", "printed by the metric", "printed in task()"):
        assert text in done.err
        assert text not in done.out
    planned = command("search", file, "--target", "fake", "--dry-run", "--json", "--out", "other")
    assert planned.json["task"] == "tiny"


def test_a_dry_run_writes_and_trains_nothing(command: Command, tmp_path: Path) -> None:
    done = command("search", TASK_FILE, "--target", "fake", "--dry-run")
    assert done.status == 0
    assert "prunable: 0, 16 channels" in done.out
    assert list(tmp_path.iterdir()) == []


def test_nothing_feasible_is_status_3_with_the_nearest_miss(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "_FRUITLESS", 2)
    done = command("search", TASK_FILE, "--trials", 6, "--out", run, "--constraint", "size<=1B")
    assert done.status == 3
    assert "No candidate meets size<=1B; the nearest miss is " in done.out
    assert "best model" not in done.out
    assert not (run / "best").exists()
    assert (run / "report.html").exists()
    pick = command("pick", run, "--out", "p")
    assert (pick.status, pick.out) == (3, "")
    assert "no candidate meets size<=1B on fake" in pick.line


def test_shared_examples_are_a_warning_not_an_error(command: Command, tmp_path: Path) -> None:
    file = task_file(tmp_path / "leaky.py", "'test': sets['val']")
    done = command("search", file, "--target", "fake", "--trials", 1, "--out", "run", "--json")
    assert done.status == 0
    assert "warning: val and test share 400 examples" in done.err
    assert any("share 400 examples" in text for text in done.json["environment"]["warnings"])


def test_an_onnx_file_is_searched_with_samples(command: Command, tmp_path: Path) -> None:
    reference_model(tmp_path / "m.onnx")
    images = np.random.default_rng(0).standard_normal((200, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=images)
    done = command(
        "search", "m.onnx", "--data", "data.npz", "--target", "fake", "--trials", 2, "--json",
        "--constraint", "quality_drop<=0.2",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert done.json["candidates"][0]["measured"]["fake"]["quality"]["val"]["metric"] == "agreement"
    assert (tmp_path / "runs" / "m" / "best" / "model.onnx").exists()


def test_an_interrupted_search_is_status_130_and_says_how_to_go_on(command: Command, tmp_path: Path) -> None:
    file = task_file(tmp_path / "stopped.py", inside="raise KeyboardInterrupt")
    done = command("search", file, "--target", "fake", "--trials", 2)
    assert done.status == 130
    assert f"Continue with:\n  paretopress search {file} --target fake --trials 2" in done.err
    assert "Traceback" not in done.err


# -- reading a run


def test_the_front_of_a_run(command: Command, run: Path, finished: Result) -> None:
    done = command("front", run)
    assert done.status == 0
    for candidate in finished.front():
        assert candidate.id in done.out
    report = finished.report
    by_id = {candidate["id"]: candidate for candidate in report["candidates"]}
    assert command("front", run, "--json").json == {"fake": [by_id[name] for name in report["front"]["fake"]]}
    assert command("front", run, "--target", "fake", "--json").json.keys() == {"fake"}
    assert "target 'ort-cpu' is not in this run; it has fake" in command("front", run, "--target", "ort-cpu").line


@pytest.mark.parametrize("which", [None, "smallest", "id"])
def test_a_pick_is_copied_out_with_its_manifest(
    command: Command, run: Path, finished: Result, tmp_path: Path, which: str | None
) -> None:
    wanted = finished.pick("fastest" if which is None else "smallest").id
    if which == "id":
        wanted = next(c.id for c in finished.candidates() if c.id not in {p.id for p in finished.front()})
    options = () if which is None else ("--pick", wanted if which == "id" else which)
    done = command("pick", run, "--out", "copied", "--json", *options)
    assert done.json == {"id": wanted, "path": "copied/model.onnx", "manifest": "copied/manifest.json"}
    manifest = json.loads((tmp_path / "copied" / "manifest.json").read_text())
    digest = hashlib.sha256((tmp_path / "copied" / "model.onnx").read_bytes()).hexdigest()
    assert (manifest["sha256"], manifest["id"]) == (digest, wanted)
    assert (manifest["pick"] is None) == (which == "id")
    plain = command("pick", run, *options)
    assert plain.out == f"tiny-{wanted}/model.onnx\n"
    assert (tmp_path / f"tiny-{wanted}" / "manifest.json").exists()


def test_the_report_is_written_where_it_is_wanted(command: Command, run: Path, tmp_path: Path) -> None:
    (run / "report.html").unlink()
    assert command("report", run).out == f"{run}/report.html\n"
    assert "tiny" in (run / "report.html").read_text()
    done = command("report", run, "--out", "x.html", "--json")
    assert done.json["task"] == "tiny"
    assert (tmp_path / "x.html").stat().st_size > 10_000


def test_a_run_in_progress_can_be_read(command: Command, run: Path, content: Content) -> None:
    lines = (run / "record.jsonl").read_bytes().splitlines(keepends=True)
    third = [i for i, line in enumerate(lines) if b'"event":"finished"' in line][2]
    (run / "record.jsonl").write_bytes(b"".join(lines[: third + 1]))
    record = Record(run / "record.jsonl")
    record.append("asked", trial=3, params={})
    (run / "record.jsonl").open("ab").write(b'{"event":"sta')  # being written just now
    for name in ("report.json", "report.html"):
        (run / name).unlink()
    before = content(run)
    assert "0002-int8" in command("front", run, "--json").out or command("front", run).status == 0
    assert command("pick", run, "--out", "copied").status == 0
    assert command("report", run, "--out", "x.html").status == 0
    assert content(run) == before
    record.close()


# -- targets, recipes, check


def test_targets_and_recipes_are_listed(command: Command) -> None:
    rows = {row["name"]: row for row in command("targets", "--json").json}
    assert rows["fake"]["available"]
    assert rows["fake"]["install"] is None
    assert "ort-cpu" in command("targets").out
    recipes = {row["name"]: row for row in command("recipes", "--json").json}
    low, high = recipes["digits"]["expected"]["fastest_ratio"]
    assert f"{low:.2f}-{high:.2f}x" in " ".join(command("recipes").out.split())
    assert recipes["digits"]["description"]


def test_check_compares_two_files(command: Command, run: Path, tmp_path: Path) -> None:
    baseline, best = run / "baseline" / "model.onnx", run / "best" / "model.onnx"
    done = command("check", best, "--against", baseline, "--target", "fake", "--json")
    assert done.status == 0
    assert done.json["runs"]
    assert done.json["size_ratio"] < 1
    same = command("check", baseline, "--against", baseline, "--target", "fake")
    assert (same.status, "same decision in 100.0%" in same.out) == (0, True)
    other = command("check", reference_model(tmp_path / "m.onnx"), "--against", baseline, "--target", "fake", "--json")
    assert other.status == 3
    assert not other.json["same_interface"]


# -- what is wrong


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
        assert (done.status, done.out) == (2, "")
        assert message in done.line
        assert "wrong.py" in done.line
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
        assert (done.status, done.out) == (2, "")
        assert message in done.line
        assert content(run) == before
    done = command("search", file, "--target", "fake", "--trials", 1, "--out", "fresh")
    assert (done.status, done.out) == (2, "")
    assert message in done.line
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
    "workers": (("--workers", 2), "workers=2: this version trains one network at a time"),
    "device": (("--device", "tpu"), "device 'tpu' cannot be used"),
    "seed": (("--seed", 1), "the run was begun with seed 0; continue it with that, or choose another --out"),
    "data": (("--data", "x.zip"), "--data 'x.zip': task() of"),
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_an_option_that_is_wrong_is_said_in_one_line(command: Command, run: Path, content: Content, name: str) -> None:
    options, message = WRONG_OPTIONS[name]
    before = content(run)
    done = command("search", TASK_FILE, "--out", run, *options)
    assert (done.status, done.out) == (2, "")
    assert message in done.line
    assert content(run) == before
    if name != "seed":
        planned = command("search", TASK_FILE, "--dry-run", "--out", run, *options)
        assert (planned.status, planned.out) == (2, "")
        assert message in planned.line
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
    assert (done.status, done.out) == (2, "")
    assert "--out" in done.line
    assert place in done.line
    assert content(tmp_path) == before


def test_a_folder_that_another_search_is_using_is_left_alone(command: Command, run: Path, content: Content) -> None:
    record = Record(run / "record.jsonl")
    before = content(run)
    done = command("search", TASK_FILE, "--trials", 7, "--out", run)
    assert (done.status, done.out) == (2, "")
    assert "is in use by another search" in done.line
    assert content(run) == before
    record.close()


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
@pytest.mark.parametrize("name", ["front", "pick", "report"])
def test_what_is_no_run_cannot_be_read(command: Command, tmp_path: Path, name: str, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    done = command(name, place)
    assert (done.status, done.out) == (2, "")
    assert f"'{place}' is " in done.line


def test_a_place_to_copy_to_that_cannot_be_written_is_said(command: Command, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (("pick", run, "--out", "file/below"), ("report", run, "--out", "file/x.html")):
        done = command(*arguments)
        assert (done.status, done.out) == (2, "")
        assert "cannot be written: Not a directory; choose another --out" in done.line
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
    from targets.ort_cpu import OrtCpu

    monkeypatch.setattr(OrtCpu, "requires", ("a_module_nobody_has",), raising=False)
    monkeypatch.setattr(OrtCpu, "install", "pip install 'paretopress[ort]'", raising=False)
    before = content(run)
    for arguments in (
        ("search", TASK_FILE, "--out", run, "--target", "ort-cpu"),
        ("bench", run / "baseline" / "model.onnx"),
    ):
        done = command(*arguments)
        assert (done.status, done.out) == (2, "")
        assert "pip install 'paretopress[ort]'" in done.line
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
        raise ZeroDivisionError("what\nis this")

    monkeypatch.setattr("compress.reporting.make_report", explode)
    done = command("front", run)
    assert (done.status, done.out) == (1, "")
    assert done.line.startswith("paretopress: ZeroDivisionError: what; stack trace: ")
    trace = Path(done.line.rpartition("stack trace: ")[2])
    assert "explode" in trace.read_text()
    trace.unlink()


# -- the process


def test_version_and_help(command: Command) -> None:
    assert command("--version").out == f"paretopress {importlib.metadata.version('paretopress')}\n"
    help_text = command("--help").out
    for name in ("search", "bench", "check", "front", "pick", "report", "targets", "recipes"):
        assert name in help_text
        assert command(name, "--help").status == 0


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        (("--help",), (*HEAVY, "rich", "numpy")),
        (("search", "--help"), (*HEAVY, "rich", "numpy")),
        (("targets", "--json"), (*HEAVY, "rich")),
        (("targets",), HEAVY),
        (("recipes", "--json"), (*HEAVY, "rich")),
        (("front", "RUN", "--json"), (*HEAVY, "rich")),
        (("pick", "RUN", "--out", "OUT"), (*HEAVY, "rich")),
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(
    finished: Result, tmp_path: Path, arguments: tuple[str, ...], banned: tuple[str, ...]
) -> None:
    places = {"RUN": str(finished.folder), "OUT": str(tmp_path / "out")}
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))\n"
        "from compress.command_line import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *(places.get(name, name) for name in arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "compress" in loaded
    assert not loaded & set(banned)


def test_a_reader_that_goes_away_is_no_crash(finished: Result) -> None:
    command = [sys.executable, "-m", "compress.command_line", "front", str(finished.folder), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read().decode()
    assert "Traceback" not in error
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, 0)
        pytest.fail("the process is still there")

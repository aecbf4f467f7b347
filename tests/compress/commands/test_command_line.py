"""The command ``paretopress``: what it prints where, and how it ends."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import commands
from commands import TASK_FILE, task_file
from compress.results import Result
from compress.run_folder.records import Record
from compress.searching import trial_loop
from targets.testing import reference_model

command, run = commands.command, commands.run
Command = Callable[..., Any]
Content = Callable[[Path], dict[str, str]]
HEAVY = ("torch", "optuna", "onnx", "onnxruntime", "scipy", "sklearn", "plotly", "jinja2")


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
    monkeypatch.setattr(trial_loop, "_FRUITLESS", 2)
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


@pytest.mark.parametrize("how", ["raise KeyboardInterrupt", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"])
def test_an_interrupted_search_is_status_130_and_says_how_to_go_on(command: Command, tmp_path: Path, how: str) -> None:
    file = task_file(tmp_path / "stopped.py", inside=how)
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
        "from compress.commands.command_line import main\n"
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
    command = [sys.executable, "-m", "compress.commands.command_line", "front", str(finished.folder), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read().decode()
    assert "Traceback" not in error
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, 0)
        pytest.fail("the process is still there")

"""``paretopress bench``: its table, what it shows meanwhile, what it saves, and what CI makes of its exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import targets
from compress.commands import command_line
from compress.commands.bench import parse_share, read_inputs
from compress.reports.bench_progress import LiveBench
from compress.reports.bench_tables import change_lines, print_bench
from targets.benches.comparing import CAREFUL
from targets.benches.regressions import Change
from targets.errors import RequestError
from targets.target import Estimate
from targets.testing import reference_model

DASH = "\N{EN DASH}"
Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three files in the current folder."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abc"):
        reference_model(tmp_path / f"{name}.onnx", seed=number)
    return ["a.onnx", "b.onnx", "c.onnx"]


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the target ``fake`` finds, by file name; to be changed by a test."""
    seconds = {"a.onnx": 100e-6, "b.onnx": 53e-6, "c.onnx": 98e-6}
    make = targets.FakeTarget.__init__
    monkeypatch.setattr(targets.FakeTarget, "__init__", lambda self: make(self, cost=seconds))
    return seconds


@pytest.fixture
def bench(
    models: list[str],  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> Bench:  # fmt: skip
    """Runs ``paretopress bench ARGUMENTS`` in this process: (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["paretopress", "bench", *map(str, arguments)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        said = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


def line(text: str, start: str) -> str:
    return next(row for row in text.splitlines() if row.strip().startswith(start))


# -- the table


ENTRY = {
    "target": "ort-cpu", "path": "models/base.onnx", "p50": 512e-6, "p95": 600e-6, "runs": 9000, "load": 0.02,
    "ratio": 1.0, "low": 1.0, "high": 1.0, "first": 0.004, "load_s": 0.031, "memory": 2_100_000, "size": 117_418,
    "instructions": None, "processes": 5, "settled": True, "fastest": [500e-6, 490e-6, 520e-6], "audit": None,
}  # fmt: skip
SMALL = {**ENTRY, "path": "models/[red]small.onnx", "p50": 189e-6, "ratio": 0.37, "low": 0.36, "high": 0.38}
SAME = {**ENTRY, "path": "models/int8.onnx", "ratio": 1.01, "low": 0.98, "high": 1.03}
SAME["audit"] = {"integer": 2, "layers": 9}
COUNTED = {**dict.fromkeys(("p50", "p95", "first", "load_s", "fastest")), "runs": 0, "target": "arm-emulated"}


def printed(*entries: dict[str, Any], width: int | None = None) -> str:
    """The document as it is printed; with a ``width`` as on a terminal of so many columns."""
    document = {
        "environment": {"cpu": "AMD EPYC", "cores": 2, "packages": {"onnxruntime": "1.20"}},
        "asked": {"shapes": {}},
        "results": list(entries),
    }
    file = io.StringIO()
    print_bench(document, [], Console(file=file, force_terminal=width is not None, width=width, color_system=None))
    return file.getvalue()


def test_ratios_are_bars_with_intervals_and_paths_are_as_they_are() -> None:
    text = printed(ENTRY, SMALL, SAME)
    row = line(text, "[red]small.onnx")
    assert f"0.37x [0.36{DASH}0.38]" in row
    for cell in ("189 µs", "600 µs", "4.00 ms", "31.0 ms", "2.10 MB", "117 kB"):
        assert cell in row
    assert 0 < row.count("█") < line(text, "base.onnx").count("█")
    assert "[" not in line(text, "base.onnx")
    assert line(text, "int8.onnx").rstrip().endswith("tied, int8 2/9")
    assert "[red]small.onnx is 2.70 times as fast as base.onnx (2.63" in text
    assert "AMD EPYC, 2 cores, onnxruntime 1.20, batch 1, 27.0 k runs in 5 processes each" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "\x1b" not in text


def test_one_table_has_a_group_for_each_target() -> None:
    other = [{**entry, "target": "openvino-cpu:precision=bf16", "p50": 1e-3} for entry in (ENTRY, SMALL)]
    text = printed(ENTRY, SMALL, *other)
    assert text.index("on ort-cpu") < text.index("on openvino-cpu:precision=bf16")
    assert text.count("ratio") == 1
    assert "p50 512 µs on ort-cpu, 1.00 ms on openvino-cpu:precision=bf16" in text
    assert "not paired" in text


def test_operators_on_an_npu_are_counted_beside_the_model() -> None:
    entry = {**ENTRY, **COUNTED, "cycles": 89_900, "audit": {"integer": 13, "layers": 13, "npu": 12}}
    assert line(printed(entry), "base.onnx").rstrip().endswith("NPU 12/13")


@pytest.mark.parametrize("name", ["instructions", "cycles"])
def test_counts_stand_where_nothing_is_timed(name: str) -> None:
    heavy = {**ENTRY, **COUNTED, name: 6_490_000}
    light = {**SMALL, **COUNTED, name: 3_245_000, "ratio": 0.5, "low": 0.5, "high": 0.5}
    text = printed(heavy, light)
    assert "3.25 M" in line(text, "[red]small.onnx") or "3.24 M" in line(text, "[red]small.onnx")
    assert f"0.50x {'█' * 5}" in " ".join(line(text, "[red]small.onnx").split())
    assert "p50" not in text
    assert f"[red]small.onnx takes 50 % of the {name} of base.onnx." in text


@pytest.mark.parametrize(
    ("name", "share", "tied"),
    [("instructions", 0.99, False), ("instructions", 0.9995, True), ("cycles", 0.9995, False)],
)
def test_what_is_counted_is_tied_only_by_what_moves_with_the_input(name: str, share: float, tied: bool) -> None:
    heavy = {**ENTRY, **COUNTED, name: 1_000_000}
    light = {**SMALL, **COUNTED, name: int(share * 1e6), "ratio": share, "low": share, "high": share}
    assert ("tied" in line(printed(heavy, light), "[red]small.onnx")) == tied


@pytest.mark.parametrize("width", range(63, 125, 3))
@pytest.mark.parametrize("target", ["ort-cpu", "ssh:host=pi@board"])
def test_a_narrow_terminal_loses_columns_and_no_cell(width: int, target: str) -> None:
    others = [{**entry, "target": target} for entry in (ENTRY, SMALL)] if target != "ort-cpu" else []
    text = printed(ENTRY, SMALL, SAME, *others, width=width)
    table = text.split("\n\n")[0].splitlines()
    assert max(len(row.rstrip()) for row in table) <= width
    assert "…" not in text
    if others:
        assert f"on {target}" in text
        return
    for row in (line(text, "base.onnx"), line(text, "int8.onnx")):
        assert "512 µs" in row
    assert "memory" in text or width < 80
    assert "load" in text or width < 114
    assert "load" not in text or width > 100


def test_a_long_name_keeps_its_end() -> None:
    text = printed(ENTRY, {**SMALL, "path": f"models/{'long' * 20}-int8.onnx"})
    assert line(text, "…").split()[0].endswith("long-int8.onnx")
    assert max(map(len, text.split("\n\n")[0].splitlines())) <= 120


def test_what_cannot_be_told_apart_is_no_winner() -> None:
    assert "no model is faster than base.onnx" in printed(ENTRY, SAME)
    near = {**SMALL, "path": "models/near.onnx", "ratio": 0.375, "low": 0.37}
    assert "near.onnx cannot be told from it." in printed(ENTRY, SMALL, near)
    assert "base.onnx: fastest run 500 µs, from 490 µs to 520 µs in 5 processes." in printed(ENTRY)


def test_changes_are_said_in_one_line_each() -> None:
    changes = [
        Change("t", "a.onnx", "ratio", "regression", (0.5, 0.49, 0.51), (0.6, 0.59, 0.61)),
        Change("t", "b.onnx", "time", "unchanged", (1e-3, 9e-4, 1.1e-3), (1.05e-3, 1e-3, 1.2e-3)),
        Change("t", "c.onnx", "instructions", "improvement", (1000.0,) * 3, (900.0,) * 3),
        Change("t", "d.onnx", "", "not compared", why="it is new"),
    ]
    assert [text.plain for text in change_lines(changes)] == [
        f"regression: a.onnx 0.60x [0.59{DASH}0.61], then 0.50x [0.49{DASH}0.51]: 20 % slower",
        "unchanged: b.onnx 1.05 ms at best, then 1.00 ms: no significant change "
        "(of absolute times only changes beyond 15 % count)",
        "improvement: c.onnx 900 instructions, then 1,000: 10 % fewer",
        "not compared: d.onnx (it is new)",
    ]


# -- while it runs


def test_the_live_estimate_is_on_terminals_only_and_removed_at_the_end() -> None:
    estimate = Estimate("ort-cpu", "timing", 2, 5, ((1.0, 1.0, 1.0), (0.53, 0.52, 0.55)))
    for terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=100, color_system=None)
        with LiveBench(["base.onnx", "small.onnx"], CAREFUL, console) as live:
            live(estimate)
        assert (f"0.53x [0.52{DASH}0.55]" in file.getvalue()) == terminal
        assert bool(file.getvalue()) == terminal


def test_the_live_estimate_says_which_process_and_keeps_what_was_found() -> None:
    live = LiveBench(["base.onnx", "small.onnx"], CAREFUL, Console(file=io.StringIO()))
    live(Estimate("ort-cpu", "timing", 1, 5, ((1.0, 1.0, 1.0), (0.53, 0.52, 0.55))))
    live(loading := Estimate("ort-cpu", "loading base.onnx", 2, 5))
    text = live.shown(loading).plain
    assert text.startswith("ort-cpu  process 2 of 5 or more")
    assert "loading base.onnx" in text
    assert "0.53x" in line(text, "small.onnx")
    live(other := Estimate("openvino-cpu", "loading base.onnx", 1, 5))
    assert "0.53x" not in live.shown(other).plain


# -- the command


@pytest.mark.usefixtures("costs")
def test_bench_prints_paired_ratios(bench: Bench, models: list[str]) -> None:
    status, out, _ = bench(*models, "--target", "fake", "--json")
    document = json.loads(out)
    assert status == 0
    assert {"schema", "environment", "results", "warnings"} <= set(document)
    assert [entry["path"] for entry in document["results"]] == models
    assert [entry["ratio"] for entry in document["results"]] == pytest.approx([1, 0.53, 0.98])
    status, out, _ = bench(*models, "--target", "fake")
    assert status == 0
    assert "b.onnx is 1.89 times as fast as a.onnx" in out
    assert line(out, "c.onnx").rstrip().endswith("tied")


@pytest.mark.usefixtures("costs")
def test_warnings_are_on_stderr_and_in_the_document(bench: Bench) -> None:
    _, out, error = bench("a.onnx", "a.onnx", "--target", "fake", "--json")
    [text] = [one for one in json.loads(out)["warnings"] if "a.onnx is given 2 times" in one]
    assert f"warning: {text}" in error.splitlines()


def test_a_regression_is_status_3(bench: Bench, models: list[str], costs: dict[str, float], tmp_path: Path) -> None:
    arguments = (*models, "--target", "fake")
    assert bench(*arguments, "--save", "old.json")[0] == 0
    before = (tmp_path / "old.json").read_bytes()
    assert json.loads(before)["results"][1]["samples"]
    status, out, _ = bench(*arguments, "--compare", "old.json")
    assert (status, out.count("unchanged: ")) == (0, 2), "the first model is the yardstick"
    costs["b.onnx"] = 60e-6
    status, out, _ = bench(*arguments, "--compare", "old.json", "--save", "new.json")
    assert status == 3
    assert line(out, "regression: b.onnx 0.60x").endswith("13 % slower")
    assert (tmp_path / "new.json").exists()
    status, out, error = bench(*arguments, "--compare", "old.json", "--save", "old.json", "--json")
    assert status == 3
    assert [one["verdict"] for one in json.loads(out)["compared"]["changes"]] == ["regression", "unchanged"]
    assert "not saved: a regression was found" in error
    assert (tmp_path / "old.json").read_bytes() == before
    costs["b.onnx"] = 40e-6
    status, out, _ = bench(*arguments, "--compare", "old.json", "--save", "old.json")
    assert (status, "improvement: b.onnx" in out) == (0, True)
    assert (tmp_path / "old.json").read_bytes() != before


@pytest.mark.usefixtures("costs")
def test_a_json_document_that_was_kept_can_be_compared_with(bench: Bench, models: list[str], tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(bench(*models, "--target", "fake", "--json")[1])
    assert bench(*models, "--target", "fake", "--compare", "old.json")[0] == 0


@pytest.mark.usefixtures("costs")
def test_what_cannot_be_compared_is_shown_and_saved_all_the_same(bench: Bench, tmp_path: Path) -> None:
    assert bench("a.onnx", "--target", "fake", "--save", "old.json")[0] == 0
    status, out, error = bench("b.onnx", "--target", "fake", "--compare", "old.json", "--save", "new.json")
    assert status == 2
    assert "53.0 µs" in line(out, "b.onnx")
    assert "nothing can be compared with the saved bench: the saved bench has no b.onnx, only a.onnx" in error
    assert (tmp_path / "new.json").exists()


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "save over something else": (("--save", "a.onnx"), "--save a.onnx: that file is there and holds no saved bench"),
    "save nowhere": (("--save", "no/x.json"), "there is no folder 'no'"),
    "compare with a model": (("--compare", "a.onnx"), "a.onnx is no saved bench"),
    "compare with nothing": (("--compare", "x.json"), "x.json: cannot be read"),
    "a shape": (("--shape", "x=1,a"), "--shape 'x=1,a' is not allowed; write NAME=1,3,224,224"),
    "time": (("--time", "soon"), "time 'soon' is not a duration"),
    "precise": (("--precise", "very"), "--precise 'very' is not allowed; write a percentage, as 0.5%"),
    "too precise": (("--precise", "0.01%"), "precision 0.01 % is not allowed; it is between 0.1 % and 20 %"),
    "data": (("--data", "a.onnx"), "--data a.onnx is no .npz file"),
    "no data": (("--data", "x.npz"), "--data x.npz: cannot be read"),
    "a target twice": (("--target", "fake"), "target 'fake' is given 2 times"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line_before_anything_is_measured(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(targets.FakeTarget, "measure", lambda *_, **__: pytest.fail("measured"))
    options, said = WRONG[name]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    status, out, error = bench("a.onnx", "--target", "fake", *options)
    assert (status, out) == (2, "")
    [text] = error.strip().splitlines()
    assert said in text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_shares_and_inputs_are_read(tmp_path: Path) -> None:
    assert [parse_share(text) for text in (None, "0.5%", "2")] == [None, pytest.approx(0.005), pytest.approx(0.02)]
    assert read_inputs(None) is None
    np.savez(tmp_path / "d.npz", x=np.ones(3))
    found = read_inputs(str(tmp_path / "d.npz"))
    assert found is not None
    assert found["x"].tolist() == [1, 1, 1]
    np.savez(tmp_path / "objects.npz", x=np.array([{}, None], dtype=object))
    with pytest.raises(RequestError, match="npz file of plain arrays"):
        read_inputs(str(tmp_path / "objects.npz"))


def test_shape_and_data_reach_the_runtime(bench: Bench, tmp_path: Path) -> None:
    quick = ("--time", "0.2s", "--precise", "20%")
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3, 8, 8), np.float32))
    status, out, _ = bench("a.onnx", "b.onnx", "--data", "d.npz", *quick, "--json")
    assert (status, json.loads(out)["asked"]["inputs"]) == (0, ["x"])
    status, out, _ = bench("a.onnx", "--shape", "4,3,8,8", *quick, "--json")
    assert (status, json.loads(out)["asked"]["shapes"]) == (0, {"x": [4, 3, 8, 8]})
    status, out, error = bench("a.onnx", "--shape", "4,3,8,9", *quick)
    assert (status, out) == (2, "")
    assert "does not fit the model's ?x3x8x8" in error


# -- on a board


ABSENT = ("torch", "onnx", "optuna", "scipy", "sklearn", "jinja2", "plotly", "cattrs", "greenlet")
BLOCK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def test_bench_needs_only_numpy_onnxruntime_click_and_rich(models: list[str], tmp_path: Path) -> None:
    """Here and in the worker processes, which read ``sitecustomize`` as well."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)

    assert "No module named 'torch'" in run("-c", "import torch").stderr, "the block blocks"
    command = ("-P", "-m", "compress.commands.command_line", "bench", *models[:2], "--time", "0.2s", "--precise", "20%")
    for more in (("--save", "s.json"), ("--compare", "s.json", "--json"), ()):
        done = run(*command, *more)
        assert done.returncode in (0, 3), done.stderr
        assert "b.onnx" in done.stdout

"""Saved benches: what is read, what is refused, and which differences count."""

from __future__ import annotations

import copy
import errno
import json
from pathlib import Path
from typing import Any

import pytest

from targets.benches import regressions
from targets.errors import RequestError


def entry(path: str, ratio: float, half: float = 0.01, **more: Any) -> dict[str, Any]:
    """An entry of a timed model, a millisecond being the first one's time; ``half`` is the interval's half width."""
    ends = [ratio * (1 - half), ratio * (1 + half)] if ratio != 1 else [1.0, 1.0]
    times = [1e-3 * ratio, 1e-3 * ratio * 0.99, 1e-3 * ratio * 1.01]
    known = {"target": "t", "path": path, "ratio": ratio, "low": ends[0], "high": ends[1], "instructions": None}
    return {**known, "fastest": times, "sha256": f"sha of {path}", **more}


def document(*entries: dict[str, Any], cpu: str = "A", shapes: dict[str, list[int]] | None = None) -> dict[str, Any]:
    return {
        "schema": 1,
        "environment": {"cpu": "the host"},
        "targets": {"t": {"machine": {"cpu": cpu}}},
        "asked": {"shapes": shapes or {}},
        "results": list(entries),
    }


BASE = entry("base.onnx", 1.0)


def verdicts(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one.path, one.by, one.verdict) for one in regressions.changes(then, now)]


@pytest.mark.parametrize(
    ("ratio", "half", "verdict"),
    [
        (0.50, 0.01, "unchanged"),
        (0.513, 0.001, "unchanged"),  # disjoint, but within 3 %
        (0.56, 0.12, "unchanged"),  # far, but not disjoint
        (0.56, 0.01, "regression"),
        (0.45, 0.01, "improvement"),
    ],
)
def test_ratios_to_the_same_first_model_are_compared(ratio: float, half: float, verdict: str) -> None:
    then = document(BASE, entry("small.onnx", 0.5, min(half, 0.01)))
    now = document(BASE, entry("small.onnx", ratio, half))
    assert verdicts(then, now) == [("small.onnx", "ratio", verdict)]
    [change] = regressions.changes(then, now)
    assert change.factor == pytest.approx(ratio / 0.5)
    assert json.loads(json.dumps(change.to_json()))["verdict"] == verdict


def test_a_ratio_that_holds_is_no_regression_however_slow_the_machine() -> None:
    now = document(*({**one, "fastest": [5e-3, 5e-3, 5e-3]} for one in (BASE, entry("small.onnx", 0.5))))
    assert verdicts(document(BASE, entry("small.onnx", 0.5)), now) == [("small.onnx", "ratio", "unchanged")]


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.1, "unchanged"), (1.2, "regression"), (0.9, "unchanged"), (0.8, "improvement")]
)
def test_without_a_common_first_model_times_are_compared_with_a_wide_tolerance(factor: float, verdict: str) -> None:
    alone = {**BASE, "fastest": [factor * value for value in BASE["fastest"]], "sha256": "another"}
    assert verdicts(document(BASE), document(alone)) == [("base.onnx", "time", verdict)]
    both = document(alone, entry("small.onnx", 0.5))
    assert verdicts(document(BASE, entry("small.onnx", 0.5)), both) == [
        ("base.onnx", "time", verdict),
        ("small.onnx", "time", "unchanged"),
    ]


def test_a_model_that_took_the_first_place_is_compared_by_time() -> None:
    small = entry("small.onnx", 0.5)
    then, now = document(BASE, small), document({**small, "ratio": 1.0, "low": 1.0, "high": 1.0})
    assert verdicts(then, now) == [("small.onnx", "time", "unchanged")]


@pytest.mark.parametrize("name", ["instructions", "cycles"])
@pytest.mark.parametrize(("count", "verdict"), [(1000, "unchanged"), (1002, "regression"), (998, "improvement")])
def test_counts_are_compared_exactly_and_on_any_cpu(name: str, count: int, verdict: str) -> None:
    then = document({**BASE, name: 1000, "fastest": None})
    now = document({**BASE, name: count, "fastest": None}, cpu="B")
    assert verdicts(then, now) == [("base.onnx", name, verdict)]


def test_models_are_matched_by_path_then_name_then_content() -> None:
    then = document(BASE, entry("old/small.onnx", 0.5), entry("other/tiny.onnx", 0.2))
    now = document(
        BASE,
        entry("new/small.onnx", 0.6),
        entry("renamed.onnx", 0.2, sha256="sha of other/tiny.onnx"),
        entry("unheard.onnx", 0.2),
    )
    assert verdicts(then, now) == [
        ("new/small.onnx", "ratio", "regression"),
        ("renamed.onnx", "ratio", "unchanged"),
        ("unheard.onnx", "", "not compared"),
    ]


def test_the_path_decides_where_a_name_occurs_twice() -> None:
    then = document(BASE, entry("a/m.onnx", 0.5), entry("b/m.onnx", 0.7))
    now = document(BASE, entry("b/m.onnx", 0.7), entry("c/m.onnx", 0.7))
    assert verdicts(then, now) == [("b/m.onnx", "ratio", "unchanged"), ("c/m.onnx", "", "not compared")]


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (document(BASE, entry("small.onnx", 0.5), cpu="B"), "measured on A, this is B"),
        (document(entry("unheard.onnx", 1.0)), "has no unheard.onnx, only base.onnx, small.onnx"),
        (document({**BASE, "target": "elsewhere"}), "has no target elsewhere, only t"),
        (document(BASE, shapes={"x": [1, 3]}), "made with no --shape, this one with --shape x=1,3"),
    ],
)
def test_a_check_that_checks_nothing_does_not_pass(now: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        regressions.changes(document(BASE, entry("small.onnx", 0.5)), now)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    regressions.save_bench(path, document(BASE))
    assert regressions.read_saved(path) == document(BASE)
    regressions.save_bench(path, document(BASE, entry("small.onnx", 0.5)))
    assert len(regressions.read_saved(path)["results"]) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["bench.json"]


def broken(**changes: Any) -> str:
    found = copy.deepcopy(document(BASE))
    found["results"][0] |= changes
    return json.dumps(found)


NO_BENCH = {
    "text": "hello",
    "bytes": "\x00\x01",
    "a list": "[]",
    "nothing": "{}",
    "a report": json.dumps({"schema": 1, "environment": {}, "candidates": []}),
    "no results": json.dumps({"schema": 1, "environment": {}, "results": []}),
    "no ratio": broken(ratio=None),
    "a zero": broken(low=0),
    "NaN": broken(high=float("nan")),
    "no path": broken(path=3),
    "a word for a count": broken(instructions="many"),
    "two times": broken(fastest=[1, 2]),
    "a word for a time": broken(fastest=[1, "2", 3]),
}


@pytest.mark.parametrize("name", NO_BENCH)
def test_what_is_no_bench_is_said_and_left_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(NO_BENCH[name])
    with pytest.raises(RequestError, match=r"file\.json is no saved bench"):
        regressions.read_saved(path)
    with pytest.raises(RequestError, match="that file is there and holds no saved bench"):
        regressions.save_bench(path, document(BASE))
    assert path.read_text() == NO_BENCH[name]


def test_places_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no folder"):
        regressions.check_place(tmp_path / "nowhere" / "bench.json")
    with pytest.raises(RequestError, match="holds no saved bench"):
        regressions.check_place(tmp_path)
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        regressions.read_saved(tmp_path / "missing.json")
    later = tmp_path / "later.json"
    later.write_text(json.dumps({**document(BASE), "schema": 2}))
    with pytest.raises(RequestError, match="schema 2 is not known"):
        regressions.read_saved(later)


def test_a_disk_that_is_full_is_said_with_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(regressions, "write_text", full)
    with pytest.raises(RequestError, match=r"--save .*bench\.json: cannot be written: No space left on device$"):
        regressions.save_bench(tmp_path / "bench.json", {})

"""Nothing is computed twice, and nothing half made is ever found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.run_folder.caching import Cache


class Log:
    """What a cache told: (stage, cached)."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []

    def __call__(self, name: str, cached: bool, seconds: float) -> None:
        assert seconds >= 0
        self.told.append((name, cached))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def cache(tmp_path: Path, log: Log) -> Cache:
    return Cache(tmp_path / "cache", log)


def _writer(text: str, calls: list[str]) -> Callable[[Path], dict[str, Any]]:
    def compute(folder: Path) -> dict[str, Any]:
        calls.append(text)
        (folder / "file.txt").write_text(text)
        return {"text": text, "pair": (1, 2)}

    return compute


def test_the_same_inputs_are_computed_once(cache: Cache, log: Log) -> None:
    calls: list[str] = []
    first = cache.stage("export", 1, {"a": 1, "b": 2}, _writer("x", calls))
    again = cache.stage("export", 1, {"b": 2, "a": 1}, _writer("y", calls))
    assert calls == ["x"]
    assert first == again
    assert first.info == {"text": "x", "pair": [1, 2]}, "fresh results read as cached ones do"
    assert (again.folder / "file.txt").read_text() == "x"
    assert log.told == [("export", False), ("export", True)]


@pytest.mark.parametrize(
    ("name", "version", "inputs"), [("bind", 1, {"a": 1}), ("export", 2, {"a": 1}), ("export", 1, {"a": 2})]
)
def test_anything_else_is_another_result(cache: Cache, name: str, version: int, inputs: dict[str, Any]) -> None:
    calls: list[str] = []
    cache.stage("export", 1, {"a": 1}, _writer("x", calls))
    assert cache.get(name, version, inputs) is None
    assert cache.stage(name, version, inputs, _writer("y", calls)).info["text"] == "y"
    assert calls == ["x", "y"]


def test_another_process_finds_it(cache: Cache, log: Log) -> None:
    calls: list[str] = []
    cache.stage("export", 1, {}, _writer("x", calls))
    other = Cache(cache.root, log)
    assert other.stage("export", 1, {}, _writer("y", calls)).info["text"] == "x"


def test_failures_are_told_and_not_kept(cache: Cache, log: Log) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.stage("export", 1, {}, fail)
    assert list((cache.root / "export").iterdir()) == []
    assert cache.get("export", 1, {}) is None
    assert log.told == [("export", False)]
    assert cache.stage("export", 1, {}, _writer("x", [])).info["text"] == "x"


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"'])
def test_a_damaged_result_is_made_again(cache: Cache, content: str) -> None:
    calls: list[str] = []
    made = cache.stage("export", 1, {}, _writer("x", calls))
    (made.folder / "result.json").write_text(content)
    assert cache.stage("export", 1, {}, _writer("y", calls)).info["text"] == "y"
    assert (made.folder / "file.txt").read_text() == "y"


def test_results_computed_together_can_be_put(cache: Cache, log: Log) -> None:
    cache.put("measure", 1, {"m": "a"}, {"p50": float("nan")})
    found = cache.get("measure", 1, {"m": "a"})
    assert found is not None
    assert found.info == {"p50": None}
    assert log.told == [("measure", True)]


def test_what_is_not_stored_is_counted_as_well(cache: Cache, log: Log) -> None:
    with pytest.raises(ValueError, match="no"), cache.timed("teacher"):
        raise ValueError("no")
    assert log.told == [("teacher", False)]


def test_sweeping_removes_what_a_killed_process_left(cache: Cache) -> None:
    cache.stage("export", 1, {"a": 1}, _writer("x", []))
    left = cache.root / "export" / ".making-abc"
    left.mkdir()
    (left / "half").write_text("")
    cache.sweep()
    assert not left.exists()
    assert cache.get("export", 1, {"a": 1}) is not None


@pytest.mark.parametrize("damage", [b"", b"other", None], ids=["emptied", "changed", "gone"])
def test_a_result_whose_file_is_not_as_it_was_written_is_made_again(cache: Cache, damage: bytes | None) -> None:
    def compute(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_bytes(b"right")
        return {"loss": 1.0}

    path = cache.stage("train", 1, {"a": 1}, compute).folder / "weights"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    assert cache.get("train", 1, {"a": 1}) is None
    again = cache.stage("train", 1, {"a": 1}, compute)
    assert again.info == {"loss": 1.0}
    assert path.read_bytes() == b"right"


def test_a_result_that_was_changed_afterwards_is_computed_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, lambda *_: None)
    made = cache.stage("s", 1, {"a": 1}, lambda _: {"value": 1})
    (made.folder / "result.json").write_text('{"value": 2}')
    assert cache.get("s", 1, {"a": 1}) is None
    assert cache.stage("s", 1, {"a": 1}, lambda _: {"value": 3}).info == {"value": 3}
    (made.folder / "result.sha256").unlink()  # as older versions left it
    assert cache.get("s", 1, {"a": 1}) is not None


def test_two_that_make_the_same_at_once_keep_the_first(tmp_path: Path) -> None:
    """While one is making a result another one puts the same there; who reads that goes on reading."""
    first, second = Cache(tmp_path, lambda *_: None), Cache(tmp_path, lambda *_: None)

    def slowly(folder: Path) -> dict[str, Any]:
        def quickly(made: Path) -> dict[str, Any]:
            (made / "file").write_text("second")
            return {"by": "second"}

        there = second.stage("stage", 1, {"of": 1}, quickly)
        held.append((there.folder / "file").open())
        (folder / "file").write_text("first")
        return {"by": "first"}

    held: list[Any] = []
    found = first.stage("stage", 1, {"of": 1}, slowly)
    assert found.info == {"by": "second"}
    assert (found.folder / "file").read_text() == held[0].read() == "second"
    assert [path.name for path in found.folder.parent.iterdir()] == [found.folder.name]
    held[0].close()


def test_what_is_put_twice_stays_readable(tmp_path: Path) -> None:
    cache = Cache(tmp_path, lambda *_: None)
    for value in (1, 2):
        cache.put("measure", 1, {"of": 1}, {"value": value})
    found = cache.get("measure", 1, {"of": 1})
    assert found is not None
    assert found.info == {"value": 1}

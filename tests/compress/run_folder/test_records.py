"""The record: what is appended is what is read, whatever moment the writer was killed at."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.run_folder.facts import Facts, Skipped, Unconfirmed
from compress.run_folder.records import Record, State
from compress.values.candidates import Candidate
from compress.values.serialization import to_json
from targets.errors import RunError
from targets.target import Capabilities

Make = Callable[..., Candidate]


def fill(record: Record, make: Make) -> None:
    """A little of everything."""
    record.append("call", pid=1)
    record.append("candidate", candidate=make("baseline"))
    record.append("fact", name="groups", value=["0", "3"])
    record.append("asked", trial=0, params={"prune_ratio": 0.5}, system_attrs={"generation": 0})
    record.append("stage", stage="finetune", cached=False, seconds=1.5)
    record.append("stage", stage="finetune", cached=True, seconds=0.1)
    record.append("finished", trial=0, candidates=[make("0000-fp32"), make("0000-int8")], seconds=2.0)
    record.append("asked", trial=1, params={"prune_ratio": 0.9})
    record.append("gated", trial=1, known={"fake": {"ratio": 2.0}})
    record.append("asked", trial=2, params={"prune_ratio": 0.1})
    record.append("failed", trial=2, stage="finetune", cause="NaN", transient=True)


@pytest.fixture
def path(tmp_path: Path, candidate: Make) -> Path:
    """A record with one of everything."""
    record = Record(tmp_path / "record.jsonl")
    fill(record, candidate)
    record.close()
    return record.path


def test_what_was_appended_is_what_is_read_again(path: Path, candidate: Make) -> None:
    for write in (True, False):
        record = Record(path, write=write)
        state = record.state
        assert [trial.state for trial in state.trials.values()] == ["finished", "gated", "failed"]
        assert state.trials[0].params == {"prune_ratio": 0.5}
        assert state.trials[0].system_attrs == {"generation": 0}
        assert state.trials[0].candidates == ["0000-fp32", "0000-int8"]
        assert state.trials[1].known == {"fake": {"ratio": 2.0}}
        assert state.trials[2].failure is not None
        assert state.trials[2].failure.cause == "NaN"
        assert state.trials[2].transient
        assert state.candidates["0000-int8"] == candidate("0000-int8")
        assert state.facts == Facts(groups=("0", "3"))
        assert state.stages["finetune"] == {"count": 1, "cached": 1, "seconds": 1.6}
        if write:
            record.close()


def test_a_record_may_be_torn_at_any_byte(path: Path, candidate: Make) -> None:
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    before = Record(_written(path, b"".join(lines[:-1])), write=False).state
    for length in range(len(lines[-1])):  # every byte of the last line but its line break
        torn = b"".join(lines[:-1]) + lines[-1][:length]
        assert asdict(Record(_written(path, torn), write=False).state) == asdict(before), length
        assert path.read_bytes() == torn, "reading must not change the file"
    record = Record(path)
    assert path.read_bytes() == b"".join(lines[:-1])
    assert asdict(record.state) == asdict(before)
    record.append("candidate", candidate=candidate("0007-fp32"))
    record.close()
    assert "0007-fp32" in Record(path, write=False).state.candidates


def _written(path: Path, text: bytes) -> Path:
    path.write_bytes(text)
    return path


@pytest.mark.parametrize(
    "line", [b"{not json}\n", b"[]\n", b"7\n", b'{"event":"finished","trial":99}\n', b"\x00\x00\n"]
)
def test_damage_before_the_end_is_said_with_its_line(path: Path, line: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:3], line, *lines[3:]])
    path.write_bytes(damaged)
    for write in (False, True):
        with pytest.raises(RunError, match=r"record\.jsonl' is damaged in line 4; .*--out"):
            Record(path, write=write)
    assert path.read_bytes() == damaged
    path.write_bytes(b"".join(lines))
    Record(path).close()  # the failed attempts have let go of the lock


def test_one_search_at_a_time_but_readers_are_free(path: Path) -> None:
    first = Record(path)
    with pytest.raises(RunError, match="is in use by another search"):
        Record(path)
    assert Record(path, write=False).state.count("finished") == 1
    first.close()
    Record(path).close()


def test_a_record_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Record(tmp_path / "file" / "record.jsonl")


def test_wall_time_adds_up_over_calls() -> None:
    state = State()
    for t, event in ((0.0, "call"), (1.0, "fact"), (4.0, "fact"), (0.5, "call"), (2.0, "fact")):
        state.apply({"event": event, "t": t, "name": "x", "value": 1})
    assert state.wall == pytest.approx(4.0 + 2.0)
    assert state.calls == 2


def test_a_retried_trial_is_asked_again_and_may_finish(path: Path, candidate: Make) -> None:
    record = Record(path)
    record.append("retry", trial=2)
    assert record.state.trials[2].state == "asked"
    record.append("finished", trial=2, candidates=[candidate("0002-fp32")], seconds=1.0)
    record.close()
    state = Record(path, write=False).state
    assert (state.count("finished"), state.count("failed")) == (2, 0)


_NAMES = st.text(max_size=6)
_FACTS = st.one_of(
    st.tuples(st.sampled_from(["warnings", "groups"]), st.lists(_NAMES, max_size=3), st.just(())),
    st.tuples(st.just("blocks"), st.integers(0, 99), st.just(())),
    st.tuples(st.just("architecture"), _NAMES, st.just(())),
    st.tuples(st.just("abilities"), st.dictionaries(_NAMES, st.builds(Capabilities), max_size=2), st.just(())),
    st.tuples(st.just("learning_rates"), st.tuples(*[st.floats(1e-6, 1.0)] * 2), st.just(())),
    st.tuples(st.just("skipped"), st.lists(st.builds(Skipped), max_size=2), st.just(())),
    st.tuples(st.just("unconfirmed"), st.lists(st.builds(Unconfirmed), max_size=2), st.just(())),
    st.tuples(st.just("scored_on_host"), st.lists(_NAMES, max_size=2), st.tuples(_NAMES)),
    st.tuples(
        st.just("disagreements"),
        st.tuples(*[st.integers(0, 99)] * 3),
        st.tuples(_NAMES, st.text("0123-abc", max_size=5)),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(facts=st.lists(_FACTS, max_size=6))
def test_any_facts_come_back_as_they_were_taken_in(
    tmp_path: Path, facts: list[tuple[str, Any, tuple[str, ...]]]
) -> None:
    path = tmp_path / "facts.jsonl"
    path.unlink(missing_ok=True)
    record = Record(path)
    for name, value, of in facts:
        record.note(name, value, *of)
        found = getattr(record.state.facts, name)
        if of:
            found = found[of if len(of) > 1 else of[0]]
        assert found == (tuple(value) if isinstance(value, list) else value)
    record.close()
    assert path.read_bytes().count(b"\n") == len(facts)
    assert Record(path, write=False).state.facts == record.state.facts


def test_only_known_facts_are_written_and_unknown_ones_pass_by(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    with pytest.raises(KeyError, match="weather"):
        record.note("weather", "fine")
    record.append("fact", name="weather", value="fine")
    record.close()
    assert Record(tmp_path / "record.jsonl", write=False).state.facts == Facts()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("groups", 3), ("blocks", "two"), ("skipped", [["x"]]), ("unconfirmed", 1),
        ("disagreements|fake|0001-fp32", [1, 2]), ("learning_rates", [1.0]), ("abilities", {"fake": {"x": 1}}),
    ],
)  # fmt: skip
def test_a_fact_that_does_not_fit_is_damage(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text(json.dumps({"event": "fact", "name": name, "value": value}) + "\n")
    with pytest.raises(RunError, match="is damaged in line 1"):
        Record(path, write=False)


def test_disagreements_are_told_apart_whatever_the_target_is_called(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    record.note("disagreements", (1, 2, 3), "ssh:host=a|b", "0001-fp32")
    record.append("fact", name="disagreements|fake|0002-int8", value=[4, 5, 6])
    record.close()
    assert record.state.facts.disagreements == {
        ("ssh:host=a|b", "0001-fp32"): (1, 2, 3),
        ("fake", "0002-int8"): (4, 5, 6),
    }


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"event": "fact", "name": "\\ud800", "value": 1}',
        b"9" * 5000,
        b'{"event": "x", "t": ' + b"9" * 400 + b"}",
    ],
)
def test_lines_that_no_reader_bears_are_damage(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "record.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(RunError, match="is damaged in line 1"):
        Record(path, write=False)


@pytest.mark.parametrize(
    ("name", "path"), [("../../x", None), ("/etc", None), ("", None), ("1", "../../secret"), ("1", "/etc/passwd")]
)
def test_a_candidate_lies_in_its_run(tmp_path: Path, candidate: Any, name: str, path: str | None) -> None:
    made = replace(candidate("0001-int8"), id=name, **({} if path is None else {"path": path}))
    file = tmp_path / "record.jsonl"
    file.write_text(json.dumps({"event": "candidate", "candidate": to_json(made)}) + "\n")
    with pytest.raises(RunError, match="is damaged in line 1"):
        Record(file, write=False)


class Full:
    """A file on a disk that takes ``room`` more bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = int(self._file.write(data[: self._room]))
        self._room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_line_that_a_full_disk_does_not_take_leaves_the_record_as_it_was(path: Path, room: int) -> None:
    record = Record(path)
    before, file = path.read_bytes(), record._file
    record._file = Full(file, room)  # type: ignore[assignment]  # all that is asked of it is there
    with pytest.raises(OSError, match="No space left"):
        record.note("blocks", 7)
    assert path.read_bytes() == before
    record._file = file
    record.note("blocks", 8)
    record.close()
    assert Record(path, write=False).state.facts.blocks == 8


def test_a_record_that_was_removed_while_it_was_opened_is_not_written_to(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Record, "_lock", lambda self: self.path.unlink())
    with pytest.raises(RunError, match="was removed by another search just now"):
        Record(path)


def test_a_trial_that_is_asked_again_has_no_candidates(path: Path, candidate: Make) -> None:
    record = Record(path)
    record.append("finished", trial=2, candidates=[candidate("0002-fp32")], same=["0000-fp32"], seconds=1.0)
    record.append("retry", trial=2)
    record.append("finished", trial=2, candidates=[candidate("0002-int8")], seconds=1.0)
    record.append("moved", target="fake", candidates=[candidate("0002-int8", ratio=0.25)])
    record.close()
    state = Record(path, write=False).state
    assert state.trials[2].candidates == ["0002-int8"]
    assert "0002-fp32" not in state.candidates
    assert "0000-fp32" in state.candidates, "another trial's, which this one came to as well"
    assert state.candidates["0002-int8"].measured["fake"].latency.ratio == 0.25  # type: ignore[union-attr]


@pytest.mark.parametrize("write", [True, False])
def test_a_folder_is_no_record(tmp_path: Path, write: bool) -> None:
    (tmp_path / "record.jsonl").mkdir()
    with pytest.raises(RunError, match=r"record\.jsonl' is not a file; choose another --out"):
        Record(tmp_path / "record.jsonl", write=write)

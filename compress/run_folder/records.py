"""What happened in a run: an append-only file of ours, one JSON line an event.

It is the truth that everything else is rebuilt from. A line is on disk before its event counts; a torn last line
(kill -9 while writing) is cut off on opening. One process writes: the file is locked while a search runs.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from compress.run_folder.facts import Facts, fact_line
from compress.values.candidates import Candidate, Failure
from compress.values.serialization import from_json, to_json
from compress.values.time_limits import undisturbed
from targets.documents import finite, parse_json
from targets.errors import RunError, SpaceError

try:
    import fcntl
except ImportError:  # Windows has no flock; there two searches in one folder are not kept apart
    fcntl = None  # type: ignore[assignment]


@dataclass
class Span:
    """A time in which a worker carried out a trial."""

    worker: int
    """From 0."""
    call: int
    """Which call of the search it was, from 1."""
    begun: float
    """Seconds since that call began; so is ``ended``."""
    ended: float | None = None
    """None: it was not ended."""


@dataclass
class Trial:
    """What the record knows of one trial."""

    number: int
    params: dict[str, Any]
    system_attrs: dict[str, Any] = field(default_factory=dict)
    state: str = "asked"
    """``asked``, ``gated``, ``failed`` or ``finished``."""
    candidates: list[str] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)
    """For a gated trial: size and, per target, the best latency ratio that was measured."""
    seconds: float = 0.0
    failure: Failure | None = None
    transient: bool = False
    after: int | None = None
    """The trial whose trained network it trains further; None: it begins with the baseline's weights."""
    precisions: tuple[str, ...] | None = None
    """Those that are made of its network; None: all."""
    why: dict[str, Any] = field(default_factory=dict)
    """What was expected of it before it was trained, where networks are chosen by their costs."""
    train_drop: float | None = None
    """Of the metric on train examples, by its network against the baseline, where that was read."""
    train_seconds: float = 0.0
    """What its training took; 0 where it was there already."""
    spans: list[Span] = field(default_factory=list)
    """Who has carried it out and when; several where a worker was lost, or a call ended before it."""


@dataclass
class State:
    """All that a record says, folded."""

    trials: dict[int, Trial] = field(default_factory=dict)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    wall: float = 0.0
    calls: int = 0
    _elapsed: float = 0.0
    """Seconds of the newest call at its newest event."""

    def count(self, state: str) -> int:
        """How many trials are in ``state`` (``asked``, ``gated``, ``failed`` or ``finished``).

        A network that is trained further counts once.
        """
        return sum(trial.state == state and trial.after is None for trial in self.trials.values())

    @property
    def asked(self) -> int:
        """How many trials were asked for; a network that is trained further counts once."""
        return sum(trial.after is None for trial in self.trials.values())

    def apply(self, event: dict[str, Any]) -> None:
        """Take one event of the record in; raises KeyError, ValueError or SpaceError where it does not fit."""
        kind = event["event"]
        if kind == "call":
            self.calls += 1
            self._elapsed = 0.0
        elif kind == "asked":
            self._ask(event)
        elif kind == "begun":
            span = Span(event["worker"], self.calls, float(event.get("t", 0.0)))
            self.trials[event["trial"]].spans.append(span)
        elif kind in ("gated", "failed", "finished"):
            self._end(kind, event)
        elif kind == "completed":
            self._end("finished", event)
            trial = self.trials[event["trial"]]
            trial.precisions = (*(trial.precisions or ()), *event["precisions"])
        elif kind == "retry":
            self._ask_again(self.trials[event["trial"]])
        elif kind == "candidate":
            candidate = _candidate(event["candidate"])
            self.candidates[candidate.id] = candidate
        elif kind == "moved":
            found = [from_json(Candidate, data) for data in event["candidates"]]
            self.candidates |= {candidate.id: candidate for candidate in found}
        elif kind == "fact":
            self.facts = self.facts.taken(event["name"], event["value"])
        elif kind == "stage":
            row = self.stages.setdefault(event["stage"], {"count": 0, "cached": 0, "seconds": 0.0})
            row["cached" if event["cached"] else "count"] += 1
            row["seconds"] += event["seconds"]
        elapsed = float(event.get("t", 0.0))
        self.wall += max(0.0, elapsed - self._elapsed)
        self._elapsed = max(self._elapsed, elapsed)

    def _ask(self, event: dict[str, Any]) -> None:
        precisions = event.get("precisions")
        self.trials[event["trial"]] = Trial(
            event["trial"], event["params"], event.get("system_attrs", {}), after=event.get("after"),
            precisions=None if precisions is None else tuple(precisions), why=event.get("why", {}),
        )  # fmt: skip

    def _ask_again(self, trial: Trial) -> None:
        """A trial counts as if it had just been asked; what it had brought is no candidate any more."""
        for name in trial.candidates:
            if name in self.candidates and self.candidates[name].trial == trial.number:
                del self.candidates[name]
        trial.state, trial.candidates = "asked", []

    def _end(self, kind: str, event: dict[str, Any]) -> None:
        trial = self.trials[event["trial"]]
        trial.state = kind
        trial.seconds = event.get("seconds", 0.0)
        if trial.spans and trial.spans[-1].call == self.calls:
            trial.spans[-1].ended = float(event.get("t", 0.0))
        if kind == "finished":
            for data in event["candidates"]:
                candidate = _candidate(data)
                self.candidates[candidate.id] = candidate
                trial.candidates.append(candidate.id)
            trial.candidates += event.get("same", [])
            trial.train_drop, trial.train_seconds = event.get("train_drop"), event.get("train_seconds", 0.0)
        elif kind == "gated":
            trial.known = event["known"]
        else:
            trial.failure = Failure(trial.number, event["stage"], event["cause"])
            trial.transient = bool(event.get("transient"))


def _candidate(data: Any) -> Candidate:
    """A candidate out of the record; raises SpaceError where it is none, ValueError where its file lies elsewhere."""
    candidate = from_json(Candidate, data)
    # What is read here is copied by `pick` and written into: it may not lead out of the run.
    for name in (candidate.id, candidate.path or "model.onnx"):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{name!r} does not lie in the run's folder")
    return candidate


class Record:
    """The open file, and the state it adds up to."""

    def __init__(self, path: Path, *, write: bool = True) -> None:
        """Open for writing (locked, a torn last line cut off), or only read.

        Raises RunError if it cannot be written, is in use by another search, or is damaged.
        """
        self.path = path
        self.state = State()
        self._start = time.perf_counter()
        if path.exists() and not path.is_file():
            raise RunError(f"{str(path)!r} is not a file; choose another --out")
        if not write:
            self._fold(path.read_bytes() if path.exists() else b"")
            return
        try:
            # Without a buffer: what a full disk did not take must not be written later, behind other lines.
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise RunError(f"{str(path)!r} cannot be written: {error.strerror}; choose another --out") from None
        try:
            self._lock()
            self._check_place()
            self._file.seek(0)
            whole = self._file.read()
            self._fold(whole)
            end = whole.rfind(b"\n") + 1
            if end < len(whole):
                self._file.truncate(end)
            self._file.seek(0, os.SEEK_END)
        except BaseException:
            self._file.close()
            raise

    def append(self, event: str, **values: Any) -> None:
        """Write one event and take it into the state; it is on disk when this returns.

        Raises OSError where it cannot be written (a full disk): the record is then as it was before.
        """
        entry = {"event": event, "t": round(time.perf_counter() - self._start, 4), **finite(to_json(values))}
        line = json.dumps(entry, separators=(",", ":")) + "\n"
        with undisturbed():  # what is on disk is what the state says
            self._write(line.encode())
            if event != "stage":  # losing a stage's timing to a power cut is no loss
                os.fsync(self._file.fileno())
            self.state.apply(json.loads(line))

    def _write(self, line: bytes) -> None:
        """The whole line or nothing of it: half a line in front of others would make the record unreadable."""
        end = os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line) :]
        except BaseException:
            self._file.truncate(end)
            raise

    def note(self, name: str, value: Any, *of: str) -> None:
        """Write one fact (``Facts``): ``name`` is its field, ``of`` what it is kept for, where it is kept for each."""
        self.append("fact", **fact_line(name, value, of))

    def close(self) -> None:
        """Let go of the file and its lock."""
        if not self._file.closed:
            self._file.close()

    def _fold(self, text: bytes) -> None:
        """Take in every whole line; what follows the last line break is torn, or is just being written."""
        for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), 1):
            try:
                self.state.apply(parse_json(line))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, SpaceError):
                raise RunError(
                    f"{str(self.path)!r} is damaged in line {number}; restore it, or choose another --out"
                ) from None

    def _check_place(self) -> None:
        """Raise RunError where the file was removed between opening and locking: what is written would be lost."""
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except OSError:
            same = False
        if not same:
            raise RunError(f"{str(self.path)!r} was removed by another search just now; give the same command again")

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{str(self.path.parent)!r} is in use by another search; wait for it, or choose another --out"
            ) from None
        except OSError:
            return  # a file system without locks: there two searches are not kept apart

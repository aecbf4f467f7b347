"""Confirmation where timing or reading fails: what is said, what is tried, and when there is nobody to ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from compress.selection import rankings
from compress.stages import confirming
from compress.values.candidates import Candidate
from targets.errors import MeasurementError, StageError, TransientError
from targets.target import Protocol

Make = Callable[..., Candidate]


@dataclass(frozen=True)
class Question:
    baseline: Candidate
    disagreements: Any = None


@pytest.fixture
def read(candidate: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[str], list[Any]]]:
    """Reads the picks on test, each of which fails as it is told; what was read, and what was noted of it."""
    known = {name: candidate(name, test=0.0) for name in ("baseline", "0001-int8", "0002-int8")}

    def run(*errors: Exception | None, unread: tuple[str, ...] = ("0001-int8", "0002-int8")) -> tuple[list[str], Any]:
        told, asked, noted = list(errors), list[str](), list[Any]()
        waiting = {which: known[name] for which, name in zip(rankings.PICKS, unread, strict=False)}

        def choose(which: str, *_: Any) -> tuple[None, Candidate | None]:
            one = waiting.get(which)
            return None, None if one is None or one.id in done else one

        def score(_: Any, __: Any, one: Candidate) -> None:
            asked.append(one.id)
            error = told.pop(0)
            if error is not None:
                raise error
            done.add(one.id)

        done: set[str] = set()
        monkeypatch.setattr(confirming, "_remeasure", lambda *_: None)
        monkeypatch.setattr(confirming.picks, "choose", choose)
        monkeypatch.setattr(confirming, "_read_test", score)
        monkeypatch.setattr(confirming, "_note", lambda _, one, text: noted.append((one.id, text)))
        facts = SimpleNamespace(unconfirmed=(), disagreements=None)
        state = SimpleNamespace(facts=facts, candidates=known)
        run_ = SimpleNamespace(record=SimpleNamespace(state=state), state=state, available=lambda: list(known.values()))
        context: Any = SimpleNamespace(
            run=run_, test=object(), baseline=SimpleNamespace(candidate=known["baseline"]),
            targets=SimpleNamespace(all=[SimpleNamespace(name="fake")]),
        )  # fmt: skip
        question: Any = Question(known["baseline"])
        try:
            confirming.confirm(context, question, Protocol(), lambda _: None)
        finally:
            read_.extend(asked)
        return asked, noted

    read_: list[str] = []
    run.read = read_  # type: ignore[attr-defined]
    return run


def test_a_pick_that_cannot_be_read_takes_no_other_with_it(read: Any) -> None:
    asked, noted = read(MeasurementError("crashed"), None)
    assert asked == ["0001-int8", "0002-int8"]
    assert noted == [("0001-int8", "0001-int8 could not be read on test on fake: crashed")]


def test_where_no_pick_can_be_read_the_first_cause_is_said(read: Any) -> None:
    with pytest.raises(StageError, match=r"^no pick could be read on test on fake: crashed$"):
        read(MeasurementError("crashed"), MeasurementError("hung"))
    assert read.read == ["0001-int8", "0002-int8"]


def test_a_device_that_is_gone_is_not_asked_pick_after_pick(read: Any) -> None:
    """Once may be chance; twice, with nothing read before, it is the device."""
    with pytest.raises(TransientError, match=r"^gone again$"):
        read(TransientError("gone"), TransientError("gone again"), unread=("0001-int8", "0002-int8", "0001-int8"))
    assert read.read == ["0001-int8", "0002-int8"]
    asked, _ = read(None, TransientError("gone"))
    assert asked == ["0001-int8", "0002-int8"]

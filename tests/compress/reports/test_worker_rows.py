"""Who did what when: bars in their places, idle time, calls in a row."""

from __future__ import annotations

from typing import Any

import pytest

from compress.reports.worker_rows import worker_rows


def span(
    trial: int, worker: int, begun: float, ended: float | None, call: int = 1, train: float = 0.0
) -> dict[str, Any]:
    return {
        "trial": trial, "state": "finished", "worker": worker, "call": call, "begun": begun, "ended": ended,
        "train_seconds": train,
    }  # fmt: skip


def report(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"environment": {"workers": list(spans)}}


def test_bars_lie_where_the_trials_were() -> None:
    rows = worker_rows(report(span(0, 0, 10.0, 20.0), span(1, 1, 15.0, 30.0, train=12.0), span(2, 0, 20.0, 25.0)))
    assert [row["name"] for row in rows] == ["worker 1", "worker 2"]
    assert [row["trials"] for row in rows] == [2, 1]
    assert [row["idle"] for row in rows] == ["25 %", "25 %"]
    assert [row["training"] for row in rows] == ["0 %", "60 %"]
    assert [(bar["left"], bar["width"]) for bar in rows[0]["bars"]] == [(0.0, 50.0), (50.0, 25.0)]
    assert rows[1]["bars"][0]["left"] == pytest.approx(25.0)
    assert rows[1]["bars"][0]["text"] == "trial 1, finished: 15 s, of these 12 s of training"


def test_calls_follow_one_another_and_what_was_never_ended_is_left_out() -> None:
    rows = worker_rows(report(span(0, 0, 0.0, 10.0), span(1, 1, 0.0, None), span(1, 1, 0.0, 10.0, call=2)))
    [bar] = rows[1]["bars"]
    assert (bar["left"], bar["width"]) == (50.0, 50.0)


def test_one_worker_has_no_rows() -> None:
    assert worker_rows({"environment": {}}) == []
    assert worker_rows(report()) == []

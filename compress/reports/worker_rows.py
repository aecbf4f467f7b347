"""Who carried out what and when, where a search had several workers: rows of bars, one row a worker."""

from __future__ import annotations

from typing import Any

from compress.reports.formatting import format_percent
from compress.reports.reading import Report
from compress.values.durations import format_duration

View = dict[str, Any]


def worker_rows(report: Report) -> list[View]:
    """A row for each worker: bars (``left``, ``width`` in percent of the time), and the shares it trained and was idle.

    The time goes from the first trial that was begun to the last one that ended, all calls of the search in a row.
    Empty where there was one worker.
    """
    spans = report["environment"].get("workers") or []
    placed = _placed(spans)
    if not placed:
        return []
    first = min(begun for _, begun, _ in placed)
    whole = max(max(ended for *_, ended in placed) - first, 1e-9)
    rows = []
    for worker in sorted({span["worker"] for span, *_ in placed}):
        mine = [(span, begun, ended) for span, begun, ended in placed if span["worker"] == worker]
        busy = sum(ended - begun for _, begun, ended in mine)
        bars = [
            {
                "left": 100 * (begun - first) / whole,
                "width": 100 * (ended - begun) / whole,
                "state": span["state"],
                "text": f"trial {span['trial']}, {span['state']}: {format_duration(ended - begun)}, of these "
                f"{format_duration(span['train_seconds'])} of training",
            }
            for span, begun, ended in mine
        ]
        trained = sum(span["train_seconds"] for span, *_ in mine)
        rows.append({
            "name": f"worker {worker + 1}", "bars": bars, "trials": len(mine),
            "training": format_percent(min(1.0, trained / whole)), "idle": format_percent(max(0.0, 1 - busy / whole)),
        })  # fmt: skip
    return rows


def _placed(spans: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float, float]]:
    """(span, begin, end) in seconds since the first call began; what was never ended is left out."""
    ended = [span for span in spans if span["ended"] is not None]
    starts, start = {}, 0.0
    for call in sorted({span["call"] for span in ended}):
        starts[call] = start
        start += max(span["ended"] for span in ended if span["call"] == call)
    return [(span, starts[span["call"]] + span["begun"], starts[span["call"]] + span["ended"]) for span in ended]

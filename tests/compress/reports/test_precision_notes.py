"""What is said of a target beside its front: sentences with the right numbers, and none where nothing is worth one."""

from __future__ import annotations

from typing import Any

import pytest

from compress.reports.target_notes import notes


def _report(*measured: dict[str, Any], picked: int | None = None) -> dict[str, Any]:
    """Candidates of int8 beside a baseline, each with what was measured of it on ``t`` and what its file has lost."""
    latency = {"p50": 1.0, "p95": 1.0, "ratio": 1.0, "low": 1.0, "high": 1.0, "runs": 1}
    candidates = []
    for trial, one in enumerate(({"scheme": "fp32"}, *measured)):
        config = {"precision": {"scheme": one.get("scheme", "int8")}, "widths": {"a": 8}}
        if "lost_in" in one:
            config["fidelity"] = {"lost_in": one["lost_in"]}
        here = {"latency": {**latency, **one.get("latency", {})}, "instructions": None, "integer": one.get("integer")}
        here["scored_on_host"] = one.get("scored_on_host", {})
        name = "baseline" if trial == 0 else f"{trial:04}-int8"
        candidates.append({"id": name, "trial": trial, "size": 1, "config": config, "measured": {"t": here}})
    picks = {"t": {} if picked is None else {"knee": {"id": candidates[picked]["id"], "verdict": "open"}}}
    return {"baseline": "baseline", "candidates": candidates, "picks": picks, "front": {"t": []}, "constraints": []}


def _disturbed(*shares: float) -> dict[str, Any]:
    return _report(*({"latency": {"disturbed": share}} for share in shares))


def test_nothing_is_said_of_nothing() -> None:
    assert notes(_report({}, {}), "t") == []


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (["the head"], "1 quantized candidate lost much of what the float network says, as `0001-int8`: the head."),
        (
            ["the stem", "", "the head", "the head"],
            "3 quantized candidates lost much of what the float network says, as `0003-int8`: the head.",
        ),
    ],
)
def test_files_that_lost_much_are_counted_and_the_most_frequent_reason_is_told(lost: list[str], said: str) -> None:
    assert notes(_report(*({"lost_in": one} for one in lost)), "t") == [said]


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((0.26, 0.3), "2 of 3 measurements on t were disturbed: other work held up or slowed the CPU in up to 30 %"),
        ((0.26,), ""),
        ((0.25, 0.25, 0.3), ""),
        ((0.3, 0.3, *[0.0] * 5), "2 of 8 measurements"),
        ((0.3, 0.3, *[0.0] * 6), ""),
    ],
)
def test_a_busy_machine_is_told_where_many_measurements_show_it(shares: tuple[float, ...], said: str) -> None:
    found = notes(_disturbed(*shares), "t")
    assert len(found) == bool(said)
    assert "".join(found).startswith(said)


def test_who_scored_in_a_boards_place_is_told_with_the_worst_agreement() -> None:
    checks = [{"val": {"agreement": 0.98, "n": 64}}, {"test": {"agreement": 0.96, "n": 64}}]
    assert notes(_report(*({"scored_on_host": check} for check in checks)), "t") == [
        "Quality on val and test was computed on this machine from the same files, since t is too slow for it; on "
        "64 examples that both computed, they decided alike in 96 % or more."
    ]


@pytest.mark.parametrize(
    ("integer", "why", "rest"),
    [
        (5, [], ""),
        (4, ["its bias is not", "b", "c"], "; the other: its bias is not, b"),
        (3, ["its bias is not"], "; the others: its bias is not"),
        (5, ["left over"], ""),
    ],
)
def test_what_runs_in_integers_is_told_of_picks(integer: int, why: list[str], rest: str) -> None:
    share = {"layers": 5, "integer": integer, "why": why}
    report = _report({"integer": share}, {"integer": share}, picked=1)
    assert notes(report, "t") == [
        f"`0001-int8` runs {integer} of its 5 convolutions and matrix products in integers{rest}."
    ]
    assert notes(_report({"integer": share, "scheme": "int8-weights"}, picked=1), "t") == []
    assert notes(_report({"integer": {**share, "layers": 0}}, picked=1), "t") == []

"""The tables of the command line: they fit, they are plain in a pipe, and they say what the report says."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

import report_fixture as fixture
from compress.reports import tables
from report_fixture import TARGET


def printed(show: Callable[[Console], None]) -> str:
    """What ``show`` writes where there is no terminal."""
    file = io.StringIO()
    show(Console(file=file, force_terminal=False))
    return file.getvalue()


def line(text: str, start: str) -> str:
    return next(row for row in text.splitlines() if row.startswith(start))


@pytest.mark.parametrize("variant", fixture.VARIANTS)
def test_picks_and_front_fit_in_120_columns_without_colours(variant: str) -> None:
    report = fixture.VARIANTS[variant]()
    text = printed(lambda console: tables.print_picks(report, console))
    text += printed(lambda console: tables.print_front(report, console))
    assert max(len(row) for row in text.splitlines()) <= 120
    assert "\x1b" not in text


def test_a_row_of_picks_stays_on_one_line_and_agrees_with_the_report() -> None:
    report = fixture.report()
    text = printed(lambda console: tables.print_picks(report, console))
    name = report["picks"][TARGET]["most_accurate"]["id"]
    here = next(one for one in report["candidates"] if one["id"] == name)["measured"][TARGET]
    row = line(text, "most accurate").split()
    assert row[2] == name
    assert row[3] == f"{100 * here['quality']['val']['value']:.1f}"
    assert "confirmed" in row
    assert f"{here['latency']['ratio']:.2f}x" in row
    assert line(text, "baseline").split()[1] == "baseline"
    assert "was chosen before for fastest, and test refuted it" in text
    assert "knee: " in text
    assert "cannot be told from it in speed and accuracy." in text


def test_verdicts_have_colours_on_a_terminal() -> None:
    file = io.StringIO()
    tables.print_picks(fixture.report(), Console(file=file, force_terminal=True, color_system="standard", width=160))
    coloured = re.findall(r"\x1b\[(\d+)m(\w+) *\x1b\[0m", file.getvalue())
    assert set(coloured) == {("33", "open"), ("32", "confirmed")}


def test_picks_that_found_nothing_are_dashes_under_the_nearest_miss() -> None:
    text = printed(lambda console: tables.print_picks(fixture.unsatisfied(), console))
    assert "the nearest miss is 0004-int8" in text
    assert line(text, "fastest").split() == ["fastest", "\N{EN DASH}"]


def test_the_front_is_in_the_reports_order_with_the_picks_marked() -> None:
    report = fixture.report()
    text = printed(lambda console: tables.print_front(report, console))
    names = [row.split()[0] for row in text.splitlines() if row[:4].isdigit()]
    assert names[: len(report["front"][TARGET])] == report["front"][TARGET]
    assert "most accurate" in line(text, report["picks"][TARGET]["most_accurate"]["id"])


def test_what_stands_in_for_refuted_members_is_shown_below_the_front() -> None:
    report = copy.deepcopy(fixture.report())
    first, second = report["front"][TARGET][:2]
    report["front"][TARGET] = [first]
    for pick in report["picks"][TARGET].values():
        pick |= {"id": second, "verdict": "open", "refuted": [first]}
    text = printed(lambda console: tables.print_front(report, console))
    assert [row.split()[0] for row in text.splitlines() if row[:4].isdigit()] == [first, second]
    assert line(text, first).rstrip().endswith("refuted on test")
    assert "fastest, knee" in line(text, second)


@pytest.mark.parametrize("count", ["instructions", "cycles"])
def test_the_front_of_one_target_only(count: str) -> None:
    text = printed(lambda console: tables.print_front(fixture.two_targets(count), console, fixture.PHONE))
    assert f"on {fixture.PHONE}" in text
    assert f"on {TARGET}" not in text
    assert count in text
    assert "6.49 M" in line(text, "baseline")


def test_targets_name_the_command_that_brings_what_is_missing() -> None:
    listed = [
        {"name": "ort-cpu", "available": True, "description": "ONNX Runtime", "install": "pip install onnxruntime"},
        {"name": "openvino-cpu", "available": False, "description": "OpenVINO", "install": "pip install 'p[openvino]'"},
    ]
    text = printed(lambda console: tables.print_targets(listed, console))
    assert "pip install 'p[openvino]'" in line(text, "openvino-cpu")
    assert "pip" not in line(text, "ort-cpu")


def test_recipes_are_listed() -> None:
    text = printed(lambda console: tables.print_recipes([{"name": "digits", "description": "8x8 digits"}], console))
    assert "8x8 digits" in line(text, "digits")

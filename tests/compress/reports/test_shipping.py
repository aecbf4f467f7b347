"""Which file goes to which device, of a run on several targets."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

import report_fixture as fixture
from compress.reports import pages, reading, tables
from compress.reports.shipping import shipped
from report_fixture import PHONE, TARGET

TITLE = "which file goes to which device"


def printed(report: dict[str, Any]) -> str:
    """What the command line prints of the picks."""
    file = io.StringIO()
    tables.print_picks(report, Console(file=file, force_terminal=False))
    return file.getvalue()


def test_one_device_needs_no_such_table() -> None:
    assert shipped(fixture.report()) == []
    assert TITLE not in printed(fixture.report())
    assert "Which file goes" not in pages.render(fixture.report())


def test_every_device_has_a_row_with_its_fastest_and_what_that_network_costs_elsewhere() -> None:
    report = fixture.two_targets()
    rows = {one.target: one for one in shipped(report)}
    assert list(rows) == [TARGET, PHONE]
    for target, one in rows.items():
        assert one.row.candidate is not None
        assert one.row.candidate["id"] == report["picks"][target]["fastest"]["id"]
        assert one.network == one.row.candidate["trial"]
        for other, cost in one.elsewhere.items():
            within = [
                reading.cost_ratio(report, c, other, reading.main_cost(report, other))
                for c in report["candidates"]
                if c["trial"] == one.network and c["measured"].get(other, {}).get("feasible")
            ]
            costs = [c.value for c in within if c is not None]
            if other != target:
                assert (cost.value if cost is not None else None) == min(costs, default=None)
    text = printed(report)
    assert TITLE in text
    below = text[text.index(TITLE) :]
    for target, one in rows.items():
        assert one.row.candidate is not None
        assert f"{target} " in below
        assert one.row.candidate["id"] in below
    assert "Which file goes to which device" in pages.render(report)


def test_what_no_file_of_a_network_can_do_elsewhere_stays_open() -> None:
    report = fixture.two_targets()
    chosen = next(one for one in shipped(report) if one.target == TARGET)
    for one in report["candidates"]:
        if one["trial"] == chosen.network and PHONE in one["measured"]:
            one["measured"][PHONE]["feasible"] = False
    again = next(one for one in shipped(report) if one.target == TARGET)
    assert again.elsewhere[PHONE] is None
    assert again.elsewhere[TARGET] is not None

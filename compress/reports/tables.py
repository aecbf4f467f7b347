"""The tables of the command line: picks, front, targets and recipes, for people to read.

They hold what the page holds, fit in 120 columns, and are plain text where stdout is not a terminal. Text from
outside (ids, paths, descriptions) is never read as rich's markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.reports import outcomes, reading, target_notes
from compress.reports.formatting import MISSING, format_count, format_fixed, format_seconds, format_size
from compress.reports.reading import Candidate, PickRow, Report
from compress.reports.shipping import Shipped, shipped
from compress.values.printable import printable
from targets.target import COUNTS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 120
"""Columns used where there is no terminal to ask, as in a pipe or a log file."""
_STYLES = {"confirmed": "green", "refuted": "red", "open": "yellow", "no": "yellow"}


def _table(columns: Iterable[tuple[str, str]], title: str | None = None) -> Table:
    """An empty table; a column is its heading and ``<`` or ``>`` for the side its text keeps to."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(title)) if title else None,
        title_justify="left",
        title_style="bold",
        header_style="",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        padding=(0, 1),
    )
    for heading, side in columns:
        # Names stay whole, so that they can be copied; numbers give way to a second line first.
        name = heading in ("pick", "id", "target", "recipe", "device")
        table.add_column(
            Text(printable(heading, keep="\n")),
            justify="right" if side == ">" else "left",
            overflow="fold",
            no_wrap=name,
        )
    return table


def _add(table: Table, cells: Sequence[str]) -> None:
    from rich.text import Text

    table.add_row(*(Text(printable(cell), style=_STYLES.get(cell.partition(" ")[0], "")) for cell in cells))


def plain_table(columns: Iterable[tuple[str, str]], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table of texts; a column is its heading and ``<`` or ``>`` for the side its text keeps to."""
    table = _table(columns, title)
    for row in rows:
        _add(table, row)
    return table


def show(console: Console, *parts: Table | str) -> None:
    """Print tables and lines; where there is no terminal the console is widened, as rich would take 80 columns."""
    from rich.text import Text

    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    for part in parts:
        console.print(Text(printable(part)) if isinstance(part, str) else part)


def _bracketed(value: str, interval: str) -> str:
    return f"{value} [{interval}]" if interval and interval != MISSING else value


def _drop(report: Report, target: str, candidate: Candidate, split: str) -> str:
    """``0.3 [-0.7 to 1.4]``: the drop on one split, without its unit."""
    written, here = reading.quality_format(report, target), reading.on(candidate, target) or {}
    drop = here["quality_drop"].get(split)
    if drop is None or candidate["id"] == report["baseline"]:
        return MISSING
    return _bracketed(written.points(drop["value"]), written.interval(drop["low"], drop["high"]))


def _quality(report: Report, target: str, candidate: Candidate, split: str) -> str:
    quality = (reading.on(candidate, target) or {})["quality"].get(split)
    return reading.quality_format(report, target).value(quality["value"] if quality else None)


def _ratio(report: Report, target: str, candidate: Candidate, cost: str) -> str:
    ratio = reading.cost_ratio(report, candidate, target, cost)
    if ratio is None:
        return MISSING
    return ratio.text if candidate["id"] == report["baseline"] else _bracketed(ratio.text, ratio.interval)


def _amount(target: str, candidate: Candidate, cost: str) -> str:
    """The absolute figure behind the ratio: p50, instructions, cycles or bytes of memory."""
    here = reading.on(candidate, target) or {}
    if cost in COUNTS:
        return format_count(here.get(cost))
    if cost == "memory":
        return format_size(here.get("memory"))
    return format_seconds(here["latency"]["p50"]) if here.get("latency") else MISSING


def _cost_columns(cost: str) -> list[tuple[str, str]]:
    """Headings of the ratio and of what is behind it; where only the size is known that has its column already."""
    return {
        "latency": [("latency\nx", ">"), ("p50", ">")],
        **{name: [(f"{name}\nx", ">"), ("count", ">")] for name in COUNTS},
        "memory": [("memory\nx", ">"), ("arena", ">")],
        "size": [("size\nx", ">")],
    }[cost]


def _cost_cells(report: Report, target: str, candidate: Candidate, cost: str) -> list[str]:
    cells = [_ratio(report, target, candidate, cost)]
    return cells if cost == "size" else [*cells, _amount(target, candidate, cost)]


def picks_table(report: Report, target: str) -> Table:
    """The baseline and the four picks on ``target``; the precision is part of an id."""
    written, cost = reading.quality_format(report, target), reading.main_cost(report, target)
    unit = "\npoints" if written.percent else ""
    columns = [
        *(("pick", "<"), ("id", "<"), (f"{written.metric}\nval", ">"), ("\ntest", ">"), (f"drop on test{unit}", ">")),
        *(("verdict", "<"), *_cost_columns(cost), ("size", ">")),
    ]
    table = _table(columns, title=f"on {target}")
    for row in (PickRow("baseline", reading.baseline(report)), *reading.pick_rows(report, target)):
        label = row.pick.replace("_", " ")
        if row.candidate is None:
            _add(table, [label, MISSING])
            continue
        _add(
            table,
            [
                label,
                row.candidate["id"],
                *(_quality(report, target, row.candidate, split) for split in ("val", "test")),
                _drop(report, target, row.candidate, "test"),
                row.verdict,
                *_cost_cells(report, target, row.candidate, cost),
                format_size(row.candidate["size"]),
            ],
        )
    return table


def shipping_table(report: Report, rows: Sequence[Shipped]) -> Table:
    """A row for every device with the file that goes to it, and what its network costs on each of them."""
    columns = [("device", "<"), ("id", "<"), ("test", ">"), ("verdict", "<"), ("size", ">"), ("network", ">")]
    columns += [(f"{one.target}\n{reading.main_cost(report, one.target)}, x", ">") for one in rows]
    table = _table(columns, title="which file goes to which device, and what its network costs on each")
    for one in rows:
        candidate = one.row.candidate or reading.baseline(report)
        costs = [one.elsewhere.get(other.target) for other in rows]
        _add(
            table,
            [
                one.target,
                candidate["id"],
                _quality(report, one.target, candidate, "test"),
                one.row.verdict,
                format_size(candidate["size"]),
                MISSING if one.network is None else str(one.network),
                *(MISSING if cost is None else cost.text for cost in costs),
            ],
        )
    return table


def print_picks(report: Report, console: Console) -> None:
    """Print for every target the outcome in a sentence, the table of picks, and what a reader should know besides.

    Where there are several targets, a table of them all comes last.
    """
    for target in reading.target_names(report):
        if reading.on(reading.baseline(report), target) is None:
            continue
        told = [*outcomes.refutations(report, target), *outcomes.ties(report, target)]
        told += [*filter(None, [outcomes.weak_baseline(report, target)]), *target_notes.notes(report, target)]
        lines = [line.replace("`", "") for line in told]
        sentence = outcomes.outcome(report, target).replace("`", "")
        show(console, sentence, "", picks_table(report, target), *lines, "")
    rows = shipped(report)
    if rows:
        show(console, shipping_table(report, rows), "paretopress pick RUN --target DEVICE copies a file out.", "")


def front_table(report: Report, target: str) -> Table:
    """The front on ``target``, best quality first, with the baseline above it and the picks marked.

    Picks that stand in for what was refuted on test, and are on no front of val, come last.
    """
    written, cost = reading.quality_format(report, target), reading.main_cost(report, target)
    unit = "\npoints" if written.percent else ""
    candidates, zero = reading.by_id(report), reading.baseline(report)
    picked: dict[str, list[str]] = {zero["id"]: ["baseline"]}
    front = report["front"].get(target, [])
    for row in reading.pick_rows(report, target):
        if row.candidate is not None:
            picked.setdefault(row.candidate["id"], []).append(row.pick.replace("_", " "))
    shown = dict.fromkeys([zero["id"], *front, *picked])
    for name in dict.fromkeys(name for row in reading.pick_rows(report, target) for name in _refuted(row)):
        picked.setdefault(name, []).append("refuted on test")
    columns = [
        *(("id", "<"), (f"{written.metric}\nval", ">"), (f"drop on val{unit}", ">"), *_cost_columns(cost)),
        *(("size", ">"), ("precision", "<"), ("pruning\nratio", ">"), ("", "<")),
    ]
    table = _table(columns, title=f"on {target}")
    for name in shown:
        candidate = candidates[name]
        _add(
            table,
            [
                name,
                _quality(report, target, candidate, "val"),
                _drop(report, target, candidate, "val"),
                *_cost_cells(report, target, candidate, cost),
                format_size(candidate["size"]),
                reading.precision(candidate),
                format_fixed(reading.pruning_ratio(candidate), 2),
                ", ".join(picked.get(name, [])),
            ],
        )
    return table


def _refuted(row: reading.PickRow) -> list[str]:
    """Ids of what was read on test for a pick and is refuted there, the pick itself included where it is."""
    own = [row.candidate["id"]] if row.candidate is not None and row.verdict == "refuted" else []
    return [*row.refuted, *own]


def print_front(report: Report, console: Console, target: str | None = None) -> None:
    """Print the front on ``target``, or on every target where it is None."""
    for name in [target] if target is not None else reading.target_names(report):
        if reading.on(reading.baseline(report), name) is not None:
            show(console, front_table(report, name), "")


def print_targets(listed: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print a table of targets, dicts of ``name``, ``available``, ``description`` and ``install`` (a command)."""
    table = _table([("target", "<"), ("available", "<"), ("what it is", "<"), ("to install it", "<")])
    for row in listed:
        install = "" if row["available"] else row.get("install") or ""
        _add(table, [row["name"], "yes" if row["available"] else "no", row.get("description") or "", install])
    show(console, table)


def print_recipes(listed: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print a table of recipes, which are dicts of ``name`` and ``description``."""
    table = _table([("recipe", "<"), ("what it is", "<")])
    for row in listed:
        _add(table, [row["name"], row.get("description") or ""])
    show(console, table)

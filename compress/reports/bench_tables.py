"""The table of ``paretopress bench``, the sentences under it, and what has changed since a saved one.

It fits in the terminal, or in 120 columns: where it is narrow the columns that matter least are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.reports.formatting import (
    draw_bar,
    format_count,
    format_interval,
    format_percent,
    format_ratio,
    format_ratio_interval,
    format_seconds,
    format_significant,
    format_size,
)
from compress.values.printable import printable
from targets.benches.advice import short_names
from targets.benches.comparing import Ratio, tie_share
from targets.target import COUNTS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from targets.benches.regressions import Change

Entry = Mapping[str, Any]

WIDTH = 120
_GAP = 2
_NAME = 34
"""Columns a model's name may take."""
_STYLES = {"faster": "green", "slower": "red", "tied": "dim", "first": "", "regression": "red", "improvement": "green"}


@dataclass(frozen=True)
class _Column:
    """A column: heading, cells, and how soon it goes where there is no room (0 never)."""

    heading: str
    cells: tuple[str, ...]
    goes: int = 0
    left: bool = False
    least: int = 0

    @property
    def width(self) -> int:
        return max(self.least, *map(len, (*self.heading.split("\n"), *self.cells)))


def verdict(entry: Entry, first: Entry) -> str:
    """How ``entry`` compares with ``first``: ``first`` (it is the same), ``tied``, ``faster`` or ``slower``."""
    if entry is first:
        return "first"
    if Ratio(entry["ratio"], entry["low"], entry["high"], _tie(entry)).tied:
        return "tied"
    return "faster" if entry["ratio"] < 1 else "slower"


def _tie(entry: Entry) -> float:
    return tie_share(entry.get("p50"), entry.get("instructions"))


def _ratio(entry: Entry, first: Entry) -> str:
    value = format_ratio(entry["ratio"])
    exact = entry is first or entry["low"] == entry["high"]
    return value if exact else f"{value} [{format_ratio_interval(entry['low'], entry['high'])}]"


def _note(entry: Entry, first: Entry) -> str:
    """Ties, and integers that are none."""
    found = ["tied"] if verdict(entry, first) == "tied" else []
    audit = entry.get("audit")
    if audit:
        label, number = ("NPU", audit["npu"]) if "npu" in audit else ("int8", audit["integer"])
        found.append(f"{label} {number}/{audit['layers']}")
    return ", ".join(found)


def _columns(entries: Sequence[Entry], firsts: Sequence[Entry], names: Sequence[str]) -> list[_Column]:
    longest = max(1.0, *(entry["ratio"] for entry in entries))
    timed = any(entry.get("p50") is not None for entry in entries)
    pairs = list(zip(entries, firsts, strict=True))
    # Rows of several targets stand under the target's name, indented.
    titles = {entry["target"] for entry in entries}
    several = len(titles) > 1
    models = tuple(f"{'  ' * several}{_shortened(name)}" for name in names)
    columns = [_Column("model", models, left=True, least=max(map(len, map(_title, titles))) if several else 0)]
    if any(entry is not first for entry, first in pairs):
        columns += [
            _Column("ratio", tuple(_ratio(*pair) for pair in pairs)),
            _Column("", tuple(draw_bar(entry["ratio"], longest, 10) for entry in entries), goes=3, left=True),
        ]
    if timed:
        columns += [
            _Column("p50", _each(format_seconds, entries, "p50")),
            _Column("p95", _each(format_seconds, entries, "p95"), goes=4),
            _Column("first\nrun", _each(format_seconds, entries, "first"), goes=2),
            _Column("model\nload", _each(format_seconds, entries, "load_s"), goes=1),
        ]
    counted = [name for name in COUNTS if any(entry.get(name) is not None for entry in entries)]
    columns += [_Column(name, _each(format_count, entries, name)) for name in counted]
    columns += [
        _Column("memory", _each(format_size, entries, "memory"), goes=5),
        _Column("size", _each(format_size, entries, "size"), goes=6),
    ]
    if any(entry.get("flash") is not None for entry in entries):
        columns.append(_Column("flash", _each(format_size, entries, "flash"), goes=5))
    notes = tuple(_note(*pair) for pair in pairs)
    return [*columns, _Column("", notes, left=True)] if any(notes) else columns


def _each(show: Any, entries: Sequence[Entry], key: str) -> tuple[str, ...]:
    return tuple(show(entry.get(key)) for entry in entries)


def _title(target: str) -> str:
    return f"on {target}"


def _shortened(name: str) -> str:
    """The end of a name says more than its beginning."""
    return name if len(name) <= _NAME else "…" + name[1 - _NAME :]


def _fitting(columns: list[_Column], width: int) -> list[_Column]:
    """Without the columns that matter least, until the rest fits."""
    while sum(column.width + _GAP for column in columns) >= width + _GAP:
        loose = [column for column in columns if column.goes]
        if not loose:
            break
        columns.remove(min(loose, key=lambda column: column.goes))
    return columns


def bench_table(results: Sequence[Entry], width: int = WIDTH) -> Table:
    """One table for all targets, a group of rows for each, in the order given."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = short_names([Path(entry["path"]) for entry in results])
    firsts = [next(one for one in results if one["target"] == entry["target"]) for entry in results]
    several = len({entry["target"] for entry in results}) > 1
    columns = _fitting(_columns(results, firsts, names), width)
    table = Table(header_style="", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.collapse_padding = True
    if not several:
        table.title, table.title_justify, table.title_style = Text(_title(results[0]["target"])), "left", "bold"
    for column in columns:
        table.add_column(Text(column.heading), justify="left" if column.left else "right", no_wrap=True)
    for row, (entry, first) in enumerate(zip(results, firsts, strict=True)):
        if several and entry is first:
            table.add_row(Text(printable(_title(entry["target"])), style="bold"))
        style = _STYLES[verdict(entry, first)]
        table.add_row(
            *(Text(printable(one.cells[row]), style=style if one.heading == "ratio" else "") for one in columns)
        )
    return table


def sentences(results: Sequence[Entry]) -> list[str]:
    """A sentence on the fastest model of each target, and one on how the targets compare for the first model."""
    names = dict(zip(map(id, results), short_names([Path(entry["path"]) for entry in results]), strict=True))
    groups: dict[str, list[Entry]] = {}
    for entry in results:
        groups.setdefault(entry["target"], []).append(entry)
    lines = [_fastest(group, names, target if len(groups) > 1 else "") for target, group in groups.items()]
    return [line for line in [*lines, _across(groups, names)] if line]


def _fastest(group: Sequence[Entry], names: Mapping[int, str], target: str) -> str:
    first, best = group[0], min(group, key=lambda entry: entry["ratio"])
    where = f"on {target}: " if target else ""
    if len(group) == 1:
        return _alone(first, f"{where}{names[id(first)]}")
    if verdict(best, first) in ("first", "tied"):
        return f"{where}no model is faster than {names[id(first)]}, which came first."
    low, value, high = (1 / best[key] for key in ("high", "ratio", "low"))
    interval = "" if low == high else f" ({format_interval(low, high, _times)})"
    # Within the tie rule of the best: which of them it is would be chance.
    others = [one for one in group if one is not best and one is not first]
    near = [names[id(one)] for one in others if one["low"] <= best["ratio"] * (1 + _tie(best))]
    also = f"; {', '.join(near)} cannot be told from it" if near else ""
    if best.get("p50") is None:
        share = format_percent(best["ratio"])
        counted = next((name for name in COUNTS if best.get(name) is not None), "memory")
        return f"{where}{names[id(best)]} takes {share} of the {counted} of {names[id(first)]}{also}."
    return f"{where}{names[id(best)]} is {_times(value)} times as fast as {names[id(first)]}{interval}{also}."


def _alone(entry: Entry, name: str) -> str:
    """Of a model without another to be compared with: how far its fastest runs lie apart."""
    if not entry.get("fastest"):
        return ""
    value, low, high = map(format_seconds, entry["fastest"])
    return f"{name}: fastest run {value}, from {low} to {high} in {_processes(entry['processes'])}."


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def _times(value: float | None) -> str:
    return format_significant(value, 3)


def _across(groups: Mapping[str, Sequence[Entry]], names: Mapping[int, str]) -> str:
    timed = [(group[0]["p50"], target) for target, group in groups.items() if group[0].get("p50") is not None]
    if len(timed) < 2:
        return ""
    ordered = sorted(timed)
    rest = ", ".join(f"{format_seconds(p50)} on {target}" for p50, target in ordered[1:])
    name = names[id(next(iter(groups.values()))[0])]
    return (
        f"{name}: p50 {format_seconds(ordered[0][0])} on {ordered[0][1]}, {rest}; "
        "timed one target after the other, so not paired: only large differences count."
    )


def machine_line(document: Mapping[str, Any]) -> str:
    """One line of a ``bench --json`` document: the machine, the versions, the batch or shapes, the number of runs."""
    machine, packages = document["environment"], document["environment"].get("packages", {})
    described = [one.get("packages", {}) for one in document.get("targets", {}).values()]
    versions = {name: version for found in described for name, version in found.items() if name != "numpy"} or packages
    timed = [entry for entry in document["results"] if entry.get("runs")]
    parts = [f"{machine['cpu']}, {machine['cores']} cores", *(f"{name} {v}" for name, v in versions.items())]
    parts.append("batch 1" if not document["asked"]["shapes"] else _shapes(document["asked"]["shapes"]))
    if timed:
        processes = {entry["processes"] for entry in timed}
        runs = sum(entry["runs"] for entry in timed)
        parts.append(f"{format_count(runs)} runs in {_processes(max(processes))} each")
    return ", ".join(parts)


def _shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    return " ".join(f"{name}={'x'.join(map(str, sizes))}" for name, sizes in shapes.items())


def print_bench(document: Mapping[str, Any], changes: Sequence[Change], console: Console) -> None:
    """Print a document of ``bench --json``: the table, its conclusions, and what has changed since the saved one."""
    from rich.text import Text

    width = console.width if console.is_terminal else max(console.width, WIDTH)
    if not console.is_terminal:
        console.width = width
    console.print(bench_table(document["results"], width))
    console.print()
    for line in sentences(document["results"]):
        console.print(Text(printable(line)), soft_wrap=True)
    console.print(Text(printable(machine_line(document)), style="dim"), soft_wrap=True)
    for change in change_lines(changes):
        console.print(change, soft_wrap=True)


def change_lines(changes: Sequence[Change]) -> list[Text]:
    """One line for every model: what it was, what it is, and whether that is a change."""
    from rich.text import Text

    lines = []
    several = len({one.target for one in changes}) > 1
    for one, name in zip(changes, short_names([Path(one.path) for one in changes]), strict=True):
        label = f"{name} on {one.target}" if several else name
        style = _STYLES.get(one.verdict, "")
        lines.append(Text(printable(f"{one.verdict}: {label} {_moved(one)}"), style=style))
    return lines


def _moved(one: Change) -> str:
    if one.then is None or one.now is None or one.factor is None:
        return f"({one.why})"
    words = ("more", "fewer") if one.by in COUNTS else ("slower", "faster")
    share = f"{format_percent(abs(one.factor - 1))} {words[one.factor < 1]}"
    how = "no significant change" if one.verdict == "unchanged" else share
    if one.by in COUNTS:
        return f"{one.now[0]:,.0f} {one.by}, then {one.then[0]:,.0f}: {how}"
    if one.by == "time":
        wide = " (of absolute times only changes beyond 15 % count)" if one.verdict == "unchanged" else ""
        return f"{format_seconds(one.now[0])} at best, then {format_seconds(one.then[0])}: {how}{wide}"
    texts = [f"{format_ratio(v)} [{format_ratio_interval(low, high)}]" for v, low, high in (one.now, one.then)]
    return f"{texts[0]}, then {texts[1]}: {how}"

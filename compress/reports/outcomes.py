"""What came out of a run, in one sentence for each target: for the top of the page and the end of a search.

The sentence claims no more than the verdict does: a pick that is not confirmed is called open or refuted, a
ratio within the noise of two sessions of one model is called a tie, and where nothing was held out it says so.
Ids stand in backticks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from compress.reports import reading
from compress.reports.formatting import (
    format_count,
    format_ratio,
    format_seconds,
    format_significant,
    format_size,
    is_known,
)
from compress.reports.reading import PickRow, Report
from compress.selection.rankings import SAME_LATENCY
from compress.values.constraints import parse_constraint
from targets.errors import ConstraintError
from targets.target import COUNTS

VERDICTS = {
    "confirmed": "the whole 95 % interval of the drop on test is within the limit",
    "refuted": "the drop on test is beyond the limit",
    "open": "the drop on test is within the limit, but its interval is not: more test examples would be needed",
}

_ORDINALS = {2: "2nd", 3: "3rd"}


def outcome(report: Report, target: str, pick: str = "fastest") -> str:
    """One sentence on what the pick of that name gains on ``target``, and how far that is known."""
    zero = report["baseline"]
    if len(report["candidates"]) == 1:
        return "Only the baseline has been measured so far: there is no candidate yet."
    row = next(row for row in reading.pick_rows(report, target) if row.pick == pick)
    if row.candidate is None:
        return _nothing(report, target)
    if row.candidate["id"] == zero:
        best = pick.replace("_", " ")
        return f"No smaller model pays here: the baseline itself is the {best} that meets {_asked(report)}."
    return f"`{row.candidate['id']}` {_gain(report, row, target)}, {_quality(report, row, target)}."


def _asked(report: Report) -> str:
    return " and ".join(report["constraints"]) or "the constraints"


def _gain(report: Report, row: PickRow, target: str) -> str:
    """``runs in 0.37x of the baseline's time (0.36-0.38)``."""
    candidate = row.candidate or {}
    cost = reading.main_cost(report, target)
    ratio = reading.cost_ratio(report, candidate, target, cost)
    if ratio is None:
        return f"has {format_size(candidate['size'])}, its {cost} not being measured"
    told = f"{ratio.text} of the baseline's"
    if cost == "size":
        return f"has {told} size"
    if cost in (*COUNTS, "memory"):
        return f"takes {told} {cost}"
    spread = f" ({ratio.interval})" if ratio.interval else ""
    tie = ": a tie" if abs(ratio.value - 1) <= SAME_LATENCY else ""
    return f"runs in {told} time{spread}{tie}"


def _quality(report: Report, row: PickRow, target: str) -> str:
    """``accuracy changes by -0.3 points on test (n = 300): open, about 900 test examples would settle it``."""
    here = reading.on(row.candidate or {}, target) or {}
    written = reading.quality_format(report, target)
    split = "test" if here["quality"].get("test") and here["quality_drop"].get("test") else "val"
    drop = here["quality_drop"][split]["value"]
    change = -drop if reading.higher_is_better(report, target) else drop
    n = here["quality"][split]["n"]
    told = f"{written.metric} changes by {written.difference(change, signed=True)} on {split} (n = {n})"
    if split == "val":
        return f"{told}: open, nothing was held out"
    if row.verdict == "open" and row.needed:
        return f"{told}: open, about {examples(row.needed)} test examples would settle it"
    return f"{told}: {row.verdict}"


def weak_baseline(report: Report, target: str) -> str:
    """A warning where the most accurate pick is certainly better than the baseline by more than noise; else empty.

    A drop is counted against the baseline, so one that was not trained to its end hides what pruning costs.
    """
    row = next(row for row in reading.pick_rows(report, target) if row.pick == "most_accurate")
    here = reading.on(row.candidate or {"measured": {}}, target)
    if row.candidate is None or here is None or row.candidate["id"] == report["baseline"]:
        return ""
    split = "test" if here["quality_drop"].get("test") else "val"
    drop = here["quality_drop"][split]
    if not is_known(drop["high"]) or drop["high"] >= 0:
        return ""
    better = reading.quality_format(report, target).difference(-drop["value"])
    return (
        f"`{row.candidate['id']}` is better than the baseline, by {better} on {split}: the baseline was not trained to "
        "the end, so a drop against it says little. Train it longer and search again."
    )


def why_none(report: Report) -> str:
    """What stands in the table in place of a pick, where no candidate meets the constraints."""
    return "no candidate yet" if len(report["candidates"]) == 1 else "none meets the constraints"


def _nothing(report: Report, target: str) -> str:
    miss = report["nearest_miss"].get(target)
    told = f"No candidate meets {_asked(report)}"
    if not miss:
        return f"{told}."
    excesses = " and ".join(excess(report, target, text, by) for text, by in miss["by"].items() if by is None or by > 0)
    return f"{told}; the nearest miss is `{miss['id']}`" + (f", beyond {excesses}." if excesses else ".")


def excess(report: Report, target: str, text: str, by: float | None) -> str:
    """``quality_drop<=0.01 by 0.8 points``: how far beyond one constraint, in its own unit."""
    if by is None or not is_known(by):
        return f"{text} (not measured)"
    try:
        constraint = parse_constraint(text)
    except ConstraintError:
        return f"{text} by {format_significant(by)}"
    if constraint.relative:
        return f"{text} by {format_ratio(by)}"
    written = reading.quality_format(report, target)
    shown = {
        "quality": written.difference,
        "quality_drop": written.difference,
        "latency": format_seconds,
        "size": format_size,
        "memory": format_size,
    }.get(constraint.quantity, format_count)
    return f"{text} by {shown(by)}"


def examples(needed: int) -> str:
    """A number of examples that was extrapolated, rounded up to two digits.

    >>> examples(5997)
    '6,000'
    """
    step = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return f"{math.ceil(needed / step) * step:,}"


def standing(row: PickRow) -> str:
    """What stands beside a verdict: ``the 2nd choice; about 900 test examples needed``."""
    parts = [f"the {_ORDINALS.get(row.read, f'{row.read}th')} choice"] if row.read > 1 else []
    if row.verdict == "open" and row.needed:
        parts.append(f"about {examples(row.needed)} test examples needed")
    return "; ".join(parts)


def ties(report: Report, target: str) -> list[str]:
    """A line for each pick that others cannot be told apart from, in what it was picked for."""
    cost = reading.main_cost(report, target)
    speed = "speed" if cost == "latency" else cost
    metric = reading.quality_format(report, target).metric
    judged_by = {"smallest": "size", "most_accurate": metric, "knee": f"{speed} and {metric}"}
    return [
        f"{row.pick.replace('_', ' ')}: {_listed(row.tied_with)} cannot be told from it in "
        f"{judged_by.get(row.pick, speed)}."
        for row in reading.pick_rows(report, target)
        if row.tied_with
    ]


def _listed(names: tuple[str, ...], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"`{name}`" for name in names[:most]) + more


def refutations(report: Report, target: str) -> list[str]:
    """A line for each candidate that was chosen for a pick and refuted on test, so that another took its place."""
    candidates, written = reading.by_id(report), reading.quality_format(report, target)
    lines: dict[str, list[str]] = {}
    for row in reading.pick_rows(report, target):
        for name in row.refuted:
            lines.setdefault(name, []).append(row.pick.replace("_", " "))
    told = []
    for name, picks in lines.items():
        here: Mapping[str, Any] = reading.on(candidates.get(name, {"measured": {}}), target) or {}
        drop = (here.get("quality_drop") or {}).get("test")
        figures = ""
        if drop:
            spread = written.interval(drop["low"], drop["high"])
            figures = f": its drop on test is {written.difference(drop['value'])} [{spread}]"
        told.append(f"`{name}` was chosen before for {', '.join(picks)}, and test refuted it{figures}.")
    return told

"""The HTML report: one file that opens offline and requests nothing, for somebody who has to decide with it.

``view`` turns a report into text and numbers, ``page.html.j2`` lays them out (escaped by jinja2), and plotly.js is
inlined once. The page forbids itself all network access by a content security policy.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.reports import outcomes, reading, target_notes
from compress.reports.figures import front_figures
from compress.reports.formatting import (
    MISSING,
    QualityFormat,
    format_count,
    format_fixed,
    format_percent,
    format_seconds,
    format_size,
)
from compress.reports.reading import Candidate, PickRow, Report
from compress.reports.shipping import shipped
from compress.reports.worker_rows import worker_rows
from compress.values.durations import format_duration
from compress.values.printable import printable
from targets.target import COUNTS

if TYPE_CHECKING:
    from markupsafe import Markup

_NO_DAMAGE = 60.0
"""Decibels of signal to noise from which on int8 takes nothing."""
_MOST_DAMAGES = 30
"""Rows of what int8 takes; all are in report.json."""
Importances = Mapping[str, Mapping[str, float]]
View = dict[str, Any]

_ELSEWHERE = ("command", "warnings", "higher_is_better", "hypervolume", "int8_damage", "learnt", "beside", "workers")
"""Entries of a description that the page shows in another place, or that mean nothing alone."""
_MOST_CLASSES = 50
"""With more classes, a table of them would be longer than anybody reads; all are in report.json."""


def render(report: Report, *, importances: Importances | None = None, notes: Sequence[str] = ()) -> str:
    """The page for ``report`` (the document `report.json` of design.md).

    ``importances`` is objective -> hyperparameter -> share; ``notes`` are warnings that belong beside the result.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
    )
    environment.filters["code"] = _code
    template = environment.get_template("page.html.j2")
    page = view(report, importances=importances, notes=notes)
    return template.render(**page, figures=_embedded(page["targets"]), plotly=_script(get_plotlyjs()))


def write_page(
    path: Path | str, report: Report, *, importances: Importances | None = None, notes: Sequence[str] = ()
) -> Path:
    """Write the page to ``path`` in one step: a reader never sees half of it. Raises OSError as writing does."""
    path = Path(path)
    text = render(report, importances=importances, notes=notes)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp keeps the file to its owner; a report is as readable as any file made here.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def view(report: Report, *, importances: Importances | None = None, notes: Sequence[str] = ()) -> View:
    """All that the template shows, formatted; the figures are plotly figures as plain dictionaries."""
    names = [name for name in reading.target_names(report) if reading.on(reading.baseline(report), name)]
    return {
        "task": report["task"],
        "notes": list(notes),
        "facts": _facts(report),
        "targets": [_target(report, name) for name in names],
        "shipped": _shipped(report),
        "importances": [_importance(objective, shares) for objective, shares in (importances or {}).items() if shares],
        "int8_damage": _int8_damage(report),
        "stages": _stages(report),
        "workers": worker_rows(report),
        "wall": format_duration(report["wall_s"]),
        "trials": report["trials"],
        "failures": report["failures"],
        "objectives": report["objectives"],
        "constraints": report["constraints"],
        "command": report["environment"].get("command"),
        "environment": _described(report["environment"]),
        "machines": [(name, _described(described)) for name, described in report["targets"].items()],
        "verdicts": outcomes.VERDICTS,
    }


def _described(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Machine, versions and settings as (name, text), in units; what the page shows elsewhere is left out."""
    kept = {key: value for key, value in facts.items() if key not in _ELSEWHERE}
    if "memory" in kept:
        kept["memory"] = format_size(kept["memory"])
    for name in ("machine", "now"):
        if isinstance(kept.get(name), Mapping):
            kept[name] = dict(_described(kept[name]))
    if isinstance(kept.get("load"), list | tuple):
        kept["load"] = [format_fixed(value, 1) for value in kept["load"]]
    if "memory_available" in kept:
        kept["memory_available"] = format_size(kept["memory_available"])
    training = kept.get("training")
    if isinstance(training, Mapping):
        steps = {name: format_seconds(value) for name, value in (training.get("seconds") or {}).items()}
        kept["training"] = {**(training.get("mode") or {}), "step": steps}
    return reading.flatten(kept)


def _facts(report: Report) -> list[str]:
    """The line under the outcome."""
    number, trials = len(report["candidates"]) - 1, report["trials"]
    return [
        f"{number} candidate{'' if number == 1 else 's'} from {trials['finished']} finished trials",
        f"{format_duration(report['wall_s'])} in all",
        f"constraints: {', '.join(report['constraints']) or 'none'}",
        f"objectives: {', '.join(report['objectives'])}",
        f"seed {report['seed']}",
    ]


def _target(report: Report, target: str) -> View:
    cost = reading.main_cost(report, target)
    picks = reading.pick_rows(report, target)
    read = [row.candidate for row in picks if row.candidate is not None]
    return {
        "name": target,
        "outcome": outcomes.outcome(report, target),
        "warning": outcomes.weak_baseline(report, target),
        "figures": front_figures(report, target),
        "cost": cost,
        "timed": cost == "latency",
        "metric": reading.quality_format(report, target).metric,
        "higher": reading.higher_is_better(report, target),
        "held_out": reading.held_out(report, target),
        "picks": [_pick(report, target, PickRow("baseline", reading.baseline(report)))]
        + [_pick(report, target, row) for row in picks],
        "refutations": outcomes.refutations(report, target),
        "notes": target_notes.notes(report, target),
        "slices": _slices(report, target, [reading.baseline(report), *read]),
        "classes": _classes(target, [reading.baseline(report), *read]),
        "candidates": [_candidate(report, target, candidate) for candidate in reading.measured_on(report, target)],
    }


def _shipped(report: Report) -> View | None:
    """The table of which file goes to which device; None where there is one device only."""
    rows = shipped(report)
    if not rows:
        return None
    heads = [f"{one.target}: {reading.main_cost(report, one.target)}, x" for one in rows]
    found = []
    for one in rows:
        candidate = one.row.candidate or reading.baseline(report)
        test, _ = _qualities(report, one.target, candidate, "test")
        costs = [one.elsewhere.get(other.target) for other in rows]
        cells = [MISSING if cost is None else cost.text for cost in costs]
        found.append(
            {
                "target": one.target,
                "id": candidate["id"],
                "test": test,
                "verdict": one.row.verdict,
                "size": format_size(candidate["size"]),
                "network": MISSING if one.network is None else str(one.network),
                "costs": [(text, other is one) for text, other in zip(cells, rows, strict=True)],
            }
        )
    return {"heads": heads, "rows": found}


def _with_interval(value: str, interval: str) -> View:
    return {"value": value, "interval": interval}


def _qualities(report: Report, target: str, candidate: Candidate, split: str) -> tuple[View, View]:
    """Cells of the quality and of the drop on one split."""
    written, here = reading.quality_format(report, target), reading.on(candidate, target) or {}
    quality, drop = here["quality"].get(split), here["quality_drop"].get(split)
    missing = _with_interval(MISSING, "")
    return (
        _with_interval(written.value(quality["value"]), written.interval(quality["low"], quality["high"]))
        if quality
        else missing,
        _with_interval(written.difference(drop["value"]), written.interval(drop["low"], drop["high"]))
        if drop
        else missing,
    )


def _cost(report: Report, target: str, candidate: Candidate) -> View:
    """The cell of the ratio that stands for speed."""
    ratio = reading.cost_ratio(report, candidate, target, reading.main_cost(report, target))
    own = candidate["id"] == report["baseline"]
    return _with_interval(ratio.text, "" if own else ratio.interval) if ratio else _with_interval(MISSING, "")


def _amounts(report: Report, target: str, candidate: Candidate) -> View:
    """What costs and sizes are shown by, in the picks' table as in that of all candidates."""
    here = reading.on(candidate, target) or {}
    timed, cost = here.get("latency"), reading.main_cost(report, target)
    smaller = reading.cost_ratio(report, candidate, target, "size")
    return {
        "p50": format_seconds(timed["p50"]) if timed else MISSING,
        "count": format_count(here.get(cost)) if cost in COUNTS else MISSING,
        "size": _with_interval(format_size(candidate["size"]), smaller.text if smaller else ""),
        "parameters": format_count(candidate["parameters"]),
        "macs": format_count(candidate["macs"]),
        "precision": reading.precision(candidate),
    }


def _pick(report: Report, target: str, row: PickRow) -> View:
    label = row.pick.replace("_", " ")
    if row.candidate is None:
        return {"pick": label, "id": None, "why": outcomes.why_none(report)}
    own = row.pick == "baseline"
    val, _ = _qualities(report, target, row.candidate, "val")
    test, drop = _qualities(report, target, row.candidate, "test")
    path = row.candidate["path"]
    return {
        "pick": label,
        "id": row.candidate["id"],
        # A path within the run's folder, where the page lies; anything else is not made a link.
        "path": path if path and ":" not in path and not path.startswith("/") else None,
        "val": val,
        "test": test,
        "drop": _with_interval(MISSING, "") if own else drop,
        "verdict": row.verdict,
        "standing": outcomes.standing(row),
        "tied_with": row.tied_with,
        "ratio": _cost(report, target, row.candidate),
        **_amounts(report, target, row.candidate),
    }


def _slices(report: Report, target: str, candidates: Sequence[Candidate]) -> list[View]:
    """A table for each slicing: its values down, the picks across; a picked candidate stands once."""
    written = reading.quality_format(report, target)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    columns = list(dict.fromkeys(candidate["id"] for candidate in candidates))
    for candidate in candidates:
        slices = (reading.on(candidate, target) or {})["quality"].get("slices") or {}
        for name, values in slices.items():
            for value, quality in values.items():
                found.setdefault(name, {}).setdefault(str(value), {})[candidate["id"]] = quality
    return [
        {
            "name": name,
            "columns": columns,
            "rows": [
                {
                    "value": value,
                    "n": max(quality["n"] for quality in by_id.values()),
                    "cells": [_slice_cell(by_id.get(column), written) for column in columns],
                }
                for value, by_id in values.items()
            ],
        }
        for name, values in found.items()
    ]


def _classes(target: str, candidates: Sequence[Candidate]) -> View | None:
    """A table of F1 with precision and recall: classes down, the picks across; None where there are none, or many."""
    found = {c["id"]: (reading.on(c, target) or {})["quality"].get("classes") or {} for c in candidates}
    numbers = sorted({number for classes in found.values() for number in classes}, key=int)
    if not 0 < len(numbers) <= _MOST_CLASSES:
        return None
    return {
        "columns": list(found),
        "rows": [
            {
                "value": number,
                "n": max(classes[number]["n"] for classes in found.values() if number in classes),
                "cells": [_class_cell(classes.get(number)) for classes in found.values()],
            }
            for number in numbers
        ],
    }


def _class_cell(one: Mapping[str, Any] | None) -> View:
    if one is None:
        return _with_interval(MISSING, "")
    f1, precision, recall = (format_fixed(100 * one[name], 1) for name in ("f1", "precision", "recall"))
    return _with_interval(f"{f1} %", f"{precision} / {recall}")


def _slice_cell(quality: Mapping[str, Any] | None, written: QualityFormat) -> View:
    if quality is None:
        return _with_interval(MISSING, "")
    return _with_interval(written.value(quality["value"]), written.interval(quality["low"], quality["high"]))


def _candidate(report: Report, target: str, candidate: Candidate) -> View:
    """A row of the table of all candidates: (text, what to sort by) for each column."""
    here, amounts = reading.on(candidate, target) or {}, _amounts(report, target, candidate)
    val, drop = _qualities(report, target, candidate, "val")
    cost = reading.main_cost(report, target)
    ratio = reading.cost_ratio(report, candidate, target, cost)
    removed, trial = reading.pruning_ratio(candidate), reading.trial(candidate)
    on_front = candidate["id"] in report["front"].get(target, [])
    own = candidate["id"] == report["baseline"]
    standing = ("baseline, " if own else "") + (
        "front" if on_front else "dominated" if here["feasible"] else "infeasible"
    )
    return {
        "id": candidate["id"],
        "standing": standing,
        "cells": [
            (MISSING if trial is None else str(trial), -1 if trial is None else trial),
            (amounts["precision"], amounts["precision"]),
            (format_fixed(removed, 2), removed or 0),
            (val["value"], here["quality"]["val"]["value"]),
            (drop["value"], here["quality_drop"]["val"]["value"]),
            (ratio.text if ratio else MISSING, ratio.value if ratio else -1),
            (amounts["size"]["value"], candidate["size"]),
            (amounts["parameters"], candidate["parameters"]),
            (amounts["macs"], candidate["macs"]),
            (standing, standing),
        ],
    }


def _importance(objective: str, shares: Mapping[str, float]) -> View:
    """Bars, longest first, in shares of the longest's length."""
    ordered = sorted(shares.items(), key=lambda pair: -pair[1])
    longest = max(ordered[0][1], 1e-12)
    return {
        "objective": objective.replace("quality_loss", "quality"),
        "bars": [(name, format_percent(value), 100 * max(value, 0) / longest) for name, value in ordered],
    }


def _stages(report: Report) -> list[View]:
    """Stages by the time they took; the shares are of the whole run's wall time."""
    wall = report["wall_s"] or 1.0
    ordered = sorted(report["stages"].items(), key=lambda pair: -pair[1]["seconds"])
    return [
        {
            "name": name,
            "count": stage["count"],
            "cached": stage["cached"],
            "seconds": format_duration(stage["seconds"]),
            "share": format_percent(stage["seconds"] / wall),
            "length": min(100.0, 100 * stage["seconds"] / wall),
        }
        for name, stage in ordered
    ]


def _int8_damage(report: Report) -> list[View]:
    """The rows on what int8 takes, the worst first: those that take anything worth a look, at most some dozens."""
    rows = [
        row for row in report["environment"].get("int8_damage", []) if row["alone"] is None or row["alone"] < _NO_DAMAGE
    ]
    return [
        {
            "layer": row["layer"],
            "operator": row["operator"],
            "alone": _decibels(row["alone"]),
            "sqnr": MISSING if row["sqnr"] is None else _decibels(row["sqnr"]),
            "saved": MISSING if row["saved"] is None else format_percent(row["saved"]),
        }
        for row in rows[:_MOST_DAMAGES]
    ]


def _decibels(value: float | None) -> str:
    """A signal to noise ratio; without one, the output is not finite."""
    return "not finite" if value is None else f"{format_fixed(value, 1)} dB"


def _finalized(value: Any) -> Any:
    """Text as it is put into the page: what would not be seen in it is written out."""
    from markupsafe import Markup

    return printable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def _code(text: str) -> Markup:
    """What stands in backticks, as code; everything escaped."""
    from markupsafe import Markup, escape

    parts = [escape(printable(part)) for part in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if odd % 2 else part for odd, part in enumerate(parts)
    )


def _embedded(targets: Sequence[View]) -> Markup:
    """Every figure as JSON that no text in it can break out of its script element."""
    from markupsafe import Markup

    found = [[{key: figure[key] for key in ("data", "layout")} for figure in target["figures"]] for target in targets]
    text = json.dumps(found, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _script(text: str) -> Markup:
    """Our own copy of plotly.js, which must not be escaped."""
    from markupsafe import Markup

    return Markup(text)

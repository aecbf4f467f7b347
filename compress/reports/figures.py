"""The figures of the page, as plotly figures in plain dictionaries: pure functions of a report.

A figure has the front as what stands out; dominated candidates are small and grey, infeasible ones hollow.
Vertical bars are the intervals of the *paired* drop to the baseline, not of each quality alone: two models that
are scored on the same examples are told apart far better than their own intervals suggest.
Colours marked by ``meta`` ("ink") are set by the page's script, so that they follow light and dark.
"""

from __future__ import annotations

import html
from typing import Any

from compress.reports import reading
from compress.reports.formatting import format_fixed, format_seconds, format_size, is_known
from compress.reports.reading import Candidate, Report
from targets.target import COUNTS

Figure = dict[str, Any]

# Okabe and Ito's palette: told apart with any colour vision, and on white as on black.
COLORS = {"fp32": "#0072b2", "int8": "#d55e00", "mixed": "#009e73", "int8-dynamic": "#cc79a7", "fp16": "#56b4e9"}
SYMBOLS = {"fp32": "circle", "int8": "square", "mixed": "diamond", "int8-dynamic": "triangle-up", "fp16": "cross"}
OTHER_COLOR, OTHER_SYMBOL, QUIET = "#b58900", "hexagon", "#8a8f98"
AXES = {
    "latency": "latency, x of baseline (lower is better)",
    **{name: f"{name}, x of baseline (lower is better)" for name in COUNTS},
    "size": "file size, x of baseline (lower is better)",
    "memory": "memory, x of baseline (lower is better)",
}


def front_figures(report: Report, target: str) -> list[Figure]:
    """Quality against what stands for speed, then against every other cost that is an objective."""
    main = reading.main_cost(report, target)
    costs = [main] + [cost for cost in AXES if cost in report["objectives"] and cost != main]
    # The baseline alone is no picture.
    return [front_figure(report, target, cost) for cost in costs if len(_points(report, target, cost)) > 1]


def front_figure(report: Report, target: str, cost: str) -> Figure:
    """Quality on val against ``cost`` relative to the baseline: a plotly figure, and ``outside``, how many
    candidates lie so low that the frame leaves them out."""
    points = _points(report, target, cost)
    front = set(report["front"].get(target, []))
    zero = report["baseline"]
    rest = [point for point in points if point["id"] != zero]
    shown = [point for point in rest if point["id"] in front]
    quiet = [point for point in rest if point["id"] not in front]
    data = [
        _quiet([point for point in quiet if not point["feasible"]], "infeasible", "circle-open"),
        _quiet([point for point in quiet if point["feasible"]], "dominated", "circle"),
        _line([point for point in points if point["id"] in front], reading.higher_is_better(report, target)),
        *(_marks([p for p in shown if p["precision"] == scheme], scheme) for scheme in _schemes(shown)),
        _baseline([point for point in points if point["id"] == zero]),
    ]
    x_range, y_range = _frame(report, target, points, front)
    outside = sum(not y_range[0] <= point["y"] <= y_range[1] for point in points)
    data = [trace for trace in data if trace["x"]]
    return {"data": data, "layout": _layout(report, target, cost, points, x_range, y_range), "outside": outside}


def _points(report: Report, target: str, cost: str) -> list[dict[str, Any]]:
    """Every candidate that has a place in the figure, with what is needed to draw it."""
    written = reading.quality_format(report, target)
    zero = reading.on(reading.baseline(report), target)
    points = []
    for candidate in reading.measured_on(report, target):
        here, ratio = reading.on(candidate, target), reading.cost_ratio(report, candidate, target, cost)
        if zero is None or here is None or ratio is None:
            continue
        value, drop = here["quality"]["val"]["value"], here["quality_drop"]["val"]
        # A network that diverged has no place in a figure; the table of all candidates has it.
        if not all(is_known(number) for number in (value, ratio.value, *drop.values())):
            continue
        up, down = drop["value"] - drop["low"], drop["high"] - drop["value"]
        higher = reading.higher_is_better(report, target)
        points.append(
            {
                "id": candidate["id"],
                "x": ratio.value,
                "left": ratio.value - (ratio.low if ratio.low is not None else ratio.value),
                "right": (ratio.high if ratio.high is not None else ratio.value) - ratio.value,
                "y": value * written.scale,
                "up": (up if higher else down) * written.scale,
                "down": (down if higher else up) * written.scale,
                "precision": reading.precision(candidate),
                "feasible": here["feasible"],
                "text": _hover(report, candidate, target),
            }
        )
    return points


def _hover(report: Report, candidate: Candidate, target: str) -> str:
    """What stands in the box beside a point; plotly reads it as HTML, so names are escaped."""
    written, here = reading.quality_format(report, target), reading.on(candidate, target) or {}
    quality, drop = here["quality"]["val"], here["quality_drop"]["val"]
    lines = [
        f"<b>{html.escape(candidate['id'])}</b>" + ("" if here["feasible"] else " (infeasible)"),
        f"{html.escape(written.metric)} {written.value(quality['value'])} "
        f"[{written.interval(quality['low'], quality['high'])}]",
        f"drop {written.difference(drop['value'])} [{written.interval(drop['low'], drop['high'])}]",
    ]
    for cost in ("latency", *COUNTS):
        ratio = reading.cost_ratio(report, candidate, target, cost)
        if ratio:
            spread = f" [{ratio.interval}]" if ratio.interval else ""
            lines.append(f"{cost} {ratio.text}{spread}")
    if here.get("latency"):
        lines.append(f"p50 {format_seconds(here['latency']['p50'])}")
    lines.append(f"size {format_size(candidate['size'])}")
    about = [html.escape(reading.precision(candidate))]
    if reading.pruning_ratio(candidate) is not None:
        about.append(f"pruning ratio {format_fixed(reading.pruning_ratio(candidate), 2)}")
    if reading.trial(candidate) is not None:
        about.append(f"trial {reading.trial(candidate)}")
    return "<br>".join([*lines, ", ".join(about)])


def _schemes(points: list[dict[str, Any]]) -> list[str]:
    """Precisions among ``points``, in the order of the palette, unknown ones last."""
    return sorted({point["precision"] for point in points}, key=lambda name: ([*COLORS, name].index(name), name))


def _trace(points: list[dict[str, Any]], name: str, **more: Any) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point["x"] for point in points],
        "y": [point["y"] for point in points],
        "text": [point["text"] for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        **more,
    }


def _quiet(points: list[dict[str, Any]], name: str, symbol: str) -> Figure:
    return _trace(points, name, marker={"color": QUIET, "size": 6, "symbol": symbol}, opacity=0.5)


def _line(points: list[dict[str, Any]], higher: bool) -> Figure:
    """The edge of the front in this figure's two quantities, in steps: between two points nothing was measured."""
    edge: list[dict[str, Any]] = []
    sign = 1 if higher else -1
    for point in sorted(points, key=lambda one: (one["x"], -sign * one["y"])):
        if not edge or sign * point["y"] > sign * edge[-1]["y"]:
            edge.append(point)
    look = {"color": QUIET, "width": 1.5, "shape": "hv"}
    return {**_trace(edge, "front"), "mode": "lines", "line": look, "hoverinfo": "skip", "hovertemplate": None}


def _error(plus: list[float], minus: list[float]) -> Figure | None:
    if not any(plus) and not any(minus):
        return None
    return {"type": "data", "symmetric": False, "array": plus, "arrayminus": minus, "thickness": 1, "width": 2}


def _marks(points: list[dict[str, Any]], scheme: str) -> Figure:
    look = {"color": COLORS.get(scheme, OTHER_COLOR), "size": 9, "symbol": SYMBOLS.get(scheme, OTHER_SYMBOL)}
    bars = {
        "error_x": _error([point["right"] for point in points], [point["left"] for point in points]),
        "error_y": _error([point["up"] for point in points], [point["down"] for point in points]),
    }
    # An RGBA colour: the bars must not hide the points they belong to.
    drawn = {key: {**bar, "color": f"{look['color']}66"} for key, bar in bars.items() if bar}
    return _trace(points, f"front, {scheme}", marker=look, **drawn)


def _baseline(points: list[dict[str, Any]]) -> Figure:
    return _trace(points, "baseline", meta="ink", marker={"symbol": "star", "size": 14})


def _frame(
    report: Report, target: str, points: list[dict[str, Any]], front: set[str]
) -> tuple[list[float], list[float]]:
    """Axis ranges: all costs, but in quality only what the decision is about. A network that was pruned to
    chance would otherwise press the front into a line."""
    scale = reading.quality_format(report, target).scale
    kept = [point for point in points if point["id"] in front or point["id"] == report["baseline"]]
    ends = [point["y"] + point["up"] for point in kept] + [point["y"] - point["down"] for point in kept]
    limit = reading.quality_limit(report, target)
    ends += [] if limit is None else [limit * scale]
    low, high = min(ends), max(ends)
    reach = 1.5 * max(high - low, 0.01 * max(abs(high), abs(low)), 1e-9)
    near = [point["y"] for point in points if low - reach <= point["y"] <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    left = min(0.95 * (point["x"] - point["left"]) for point in points)
    right = max(point["x"] + point["right"] for point in points)
    # Room for the names of the picks, which stand on the empty side of the front: to its left, beyond its best quality.
    above, below = (2.5, 1.0) if reading.higher_is_better(report, target) else (1.0, 2.5)
    return [left - 0.13 * (right - left), right + 0.04 * (right - left)], [low - below * pad, high + above * pad]


def _dashed(y: float, dash: str) -> Figure:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": y,
        "y1": y,
        "line": {"color": QUIET, "width": 1, "dash": dash},
        "layer": "below",
    }


def _line_name(y: float, text: str) -> Figure:
    return {
        "xref": "paper",
        "x": 0.005,
        "xanchor": "left",
        "y": y,
        "yanchor": "bottom",
        "text": text,
        "showarrow": False,
        "font": {"size": 11, "color": QUIET},
    }


_NEAR = 0.12
"""Picks closer than this share of the baseline's cost have their names stacked."""


def _pick_names(report: Report, target: str, points: list[dict[str, Any]]) -> list[Figure]:
    """One label for each picked candidate, however many picks it is, fanned out to the empty side of the front."""
    places = {point["id"]: point for point in points}
    names: dict[str, list[str]] = {}
    for row in reading.pick_rows(report, target):
        if row.candidate is not None and row.candidate["id"] in places:
            names.setdefault(row.candidate["id"], []).append(row.pick.replace("_", " "))
    ordered = sorted(names, key=lambda name: float(places[name]["x"]))
    upwards = reading.higher_is_better(report, target)
    heights, stacked = dict[str, int](), 0
    for before, name in zip([None, *ordered], ordered, strict=False):
        # Neighbours would be written over each other: each of them stands a line above the last.
        near = before is not None and float(places[name]["x"]) - float(places[before]["x"]) < _NEAR
        stacked = stacked + len(names[before]) if near and before is not None else 0
        heights[name] = stacked
    return [
        {
            "x": places[name]["x"],
            "y": places[name]["y"],
            "text": "<b>" + "<br>".join(names[name]) + "</b>",
            "align": "right",
            "xanchor": "right",
            "yanchor": "bottom" if upwards else "top",
            "ax": -14,
            "ay": (-16 - 15 * heights[name]) * (1 if upwards else -1),
            "arrowwidth": 1,
            "arrowcolor": QUIET,
            "arrowhead": 0,
            "standoff": 5,
            "font": {"size": 12},
        }
        for name in ordered
    ]


def _layout(
    report: Report,
    target: str,
    cost: str,
    points: list[dict[str, Any]],
    x_range: list[float],
    y_range: list[float],
) -> Figure:
    written, zero = reading.quality_format(report, target), reading.on(reading.baseline(report), target) or {}
    level = zero["quality"]["val"]["value"] * written.scale
    shapes, notes = [_dashed(level, "dash")], [_line_name(level, "baseline")]
    limit = reading.quality_limit(report, target)
    if limit is not None:
        shapes.append(_dashed(limit * written.scale, "dot"))
        notes.append(_line_name(limit * written.scale, "limit"))
    return {
        **_axes(report, target, cost, x_range, y_range),
        "shapes": shapes,
        "annotations": notes + _pick_names(report, target, points),
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": QUIET, "activecolor": COLORS["fp32"]},
        "showlegend": cost == reading.main_cost(report, target),
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 64, "r": 16, "t": 40, "b": 52},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
    }


def _axes(report: Report, target: str, cost: str, x_range: list[float], y_range: list[float]) -> Figure:
    """Both axes, each saying its unit and which way is better."""
    written = reading.quality_format(report, target)
    better = "higher" if reading.higher_is_better(report, target) else "lower"
    unit = ", %" if written.percent else ""
    title = f"{html.escape(written.metric)} on val{unit} ({better} is better)"
    return {
        "xaxis": {"title": {"text": AXES[cost]}, "range": x_range, "ticksuffix": "x", "zeroline": False},
        "yaxis": {"title": {"text": title}, "range": y_range, "zeroline": False},
    }

"""The picture in the README, and its table: ``python benchmarks/draw_front.py RUN docs/front.svg``.

The figure is the page's own (``compress.reports.figures``), so that picture and report cannot disagree; here it is
only set as a static SVG, without a browser and without another dependency. The machine and the runtime stand under it.
The table goes to stdout, in Markdown. Its last row is the precision that gains least for the fastest pick's network.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any, TypeAlias

WIDTH, HEIGHT = 800, 460
LEFT, RIGHT, TOP, BOTTOM = 68, 20, 52, 78
"""Margins of the plot area, in pixels."""
INK, QUIET, GRID = "#1c2128", "#6e747d", "#e4e7eb"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

Scale = Callable[[float], float]
_Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def draw(report: Mapping[str, Any], target: str | None = None) -> str:
    """The SVG of quality against what stands for speed on ``target`` (the run's first where it is None)."""
    from compress.reports import reading
    from compress.reports.figures import front_figure

    name = target or reading.target_names(report)[0]
    figure = front_figure(report, name, reading.main_cost(report, name))
    layout = figure["layout"]
    x = _scale(layout["xaxis"]["range"], LEFT, WIDTH - RIGHT)
    y = _scale(layout["yaxis"]["range"], HEIGHT - BOTTOM, TOP)
    parts = [*_axes(layout, x, y), *_levels(layout, y)]
    for trace in figure["data"]:
        parts += _trace(trace, x, y)
    parts += [*_pick_names(layout, x, y), *_legend(figure["data"]), _text(LEFT, HEIGHT - 14, machine(report, name))]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="{_FONT}" font-size="12" fill="{INK}" role="img">'
    )
    told = escape(f"{report['task']}: the front found on {name}, against the baseline")
    back = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>'
    return "\n".join([head, f"<title>{told}</title>", back, *parts, "</svg>", ""])


def machine(report: Mapping[str, Any], target: str) -> str:
    """``digits on ort-cpu: AMD EPYC, 2 cores; onnxruntime 1.31.1; 40 candidates of 11 trials in 2 min 30 s``."""
    from compress.values.durations import format_duration

    described = report["targets"][target]
    where, runtime = described.get("machine") or {}, next(iter((described.get("packages") or {}).items()), None)
    facts = [", ".join(filter(None, [where.get("cpu"), f"{where['cores']} cores" if "cores" in where else ""]))]
    facts += [" ".join(runtime)] if runtime else []
    found = f"{len(report['candidates']) - 1} candidates of {report['trials']['finished']} trials"
    facts += [f"{found} in {format_duration(report['wall_s'])}"]
    return f"{report['task']} on {target}: {'; '.join(filter(None, facts))}"


def table(report: Mapping[str, Any], target: str) -> str:
    """The baseline, three picks and the least useful sibling of the fastest, in Markdown."""
    from compress.reports import reading

    picks = {row.pick: row for row in reading.pick_rows(report, target)}
    shown = [("baseline", reading.baseline(report), "")]
    for label, name in (("conservative", "most_accurate"), ("knee", "knee"), ("smallest", "smallest")):
        candidate = picks[name].candidate
        if candidate is not None:
            shown.append((f"{label} (`{candidate['id']}`)", candidate, picks[name].verdict))
    fastest = picks["fastest"].candidate
    if fastest is not None:
        siblings = [c for c in reading.measured_on(report, target) if reading.trial(c) == reading.trial(fastest)]
        worst = max(siblings, key=lambda one: _cost(report, target, one).value)
        shown.append((f"for comparison: `{fastest['id']}` as {reading.precision(worst)}", worst, "not a pick"))
    metric, cost = reading.quality_format(report, target).metric, reading.main_cost(report, target)
    lines = [f"| | {metric} on val | drop on test, points | verdict | {cost} | size |", "|---|--:|--:|---|--:|--:|"]
    return "\n".join([*lines, *(_row(report, target, *one) for one in shown)])


def _row(report: Mapping[str, Any], target: str, label: str, candidate: Mapping[str, Any], verdict: str) -> str:
    from compress.reports import formatting, reading

    written, here = reading.quality_format(report, target), reading.on(candidate, target) or {}
    quality, drop, cost = here["quality"]["val"], here["quality_drop"]["test"], _cost(report, target, candidate)
    spread = formatting.format_interval(quality["low"], quality["high"], written.points)
    own = candidate["id"] == report["baseline"]
    lost = "" if own else "not read"
    if drop and not own:
        within = formatting.format_interval(drop["low"], drop["high"], written.points)
        lost = f"{written.points(drop['value'])} [{within}]"
    ratio = cost.text if own or not cost.interval else f"{cost.text} [{cost.interval}]"
    cells = [label, f"{written.value(quality['value'])} [{spread}]", lost, verdict, ratio]
    return f"| {' | '.join([*cells, formatting.format_size(candidate['size'])])} |"


def _cost(report: Mapping[str, Any], target: str, candidate: Mapping[str, Any]) -> Any:
    from compress.reports import reading

    return reading.cost_ratio(report, candidate, target, reading.main_cost(report, target)) or reading.CostRatio(
        float("nan")
    )


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers within [low, high], at most ``most``: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _scale(ends: Sequence[float], start: float, stop: float) -> Scale:
    low, high = ends
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = f'fill="{QUIET}"') -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" {more}/>'


def _axes(layout: Mapping[str, Any], x: Scale, y: Scale) -> Iterator[str]:
    floor = HEIGHT - BOTTOM
    for value in ticks(*layout["xaxis"]["range"]):
        yield _line(x(value), TOP, x(value), floor, GRID)
        yield _text(x(value), floor + 18, f"{value:g}{layout['xaxis'].get('ticksuffix', '')}", "middle")
    for value in ticks(*layout["yaxis"]["range"]):
        yield _line(LEFT, y(value), WIDTH - RIGHT, y(value), GRID)
        yield _text(LEFT - 8, y(value) + 4, f"{value:g}", "end")
    titles = [unescape(layout[axis]["title"]["text"]) for axis in ("xaxis", "yaxis")]
    yield _text((LEFT + WIDTH - RIGHT) / 2, floor + 38, titles[0], "middle", f'fill="{INK}"')
    turned = f'fill="{INK}" transform="rotate(-90 18 {(TOP + floor) / 2:.1f})"'
    yield _text(18, (TOP + floor) / 2, titles[1], "middle", turned)


def _levels(layout: Mapping[str, Any], y: Scale) -> Iterator[str]:
    """The baseline's quality and the limit, as lines across."""
    dashes = {"dash": "7 4", "dot": "2 3"}
    first = y(layout["shapes"][0]["y0"])
    for shape, note in zip(layout["shapes"], layout["annotations"], strict=False):
        at = y(shape["y0"])
        yield _line(LEFT, at, WIDTH - RIGHT, at, QUIET, f'stroke-dasharray="{dashes[shape["line"]["dash"]]}"')
        # Under its line where the other name would otherwise be in the way.
        yield _text(LEFT + 4, at + (12 if 0 < at - first < 16 else -4), note["text"])


def _trace(trace: Mapping[str, Any], x: Scale, y: Scale) -> Iterator[str]:
    if trace["mode"] == "lines":
        corners: list[str] = []
        before: float | None = None
        for one, other in zip(map(x, trace["x"]), map(y, trace["y"]), strict=True):
            # Across first, then up: between two points nothing was measured.
            corners += [] if before is None else [f"{one:.1f},{before:.1f}"]
            corners.append(f"{one:.1f},{other:.1f}")
            before = other
        yield f'<polyline points="{" ".join(corners)}" fill="none" stroke="{QUIET}" stroke-width="1.5"/>'
        return
    color, symbol = trace["marker"].get("color", INK), trace["marker"]["symbol"]
    bars = [trace.get(axis) for axis in ("error_x", "error_y")]
    for index, (value, height) in enumerate(zip(trace["x"], trace["y"], strict=True)):
        if not TOP <= y(height) <= HEIGHT - BOTTOM:
            continue  # the page says how many lie outside the frame
        for axis, bar in zip("xy", bars, strict=True):
            if bar:
                yield _bar(axis, value, height, bar["arrayminus"][index], bar["array"][index], x, y, color)
        yield _mark(symbol, x(value), y(height), trace["marker"]["size"] / 2, color, trace.get("opacity", 1))


def _bar(axis: str, value: float, height: float, minus: float, plus: float, x: Scale, y: Scale, color: str) -> str:
    """An interval, cut off at the frame."""
    faint = 'stroke-opacity="0.45"'
    if axis == "x":
        return _line(x(value - minus), y(height), x(value + plus), y(height), color, faint)
    low, high = (min(max(y(end), TOP), HEIGHT - BOTTOM) for end in (height - minus, height + plus))
    return _line(x(value), low, x(value), high, color, faint)


def _mark(symbol: str, x: float, y: float, r: float, color: str, opacity: float) -> str:
    """A marker in the shapes of plotly that the figure uses."""
    turns = {"square": (4, 45, 1.25), "diamond": (4, 0, 1.25), "triangle-up": (3, -90, 1.25), "hexagon": (6, 0, 1.1)}
    look = f'fill="{color}" fill-opacity="{opacity}"'
    if symbol == "circle-open":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="none" stroke="{color}" stroke-opacity="{opacity}"/>'
    if symbol == "star":
        radii, angles = [1.3 * r, 0.55 * r] * 5, [-90.0 + 36 * n for n in range(10)]
    elif symbol in turns:
        number, start, size = turns[symbol]
        radii, angles = [size * r] * number, [start + 360 / number * n for n in range(number)]
    else:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {look}/>'
    places = [
        f"{x + radius * math.cos(math.radians(angle)):.1f},{y + radius * math.sin(math.radians(angle)):.1f}"
        for radius, angle in zip(radii, angles, strict=True)
    ]
    return f'<polygon points="{" ".join(places)}" {look}/>'


def _pick_names(layout: Mapping[str, Any], x: Scale, y: Scale) -> Iterator[str]:
    """The picks' names on the empty side of the front, moved away from it until none covers another."""
    placed: list[_Box] = []
    for note in layout["annotations"]:
        if "ax" not in note:
            continue
        names = note["text"].removeprefix("<b>").removesuffix("</b>").split("<br>")
        # An annotation hangs left of its point, above it where "ay" is negative.
        step, right, edge = math.copysign(6, note["ay"]), x(note["x"]) + note["ax"], y(note["y"]) + note["ay"]
        wide, tall = 7.2 * max(map(len, names)), 15.0 * len(names)

        def box(edge: float, right: float = right, wide: float = wide, tall: float = tall, up: bool = step < 0) -> _Box:
            return right - wide, edge - tall if up else edge, right, edge if up else edge + tall

        while any(_overlap(box(edge), other) for other in placed):
            edge += step
        placed.append(box(edge))
        yield _line(x(note["x"]) - 3, y(note["y"]) + step, right + 3, edge - math.copysign(5, -step), QUIET)
        for row, name in enumerate(names):
            yield _text(right, box(edge)[1] + 12 + 15 * row, name, "end", f'fill="{INK}" font-weight="600"')


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(traces: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    at = float(LEFT)
    for trace in traces:
        if trace["mode"] == "lines":
            continue
        marker = trace["marker"]
        size = min(marker["size"], 10) / 2
        yield _mark(marker["symbol"], at + 5, 24, size, marker.get("color", INK), trace.get("opacity", 1))
        yield _text(at + 15, 28, trace["name"], more=f'fill="{INK}"')
        at += 34 + 6.6 * len(trace["name"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a run's front as a static SVG.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("out", type=Path, metavar="FILE.svg")
    parser.add_argument("--target", help="default: the run's first")
    asked = parser.parse_args()
    try:
        report = json.loads((asked.run / "report.json").read_text())
        asked.out.write_text(draw(report, asked.target), encoding="utf-8")
        print(table(report, asked.target or next(iter(report["targets"]))))
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}; pass a run's folder and a file that can be written")


if __name__ == "__main__":
    main()

"""Where a search spends its wall time: ``python benchmarks/where_time_goes.py RUN``.

A search is worth what it trains, so everything else is overhead: at least 70 % of the wall time should go into
fine-tuning. The script reads a run's ``report.json`` and prints a table for people, then one JSON line for programs.
With ``--run`` the search of the recipe ``keyword-spotting`` is made first:

    python benchmarks/where_time_goes.py runs/timed --run --data fsdd.zip --time 20min

Stages do not overlap: trials run one after another, and a stage's time does not contain another's. What no stage
accounts for (imports, reading the data, starting processes, writing the record) stands in a row of its own.
A stage that was read from the cache costs its reading alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GOAL = 0.70
"""Least share of the wall time that fine-tuning should have."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "fine-tuning": ("finetune",),
    "export": ("prune", "export", "gate"),
    "quantization": ("quantize",),
    "measuring": ("measure", "score"),
    "sampler": ("sampler",),
}
"""Part of the search -> the report's stages in it; ``gate`` is the export and dummy quantization before training."""
REST, UNACCOUNTED = "the rest", "in no stage"


def parts(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Part -> seconds, share of the wall time, how often computed and read from the cache, and its stages."""
    wall, stages = report["wall_s"], report["stages"]
    placed = {name for names in PARTS.values() for name in names}
    named = {**PARTS, REST: tuple(name for name in stages if name not in placed)}
    found = {}
    for part, names in named.items():
        rows = [stages[name] for name in names if name in stages]
        count, cached = (sum(row[key] for row in rows) for key in ("count", "cached"))
        found[part] = _entry(sum(row["seconds"] for row in rows), wall, count, cached, names)
    left = max(0.0, wall - sum(part["seconds"] for part in found.values()))
    return {**found, UNACCOUNTED: _entry(left, wall, 0, 0, ())}


def _entry(seconds: float, wall: float, count: int, cached: int, names: tuple[str, ...]) -> dict[str, Any]:
    share = seconds / wall if wall else 0.0
    return {"seconds": seconds, "share": share, "count": count, "cached": cached, "stages": list(names)}


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """The line for programs; seconds and shares of the wall time."""
    found = parts(report)
    return {
        "benchmark": "where_time_goes",
        "task": report["task"],
        "cpu": report["environment"].get("cpu"),
        "wall_s": report["wall_s"],
        "trials": report["trials"],
        "parts": {
            name: {"seconds": round(part["seconds"], 3), "share": round(part["share"], 4)}
            for name, part in found.items()
        },
        "goal": GOAL,
        "met": found["fine-tuning"]["share"] >= GOAL,
    }


def table(report: Mapping[str, Any]) -> str:
    """The table for people, in Markdown, so that it can be pasted beside other results."""
    from compress.reports import formatting
    from compress.values.durations import format_duration

    lines = ["| part | time | share | computed | from cache | stages |", "|---|--:|--:|--:|--:|---|"]
    for name, part in parts(report).items():
        counts = ["", ""] if name == UNACCOUNTED else [str(part["count"]), str(part["cached"])]
        cells = [name, format_duration(part["seconds"]), formatting.format_percent(part["share"]), *counts]
        lines.append(f"| {' | '.join([*cells, ', '.join(part['stages'])])} |")
    return "\n".join([*lines, f"| wall time | {format_duration(report['wall_s'])} | 100 % | | | |"])


def read_report(run: Path) -> dict[str, Any]:
    """The run's ``report.json``; ends the program with one line where there is none."""
    path = run / "report.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except OSError:
        sys.exit(f"{path} does not exist; pass a finished run's folder, or make one with --run --data fsdd.zip")
    except ValueError as error:
        sys.exit(f"{path} is not JSON ({error}); search again, or pass another run's folder")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Where a search spends its wall time.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder; with --run, where to make it")
    parser.add_argument("--run", action="store_true", dest="search", help="search keyword-spotting first")
    parser.add_argument("--data", default="fsdd.zip", help="the Free Spoken Digit Dataset, folder or zip")
    parser.add_argument("--time", default="20min", help="time of the search")
    asked = parser.parse_args()
    if asked.search:
        import compress
        from compress.searching.progress import Live
        from recipes import keyword_spotting

        progress = Live()
        try:
            task = keyword_spotting.task(asked.data)
            compress.search(task, space=keyword_spotting.SPACE, time=asked.time, out=asked.run, progress=progress)
        except compress.CompressError as error:
            sys.exit(str(error))
        finally:
            progress.close()
    report = read_report(asked.run)
    trials, cpu = report["trials"], report["environment"].get("cpu")
    print(f"{report['task']} on {cpu}: {trials['finished']} trials finished, {trials['gated']} gated")
    print(f"\n{table(report)}\n")
    print(json.dumps(summary(report)))


if __name__ == "__main__":
    main()

"""Which trainings of a run could not have improved its front, given what was known before each.

    python benchmarks/worth_training.py runs/digits [runs/keyword-spotting ...] [--first 10]

What a network costs is known before it is trained. It could not have improved the front if something that was there
already cost no more and had lost nothing: then no quality would have helped it. Beside that stands how many came out no
better than something that was there already. Only trainings after the first ten count.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Count:
    """Trainings of a run after its first ones."""

    trainings: int
    hopeless: int
    """Those that no quality could have helped."""
    vain: int
    """Those that came out dominated by what was there."""


def count(folder: Path, first: int = 10) -> Count:
    """The trainings of a run, from its record; on its first target, by latency ratio and drop on val."""
    there = [(1.0, 0.0)]
    trainings = hopeless = vain = 0
    asked: dict[int, dict[str, Any]] = {}
    for line in (folder / "record.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "asked":
            asked[event["trial"]] = event
        if event["event"] != "finished" or not asked[event["trial"]]["params"].get("epochs"):
            continue
        points = [_point(candidate) for candidate in event["candidates"]]
        if points and trainings >= first:
            cost = min(point[0] for point in points)
            hopeless += any(c <= cost and drop <= 0.0 for c, drop in there)
            vain += all(any(c <= a and drop <= b for c, drop in there) for a, b in points)
        trainings += bool(points)
        there += points
    return Count(max(0, trainings - first), hopeless, vain)


def _point(candidate: dict[str, Any]) -> tuple[float, float]:
    measured = next(iter(candidate["measured"].values()))
    cost = measured["latency"]["ratio"] if measured["latency"] else measured["instructions"] or measured.get("cycles")
    return float(cost), float(measured["quality_drop"]["val"]["value"])


def main() -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--first", type=int, default=10)
    asked = parser.parse_args()
    for folder in asked.runs:
        found = count(folder, asked.first)
        print(f"{folder}: of {found.trainings} trainings, {found.hopeless} could not help, {found.vain} did not")


if __name__ == "__main__":
    main()

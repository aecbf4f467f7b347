"""One table of what peers made of the same network with the same budget, all files timed in one session.

    python benchmarks/peers/compare.py digits --weights digits.pt out/*/outcome.json

For each outcome: the fastest file within one point on val, read on test; next in line while it is more than a point
worse there, three at most; the ratio of what holds; hypervolume on val; networks trained. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from subjects import load
from yardstick import Outcome, Tried, hypervolume, ratios, read_outcome, scored

LIMIT = 0.01
MOST_READ = 3


def in_line(outcome: Outcome) -> list[Tried]:
    """What would be shipped, the first choice first."""
    good = [one for one in outcome.tried if one.val >= outcome.baseline_val - LIMIT - 1e-9]
    return sorted(good, key=lambda one: one.ratio)[:MOST_READ]


def main() -> None:
    """Measure what every peer would ship in one session and print one table of it, a row for each peer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("outcomes", nargs="+", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--weights", type=Path, required=True)
    asked = parser.parse_args()
    subject = load(asked.name, asked.data, asked.weights)
    found = [read_outcome(path) for path in asked.outcomes]
    files = [Path(one.path) for outcome in found for one in in_line(outcome)]
    timed = dict(
        zip(files, ratios([Path(found[0].baseline), *files], subject, 2.0 * (1 + len(files)))[1:], strict=True)
    )
    zero = scored(Path(found[0].baseline), subject.test)
    rows = []
    for outcome in found:
        reads = [(Path(one.path), zero - scored(Path(one.path), subject.test)) for one in in_line(outcome)]
        held = next((place for place, (_, drop) in enumerate(reads) if drop <= LIMIT + 1e-9), None)
        first = reads[0] if reads else None
        rows.append({
            "peer": outcome.peer, "seed": outcome.seed, "budget_s": outcome.budget,
            "first": timed[first[0]] if first else 1.0, "first_drop_on_test": first[1] if first else 0.0,
            "held": timed[reads[held][0]] if held is not None else 1.0,
            "reads": len(reads) if held is None else held + 1,
            "hypervolume": hypervolume(outcome.tried, outcome.baseline_val), "trainings": outcome.trainings,
        })  # fmt: skip
    print(f"{'peer':34} seed  first  drop on test  held  reads  hypervolume  trainings")
    for row in rows:
        print(f"{row['peer']:34} {row['seed']:4}  {row['first']:.3f}  {100 * row['first_drop_on_test']:8.2f}      "
              f"{row['held']:.3f}  {row['reads']:4}  {row['hypervolume']:10.4f}  {row['trainings']:8}")  # fmt: skip
    print(json.dumps({"benchmark": "peers", "subject": subject.task.name, "rows": rows}))


if __name__ == "__main__":
    main()

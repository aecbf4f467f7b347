"""Reading a report: the facts about its candidates that the page and the terminal tables both show.

The input is the document `report.json` of design.md as plain dictionaries; nothing is measured or judged here.
A report may be of a run that has only its baseline yet, may lack the test split, and may count instructions
instead of timing, so that everything but ids, sizes and the quality on val may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.metrics.metrics import METRICS
from compress.reports.formatting import MISSING, QualityFormat, format_ratio, format_ratio_interval, is_known
from compress.selection.rankings import PICKS
from compress.values.constraints import Constraint, parse_constraint
from targets.errors import ConstraintError
from targets.target import COUNTS

Report = Mapping[str, Any]
Candidate = Mapping[str, Any]


@dataclass(frozen=True)
class CostRatio:
    """A cost relative to the baseline's; the ends are None where it was counted and has no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """The ratio as people read it: ``0.37x``."""
        return format_ratio(self.value)

    @property
    def interval(self) -> str:
        """Its interval as people read it: ``0.36-0.38``, or nothing where there is none."""
        return "" if self.low is None else format_ratio_interval(self.low, self.high)


@dataclass(frozen=True)
class PickRow:
    """One row of the table of picks; ``candidate`` is None where nothing met the constraints."""

    pick: str
    candidate: Candidate | None
    verdict: str = ""
    read: int = 0
    needed: int | None = None
    refuted: tuple[str, ...] = ()
    tied_with: tuple[str, ...] = ()


def by_id(report: Report) -> dict[str, Candidate]:
    """All candidates of the report, by their id."""
    return {candidate["id"]: candidate for candidate in report["candidates"]}


def baseline(report: Report) -> Candidate:
    """The baseline: the candidate that every ratio and every drop is relative to."""
    return by_id(report)[report["baseline"]]


def target_names(report: Report) -> list[str]:
    """The report's targets in order; ``best/`` and ``satisfied`` follow the first."""
    return list(report["targets"])


def on(candidate: Candidate, target: str) -> Mapping[str, Any] | None:
    """What was measured of ``candidate`` on ``target``; None where nothing was."""
    found: Mapping[str, Any] | None = candidate["measured"].get(target)
    return found


def measured_on(report: Report, target: str) -> list[Candidate]:
    """The candidates that were measured on ``target``."""
    return [candidate for candidate in report["candidates"] if on(candidate, target)]


def precision(candidate: Candidate) -> str:
    """The precision scheme of the candidate's config; a baseline without one is ``fp32``."""
    scheme = (candidate["config"].get("precision") or {}).get("scheme")
    return str(scheme or "fp32")


def pruning_ratio(candidate: Candidate) -> float | None:
    """The pruning ratio of the candidate's config, over the whole network; None where its config has none."""
    found = (candidate["config"].get("prune") or {}).get("ratio")
    return None if found is None else float(found)


def trial(candidate: Candidate) -> int | None:
    """The number of the trial that the candidate came from, also where only its id (``0007-int8``) says so."""
    found = candidate.get("trial")
    if found is None and candidate["id"].partition("-")[0].isdigit():
        found = int(candidate["id"].partition("-")[0])
    return found


def main_cost(report: Report, target: str) -> str:
    """What stands for speed on ``target``: ``latency``, else ``instructions``, ``cycles``, ``memory`` or ``size``."""
    zero = on(baseline(report), target) or {}
    return next((name for name in ("latency", *COUNTS, "memory") if zero.get(name)), "size")


def cost_ratio(report: Report, candidate: Candidate, target: str, cost: str) -> CostRatio | None:
    """``candidate``'s cost relative to the baseline's; latency is the paired ratio with its interval."""
    here = on(candidate, target) or {}
    if cost == "latency":
        timed = here.get("latency")
        return CostRatio(timed["ratio"], timed["low"], timed["high"]) if timed else None
    zero = baseline(report)
    value, unit = (
        (candidate["size"], zero["size"]) if cost == "size" else (here.get(cost), (on(zero, target) or {}).get(cost))
    )
    return None if value is None or not unit else CostRatio(value / unit)


def quality_format(report: Report, target: str) -> QualityFormat:
    """How the values of this task's metric are written, which the baseline's values decide."""
    zero = on(baseline(report), target)
    if zero is None:
        return QualityFormat("quality", False)
    splits = [split for split in (zero["quality"]["val"], zero["quality"].get("test")) if split]
    metric, value = splits[0]["metric"], splits[0]["value"]
    # A metric of the user's own is known by its name only: an accuracy of 93.2 is not a share of one.
    share = METRICS[metric].bounded if metric in METRICS else "accuracy" in metric.lower() and 0 <= value <= 1
    return QualityFormat(metric, share, 2 if max(split["n"] for split in splits) >= 1000 else 1)


def higher_is_better(report: Report, target: str) -> bool:
    """The metric's orientation; for one of the user's own as the drops tell, since a positive one is always worse."""
    zero = on(baseline(report), target)
    if zero and zero["quality"]["val"]["metric"] in METRICS:
        return METRICS[zero["quality"]["val"]["metric"]].higher_is_better
    agreement = 0.0
    for candidate in measured_on(report, target):
        here = on(candidate, target)
        if zero and here:
            values = (
                zero["quality"]["val"]["value"],
                here["quality"]["val"]["value"],
                here["quality_drop"]["val"]["value"],
            )
            agreement += (values[0] - values[1]) * values[2] if all(map(is_known, values)) else 0.0
    return agreement >= 0


def constraints(report: Report) -> list[Constraint]:
    """The constraints that parse; a report written by a later version may know more."""
    found = []
    for text in report["constraints"]:
        try:
            found.append(parse_constraint(text))
        except ConstraintError:
            continue
    return found


def quality_limit(report: Report, target: str) -> float | None:
    """The strictest quality on val that the constraints ask for; None if they ask for none."""
    zero = on(baseline(report), target)
    if zero is None:
        return None
    value, higher = zero["quality"]["val"]["value"], higher_is_better(report, target)
    limits = []
    for constraint in constraints(report):
        if constraint.quantity == "quality_drop" and constraint.operator == "<=":
            limits.append(value - constraint.limit if higher else value + constraint.limit)
        elif constraint.quantity == "quality":
            limits.append(constraint.limit)
    return (max(limits) if higher else min(limits)) if limits else None


def held_out(report: Report, target: str) -> bool:
    """Whether any candidate was read on test on ``target``."""
    return any((on(candidate, target) or {})["quality"].get("test") for candidate in measured_on(report, target))


def pick_rows(report: Report, target: str) -> list[PickRow]:
    """The four picks on ``target``, in their order, including those that no candidate qualified for."""
    candidates = by_id(report)
    rows = []
    for name in PICKS:
        pick = report["picks"].get(target, {}).get(name)
        if pick is None or pick["id"] not in candidates:
            rows.append(PickRow(name, None))
            continue
        rows.append(
            PickRow(
                name,
                candidates[pick["id"]],
                pick["verdict"],
                pick.get("read") or 0,
                pick.get("needed"),
                tuple(pick.get("refuted") or ()),
                tuple(pick.get("tied_with") or ()),
            )
        )
    return rows


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as pairs of a dotted key and a text, in order.

    >>> flatten({"packages": {"numpy": "2.1"}, "cores": 2})
    [('packages.numpy', '2.1'), ('cores', '2')]
    """
    pairs: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            pairs += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            pairs.append((f"{prefix}{key}", ", ".join(str(item) for item in value)))
        else:
            pairs.append((f"{prefix}{key}", MISSING if value is None else str(value)))
    return pairs

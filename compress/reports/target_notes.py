"""What a run has found out about its targets besides the front: where int8 does not pay, what runs in integers.

Sentences for the page and the end of a search; ids stand in backticks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from statistics import median
from typing import Any

from compress.reports import reading
from compress.reports.formatting import format_percent, format_ratio, format_seconds
from compress.reports.reading import Candidate, Report
from compress.selection.rankings import SAME_LATENCY
from compress.values.configs import STORED

_BUSY = 0.25
"""Share of disturbed rounds from which a measurement is said to have been disturbed."""
_MOVED = 1.1
"""Times the baseline's best time from which the machine is said to have moved."""
_FEWEST_READ = 8
"""Readings from which calibration is said."""
_FEWEST = 2
"""Networks that must have been measured in both precisions before anything is said in general."""


def notes(report: Report, target: str) -> list[str]:
    """The notes on ``target``, a sentence or two each; none where nothing is worth a note."""
    return [
        *_slower(report, target), *_integer(report, target), *_scored(report, target), *_disturbed(report, target),
        *_moved(report, target),
        *_lost(report, target), *_learnt(report, target),
    ]  # fmt: skip


def _learnt(report: Report, target: str) -> list[str]:
    """How well costs and qualities of networks were told before they were trained, on the target that decides."""
    learnt = report.get("environment", {}).get("learnt")
    if not learnt or target != next(iter(report["targets"]), None):
        return []
    found = [
        f"Costs of networks were told from {learnt['measured']} that were measured untrained: off by "
        f"{format_percent(learnt['cost_error'])} in the median, by {format_percent(learnt['worst_cost_error'])} at "
        "most, each told from the others."
    ]
    if learnt.get("calibration") is not None and learnt["read"] >= _FEWEST_READ:
        found.append(
            f"What was expected of the quality of networks was off by {learnt['calibration']:.2f} of the stated "
            f"deviations (1 is right), {format_percent(learnt['within'])} within one (68 % is right), on "
            f"{learnt['read']} readings of networks left out in turn."
        )
    if learnt.get("left_out"):
        found.append(f"Not made of trained networks, since nothing is gained by it: {', '.join(learnt['left_out'])}.")
    return found


def _slower(report: Report, target: str) -> list[str]:
    """Precisions that take longer than float at the same widths, in so many words."""
    cost = reading.main_cost(report, target)
    if cost in ("size", "memory"):
        return []
    quotients: dict[str, list[float]] = defaultdict(list)
    floats = {_network(one): one for one in reading.measured_on(report, target) if _scheme(one) == "fp32"}
    for one in reading.measured_on(report, target):
        partner = floats.get(_network(one)) or (reading.baseline(report) if not one["config"].get("widths") else None)
        ratio = reading.cost_ratio(report, one, target, cost)
        zero = reading.cost_ratio(report, partner, target, cost) if partner else None
        if _scheme(one) != "fp32" and ratio and zero and zero.value:
            quotients[_scheme(one)].append(ratio.value / zero.value)
    word = "time" if cost == "latency" else cost
    return [
        f"{scheme} is slower than float on {target}: {format_ratio(median(found))} of its {word} at the same "
        f"widths (median of {len(found)} networks)."
        for scheme, found in quotients.items()
        if len(found) >= _FEWEST and median(found) > 1 + SAME_LATENCY
    ]


def _scheme(candidate: Candidate) -> str:
    return str(candidate["config"]["precision"]["scheme"])


def _network(candidate: Candidate) -> int | None:
    """The trial whose training a candidate comes from; None for the baseline."""
    trial = candidate.get("trial")
    return None if trial is None else int(trial)


def _integer(report: Report, target: str) -> list[str]:
    """How much of the picks that are quantized really runs in integer kernels, and why the rest does not."""
    told: list[str] = []
    picked = {row.candidate["id"]: row.candidate for row in reading.pick_rows(report, target) if row.candidate}
    for name, candidate in picked.items():
        share = (reading.on(candidate, target) or {}).get("integer")
        if share is None or _scheme(candidate) in ("fp32", *STORED) or not share["layers"]:
            continue
        rest = share["layers"] - share["integer"]
        why = f"; {'the other' if rest == 1 else 'the others'}: {', '.join(share['why'][:2])}" if share["why"] else ""
        what = "operators on the NPU" if share.get("on_npu") else "convolutions and matrix products in integers"
        told.append(f"`{name}` runs {share['integer']} of its {share['layers']} {what}{why if rest else ''}.")
    return told


def _scored(report: Report, target: str) -> list[str]:
    """Where quality was not computed on the device, and how that was checked."""
    checks = [
        (split, check)
        for one in reading.measured_on(report, target)
        for split, check in ((reading.on(one, target) or {}).get("scored_on_host") or {}).items()
    ]
    if not checks:
        return []
    worst = min(check["agreement"] for _, check in checks)
    splits = " and ".join(sorted({split for split, _ in checks}, reverse=True))
    return [
        f"Quality on {splits} was computed on this machine from the same files, since {target} is too slow for it; on "
        f"{checks[0][1]['n']} examples that both computed, they decided alike in {format_percent(worst)} or more."
    ]


def _lost(report: Report, target: str) -> list[str]:
    """Quantized candidates that lost much of what their float network says, the most frequent reason first."""
    lost = [one for one in reading.measured_on(report, target) if _lost_in(one)]
    if not lost:
        return []
    cause, _ = Counter(_lost_in(one) for one in lost).most_common(1)[0]
    first = next(one["id"] for one in lost if _lost_in(one) == cause)
    many = "1 quantized candidate" if len(lost) == 1 else f"{len(lost)} quantized candidates"
    return [f"{many} lost much of what the float network says, as `{first}`: {cause}."]


def _disturbed(report: Report, target: str) -> list[str]:
    """Measurements that other work on the machine got in the way of, where they are many."""
    timed = [(reading.on(one, target) or {}).get("latency") for one in reading.measured_on(report, target)]
    shares = [latency.get("disturbed", 0.0) for latency in timed if latency]
    busy = [share for share in shares if share > _BUSY]
    if len(busy) < _FEWEST or 4 * len(busy) < len(shares):
        return []
    return [
        f"{len(busy)} of {len(shares)} measurements on {target} were disturbed: other work held up or slowed the CPU "
        f"in up to {format_percent(max(busy))} of their rounds, which were left out and "
        "measured again. Intervals get narrower if nothing else runs during the search."
    ]


def _moved(report: Report, target: str) -> list[str]:
    """By how much the machine's own speed moved from one measurement to another, where that is much."""
    beside = report.get("environment", {}).get("beside", {}).get(target)
    if not beside or beside[1] <= _MOVED * beside[0]:
        return []
    return [
        f"The machine moved on {target}: the baseline's own best time was {format_seconds(beside[0])} beside some "
        f"candidates and {format_seconds(beside[1])} beside others. Ratios are of neighbouring runs, but small "
        "networks and large ones do not slow down alike."
    ]


def _lost_in(candidate: Mapping[str, Any]) -> str:
    """What its quantized file has lost and where, as a sentence; empty where that is little."""
    return str(candidate["config"].get("fidelity", {}).get("lost_in", ""))

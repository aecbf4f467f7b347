"""Which file goes to which device, of a run on several targets: the fastest pick of each, and its network elsewhere.

Networks are trained once and each device has its own front of them, so the best one may differ from device to device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compress.reports import reading
from compress.reports.reading import Candidate, CostRatio, PickRow, Report

PICK = "fastest"
"""The pick that is shipped to each device."""


@dataclass(frozen=True)
class Shipped:
    """The file that goes to one device of a run, and what its network costs on the others."""

    target: str
    row: PickRow
    network: int | None
    """The number of the trial that the file's network came from; None for the baseline."""
    elsewhere: Mapping[str, CostRatio | None]
    """Target -> what the same network costs there, in the cheapest precision that meets the constraints there."""


def shipped(report: Report) -> list[Shipped]:
    """One entry for every device that the run has measured on; none where that is a single one."""
    zero = reading.baseline(report)
    names = [name for name in reading.target_names(report) if reading.on(zero, name) is not None]
    if len(names) < 2:
        return []
    found = []
    for target in names:
        row = next(row for row in reading.pick_rows(report, target) if row.pick == PICK)
        if row.candidate is not None:
            network = reading.trial(row.candidate)
            elsewhere = {name: _cheapest(report, network, name) for name in names}
            elsewhere[target] = _cost(report, row.candidate, target)
            found.append(Shipped(target, row, network, elsewhere))
    return found


def _cheapest(report: Report, network: int | None, target: str) -> CostRatio | None:
    """The least that a network costs on ``target`` within the constraints; None where no file of it is."""
    made = [
        one for one in reading.measured_on(report, target)
        if reading.trial(one) == network and (reading.on(one, target) or {}).get("feasible")
    ]  # fmt: skip
    costs = [cost for cost in (_cost(report, one, target) for one in made) if cost is not None]
    return min(costs, key=lambda cost: cost.value, default=None)


def _cost(report: Report, candidate: Candidate, target: str) -> CostRatio | None:
    return reading.cost_ratio(report, candidate, target, reading.main_cost(report, target))

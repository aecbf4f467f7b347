"""What ``paretopress bench --tune`` prints: what was tried, and the target to use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.reports.formatting import format_ratio, format_ratio_interval, format_seconds
from compress.reports.tables import plain_table, show
from targets.benches.tuning import Tried, Tuned

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_COLUMNS = (("target", "<"), ("in turns with", "<"), ("time\nx", ">"), ("p50", ">"), ("", "<"))


def print_tuned(found: Sequence[Tuned], console: Console) -> None:
    """Print for every target the table of what was tried, and a sentence on what to use."""
    for one in found:
        show(console, tuning_table(one), "", sentence(one), "")


def tuning_table(found: Tuned) -> Table:
    """A row for every value that was tried."""
    rows = [[one.target, one.against, _ratio(one), format_seconds(one.p50), _verdict(one)] for one in found.tried]
    return plain_table(_COLUMNS, rows, title=f"{found.model.name} on {found.asked}")


def sentence(found: Tuned) -> str:
    """What to use, and what is gained by it."""
    if found.best == found.asked:
        return f"No other settings are faster: use --target {found.asked}."
    gain, ends = format_ratio(found.gain.value), format_ratio_interval(found.gain.low, found.gain.high)
    return f"Use --target {found.best}: {gain} [{ends}] of the time of {found.asked}."


def _ratio(one: Tried) -> str:
    return f"{format_ratio(one.ratio.value)} [{format_ratio_interval(one.ratio.low, one.ratio.high)}]"


def _verdict(one: Tried) -> str:
    return "faster" if one.faster else "tied" if one.ratio.tied else "slower" if one.ratio.value > 1 else ""

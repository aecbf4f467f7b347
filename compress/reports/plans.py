"""What ``paretopress search --dry-run`` prints: the plan of a search, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compress.values.durations import format_duration
from compress.values.printable import printable

if TYPE_CHECKING:
    from rich.console import Console


_COUNTED = {"heads": "heads", "blocks": "blocks", "width": "channels in each head"}
"""What the number of a group counts where it is not channels, by the end of the group's name (``attn:heads``)."""


def print_plan(found: dict[str, Any], console: Console) -> None:
    """Print a plan, the JSON document that ``searching.dry_runs.plan`` makes, for people to read."""

    def say(text: str) -> None:
        console.print(printable(text), markup=False)

    network = f"{found['parameters']} parameters, {found['macs']} MACs; " if "macs" in found else ""
    say(f"task {found['task']}: {network}constraints {', '.join(found['constraints'])}")
    for text in found["warnings"]:
        say(f"warning: {text}")
    for name, target in found["targets"].items():
        say(
            f"target {name}: runs {', '.join(target['precisions']) or 'no precision that is searched'}; int8 in the "
            f"format {target['int8_format']}; channels in multiples of {target['channel_step']} (in int8 of "
            f"{target['int8_step']})"
        )
        for why in dict.fromkeys(why for _, why in target["left_out"]):
            schemes = ", ".join(scheme for scheme, one in target["left_out"] if one == why)
            say(f"left out on {name}: {schemes}: {why}")
    for name, channels, members in found["prunable"]:
        others = ", ".join(member for member in members if member != name) or "nothing else"
        counted = _COUNTED.get(name.partition(":")[2], "channels")
        say(f"prunable: {name}, {channels} {counted} (cut together with {others})")
    for name, why in found["kept"]:
        say(f"left alone: {name}: {why}")
    for name, others in found.get("removable", ()):
        served = f" (with {', '.join(others)})" if others else ""
        say(f"removable block: {name}{served}")
    for name, why in found.get("kept_blocks", ()):
        say(f"block left alone: {name}: {why}")
    for name, why in found.get("not_offered", ()):
        say(f"not offered: {name}: {why}")
    say(f"searched: {', '.join(found['dimensions'])}")
    if found["trial_seconds"] is not None:
        say(f"a trial with half of the channels takes about {format_duration(found['trial_seconds'])}")

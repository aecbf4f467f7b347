"""Writes docs/prunable.md: what of each kind of network can be pruned, and what is left alone and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zoo
from compress.networks.counting import macs_and_parameters
from compress.pruning.grouping import find_groups
from compress.pruning.pruning import prune

PATH = Path(__file__).parents[3] / "docs" / "prunable.md"
HEAD = """# What can be pruned

Each row is a small network of `tests/compress/shared/zoo*.py`. For each, the tests show that the pruned network
computes what the original does without the removed channels. *MACs left*: share of the multiply-accumulates that
remain when every group that can be loses 0.6 of its channels. A name with `:heads` means whole heads of attention,
with `:width` their width, with `:blocks` channels that go several at a time, with `:part` those of one slice.
Written by `python tests/compress/shared/zoo_table.py`.

| network | prunable: layer (channels) | MACs left | left alone: why |
|---|---|---|---|
"""


def table(found: dict[str, Any]) -> str:
    """The document; ``found``: groups by the name of the network."""
    rows = [_row(name, zoo.made(name), found[name]) for name in zoo.ZOO]
    return HEAD + "\n".join(rows) + "\n"


def _row(name: str, made: tuple[Any, Any], groups: Any) -> str:
    module, inputs = made
    left = prune(module, inputs, 0.6, groups=groups).macs / macs_and_parameters(module, inputs)[0]
    prunable = ", ".join(f"`{g.name}` ({g.channels})" for g in groups.prunable)
    why: dict[str, list[str]] = {}
    for layer, reason in groups.kept:
        why.setdefault(reason.partition(" (")[0], []).append(f"`{layer}`")
    kept = "; ".join(f"{', '.join(layers)}: {reason}" for reason, layers in why.items())
    return f"| {name} | {prunable} | {left:.2f} | {kept} |"


def main() -> None:
    """Find all groups anew and write the document."""
    PATH.write_text(table({name: find_groups(*zoo.made(name)) for name in zoo.ZOO}))


if __name__ == "__main__":
    main()

"""A table: a small space of networks, every one of them trained for several lengths, scored and timed.

With it a search can be replayed in seconds, as often as one likes, and the best that it could have found is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compress.sampling.network_arrays import patterns_by_dropped
from compress.selection.hypervolumes import hypervolume
from compress.values.networks import GroupLadder, LayerShape, Network, Pattern

REFERENCE = np.array([1.1, 0.1])
"""Cost and drop in front of which hypervolume is counted, as everywhere in this project."""


@dataclass(frozen=True)
class Entry:
    """One network; lists have an entry for each of the table's lengths of training."""

    network: Network
    costs: Mapping[str, float]
    """Precision -> latency as a share of the baseline's."""
    seconds_per_epoch: float
    val: Mapping[str, tuple[float, ...]]
    """Precision -> error on val."""
    test: Mapping[str, tuple[float, ...]]
    """The same on test; of a synthetic table, as it really is."""
    train_drop: tuple[float, ...]
    """By how much the error on train examples is above the baseline's there, in fp32."""


@dataclass(frozen=True)
class Table:
    """All networks of a space; ``load`` and ``save`` read and write it as JSON."""

    name: str
    step: int
    lengths: tuple[float, ...]
    """Epochs of each training, ascending."""
    limit: float
    """The drop that the fastest network may have."""
    budget: float
    """Seconds that a search is given."""
    baseline_error: float
    """On val."""
    baseline_test: float
    """The baseline's error on test."""
    val_examples: int
    train_examples: int
    patterns: tuple[Pattern, ...]
    entries: tuple[Entry, ...]

    @cached_property
    def of(self) -> dict[Network, Entry]:
        """Network -> its entry."""
        return {entry.network: entry for entry in self.entries}

    @cached_property
    def by_dropped(self) -> dict[tuple[str, ...], Pattern]:
        """Dropped blocks -> pattern."""
        return patterns_by_dropped(self.patterns)

    @cached_property
    def exact(self) -> float:
        """The hypervolume of everything in the table, by its quality on test."""
        return volume([(1.0, 0.0), *((cost, drop) for cost, _, drop in self.points())])

    @cached_property
    def fastest(self) -> float:
        """The least cost of what is within the limit on test, after the longest training."""
        within = [
            entry.costs[precision]
            for entry in self.entries
            for precision, errors in entry.test.items()
            if errors[-1] - self.baseline_test <= self.limit
        ]
        return min([1.0, *within])

    def points(self) -> Iterator[tuple[float, float, float]]:
        """(cost, drop on val, drop on test) of every entry, precision and length."""
        for entry in self.entries:
            for precision, errors in entry.val.items():
                for error, tested in zip(errors, entry.test[precision], strict=True):
                    yield entry.costs[precision], error - self.baseline_error, tested - self.baseline_test


def volume(points: list[tuple[float, float]]) -> float:
    """Hypervolume of (cost, drop) points, better quality than the baseline's counting as it does in reports."""
    return hypervolume(np.array(points), REFERENCE)


def save(table: Table, path: Path) -> None:
    path.write_text(json.dumps(asdict(table), separators=(",", ":")) + "\n")


def load(path: Path) -> Table:
    raw = json.loads(path.read_text())
    patterns = tuple(
        Pattern(
            tuple(pattern["dropped"]),
            tuple(GroupLadder(g["name"], g["channels"], tuple(g["widths"])) for g in pattern["groups"]),
            tuple(LayerShape(**{**layer, **_groups(layer)}) for layer in pattern["layers"]),
        )
        for pattern in raw["patterns"]
    )
    entries = tuple(read_entry(each) for each in raw["entries"])
    return Table(**{**raw, "lengths": tuple(raw["lengths"]), "patterns": patterns, "entries": entries})


def read_entry(raw: Mapping[str, Any]) -> Entry:
    """An entry of a table from its JSON."""
    return Entry(
        Network(tuple(raw["network"]["dropped"]), tuple((name, width) for name, width in raw["network"]["widths"])),
        raw["costs"],
        raw["seconds_per_epoch"],
        {name: tuple(values) for name, values in raw["val"].items()},
        {name: tuple(values) for name, values in raw["test"].items()},
        tuple(raw["train_drop"]),
    )


def _groups(layer: Mapping[str, Any]) -> dict[str, tuple[tuple[Any, ...], ...]]:
    named = ("input_groups", "output_groups", "input_overlaps", "output_overlaps", "position_groups")
    return {key: tuple(tuple(entry) for entry in layer[key]) for key in named if key in layer}

"""What a record keeps beside trials and candidates: each fact by its name, the newest value counts.

In the record's file a fact is a line with a name and a value. Two kinds are kept for each target (and candidate), which
then stand in the name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any, TypeVar

from compress.metrics.output_kinds import OutputKind
from compress.values.candidates import LayerDamage
from compress.values.serialization import from_json
from targets.target import Capabilities

T = TypeVar("T")

_DISAGREEMENTS, _ON_HOST = "disagreements", "scored on this machine for "


@dataclass(frozen=True)
class Skipped:
    """A precision of a trial's network that could not be made, and why."""

    trial: int
    scheme: str
    cause: str


@dataclass(frozen=True)
class Unconfirmed:
    """What the confirmation could not do for a candidate; ``trial`` is the one it came from."""

    trial: int | None
    cause: str


@dataclass(frozen=True)
class Learnt:
    """What a search has learnt about its networks, and how well."""

    measured: int
    """Networks whose cost was measured before any training, and after."""
    cost_error: float
    """Median relative error of the costs of networks, each predicted from all others."""
    worst_cost_error: float
    read: int
    """Readings on val that the model of quality was checked on."""
    calibration: float | None
    """Root mean square of its standardised errors, each network predicted without its own readings: 1 is calibrated."""
    within: float | None
    """Share of them within one standard deviation: 0.68 is calibrated."""
    left_out: tuple[str, ...] = ()
    """Precisions that gain nothing, by two measurements."""


@dataclass(frozen=True)
class Facts:
    """The newest of each fact; what was never noted is empty."""

    warnings: tuple[str, ...] = ()
    """About the task's data and its baseline, a line each."""
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Target -> its description, and its state when the call began."""
    architecture: str = ""
    """What stood for the model before anything was exported."""
    outputs: OutputKind = "logits"
    """What the baseline puts out, as it was found before it was scored first."""
    abilities: Mapping[str, Capabilities] = field(default_factory=dict)
    """Target -> what it can do, as measured."""
    groups: tuple[str, ...] = ()
    """Names of the prunable groups."""
    blocks: int = 0
    """Number of blocks that can be dropped; 0 also where nobody asked."""
    int8_damage: tuple[LayerDamage, ...] = ()
    """What int8 takes from each layer and operator of the baseline, the worst first."""
    lossy_operators: tuple[str, ...] = ()
    """Operators, other than products, that lose much in int8."""
    mode: Mapping[str, Any] | None = None
    """``mode``: how to train fastest here, as a ``TrainingMode``; ``seconds`` of a step in each that was tried."""
    trained_with: Mapping[str, Any] | None = None
    """What networks were trained with: hashes of train data, loss, training loop and optimizer."""
    learning_rates: tuple[float, float] | None = None
    """The range that was found where the space asks for one."""
    skipped: tuple[Skipped, ...] = ()
    unconfirmed: tuple[Unconfirmed, ...] = ()
    scored_on_host: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Target -> splits that this machine scores in its place, since it is too slow; absent: not decided yet."""
    disagreements: Mapping[tuple[str, str], tuple[int, int, int]] = field(default_factory=dict)
    """(target, candidate's id) -> examples (lost, gained, all) on test, where the metric is a proportion."""
    measured_networks: tuple[Mapping[str, Any], ...] = ()
    """Parameters of the networks that were measured, one by one, before they were to be trained."""
    learnt: Learnt | None = None
    """Where networks were chosen by their costs."""
    certainties: Mapping[str, float] = field(default_factory=dict)
    """Candidate's id -> probability that its drop on test will be within the limit, as the search expected it."""

    def taken(self, name: str, value: Any) -> Facts:
        """With one line of the record taken in; a name that is not known changes nothing.

        Raises SpaceError or ValueError for a value that does not fit.
        """
        if name.startswith(f"{_DISAGREEMENTS}|"):
            target, _, identifier = name.partition("|")[2].rpartition("|")
            counts = from_json(tuple[int, int, int], value)
            return replace(self, disagreements={**self.disagreements, (target, identifier): counts})
        if name.startswith(_ON_HOST):
            splits = from_json(tuple[str, ...], value)
            return replace(self, scored_on_host={**self.scored_on_host, name.removeprefix(_ON_HOST): splits})
        read = _READ.get(name)
        return self if read is None else replace(self, **{name: read(value)})


def fact_line(name: str, value: Any, of: tuple[str, ...] = ()) -> dict[str, Any]:
    """How a fact stands in the record's file: the ``name`` and ``value`` of its line.

    ``of``: what a fact is kept for, where it is kept for each (target,) or (target, candidate's id). Raises KeyError
    for a name that is no fact's.
    """
    if name == "disagreements":
        return {"name": "|".join((_DISAGREEMENTS, *of)), "value": list(value)}
    if name == "scored_on_host":
        return {"name": f"{_ON_HOST}{of[0]}", "value": list(value)}
    if name in ("skipped", "unconfirmed"):
        return {"name": name, "value": [list(astuple(row)) for row in value]}
    if name not in _READ:
        raise KeyError(name)
    return {"name": name, "value": value}


def _as(kind: type[T]) -> Callable[[Any], T]:
    return lambda value: from_json(kind, value)


def _optional_mapping(value: Any) -> Mapping[str, Any] | None:
    return None if value is None else from_json(dict[str, Any], value)


_READ: Mapping[str, Callable[[Any], Any]] = {
    "warnings": _as(tuple[str, ...]),
    "targets": _as(dict[str, dict[str, Any]]),
    "architecture": _as(str),
    "outputs": lambda value: from_json(OutputKind, value),  # type: ignore[arg-type]  # a Literal is no type to mypy
    "abilities": _as(dict[str, Capabilities]),
    "groups": _as(tuple[str, ...]),
    "blocks": _as(int),
    "int8_damage": _as(tuple[LayerDamage, ...]),
    "lossy_operators": _as(tuple[str, ...]),
    "mode": _optional_mapping,
    "trained_with": _optional_mapping,
    "learning_rates": _as(tuple[float, float]),
    "measured_networks": _as(tuple[dict[str, Any], ...]),
    "learnt": _as(Learnt),
    "certainties": _as(dict[str, float]),
    # In the file these are lists in the order of the fields.
    "skipped": lambda value: tuple(Skipped(*from_json(tuple[int, str, str], row)) for row in value),
    "unconfirmed": lambda value: tuple(Unconfirmed(*from_json(tuple[int | None, str], row)) for row in value),
}

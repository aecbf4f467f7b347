"""What a setting is: one row beside its field in a config.

Whatever else says something about a setting is made from its row: the check of its value, the dimensions of a search,
the first configs, which settings can change a cost, how a network is trained in int8, and the README's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Protocol

from targets.errors import SpaceError

_ROW = "setting"
OMITTED = "omitted"
"""Key of a field's metadata: whether the field is left out of JSON where it has its default."""
LARGEST = "largest"
"""As a row's ``steady``: the upper end of the domain."""


class Values(Protocol):
    """The values that a setting of a search space may have, and how they are checked."""

    def check(self, name: str, value: Any) -> None:
        """Raise SpaceError where ``value`` is none of them; ``name`` is the setting's in a search space."""

    @property
    def cast(self) -> Callable[[Any], Any]:
        """What makes a value of the setting's own type of what a sampler gives."""


@dataclass(frozen=True)
class Within:
    """Real numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    cast: Callable[[Any], Any] = float

    def check(self, name: str, value: Any) -> None:
        """Raise SpaceError for what is no number, or lies outside."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SpaceError(f"{name}={value!r}: must be a number, or a Float, Int or Choice to search")
        if not self.low <= value <= self.high:
            raise SpaceError(f"{name}={value}: must be within [{self.low}, {self.high}]")


@dataclass(frozen=True)
class Whole:
    """Whole numbers from ``low`` up: an epoch and a half cannot be trained."""

    low: int
    high: int = 10**6
    cast: Callable[[Any], Any] = int

    def check(self, name: str, value: Any) -> None:
        """Raise SpaceError for what is no whole number, or lies outside."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise SpaceError(f"{name}={value!r}: must be a whole number")
        if not self.low <= value <= self.high:
            raise SpaceError(f"{name}={value}: must be within [{self.low}, {self.high}]")


@dataclass(frozen=True)
class OneOf:
    """Values of a setting that is one of a few names."""

    names: tuple[str, ...]
    cast: Callable[[Any], Any] = str

    def check(self, name: str, value: Any) -> None:
        """Raise SpaceError for what is none of the names."""
        if value not in self.names:
            raise SpaceError(f"{name}={value!r}: must be one of {', '.join(self.names)}")


@dataclass(frozen=True)
class YesNo:
    """Values of a setting that is either on or off: True or False."""

    cast: Callable[[Any], Any] = bool

    def check(self, name: str, value: Any) -> None:
        """Raise SpaceError for what is neither True nor False."""
        if not isinstance(value, bool):
            raise SpaceError(f"{name}={value!r}: must be True or False")


@dataclass(frozen=True)
class ForEachGroup:
    """A value for each of some groups, by their names; in a search space a single one, for all of them."""

    each: Within

    def check(self, name: str, value: Any) -> None:
        """Raise SpaceError for the first value that is none, with its group's name."""
        for group, one in value.items() if isinstance(value, Mapping) else [("", value)]:
            self.each.check(f"{name}.{group}" if group else name, one)

    @property
    def cast(self) -> Callable[[Any], Any]:
        """What makes one group's value of what a sampler gives."""
        return self.each.cast


@dataclass(frozen=True)
class Needs:
    """What a network must have for a setting to be searched: numbers of prunable groups, of removable blocks, and of
    operators other than products that lose much in int8."""

    groups: int = 0
    most_groups: int | None = None
    blocks: int = 0
    lossy_operators: int = 0

    def met(self, groups: int, blocks: int, lossy_operators: int = 0) -> bool:
        """Whether a network that has so many of each is enough."""
        few = self.most_groups is None or groups <= self.most_groups
        return groups >= self.groups and few and blocks >= self.blocks and lossy_operators >= self.lossy_operators


NOTHING = Needs()
GROUPS = Needs(groups=1)
SEVERAL_GROUPS = Needs(groups=2)
BLOCKS = Needs(blocks=1)
LOSSY_OPERATORS = Needs(lossy_operators=1)


@dataclass(frozen=True)
class SettingInfo:
    """What one setting is. Its neutral value, with which it does nothing, is the default of its field."""

    values: Values
    text: str
    """What it means, as the README's table says it."""
    steady: Any = None
    """A value that seldom hurts, for the first configs; ``LARGEST``; or None: the middle of the domain."""
    name: str = ""
    """Its name in a search space, where that is not the field's."""
    needs: Needs = NOTHING
    changes_cost: bool = False
    """Whether a cost (latency, size, memory, a count) can depend on it; training settings change quality alone."""
    in_int8_training: bool = True
    """Of a fine-tuning setting: whether training in int8 takes it over; if not, it is neutral there."""


def setting(
    neutral: Any, values: Values, text: str, *, steady: Any = None, name: str = "", needs: Needs = NOTHING,
    changes_cost: bool = False, in_int8_training: bool = True,
) -> Any:  # fmt: skip
    """A dataclass field with its row; ``neutral`` is its default, or what makes it. The rest as in ``SettingInfo``."""
    metadata = {_ROW: SettingInfo(values, text, steady, name, needs, changes_cost, in_int8_training)}
    if callable(neutral):
        return field(default_factory=neutral, metadata=metadata)
    return field(default=neutral, metadata=metadata)


def unsearched(default: Any, *, omitted: bool = False) -> Any:
    """A dataclass field of a config that is no setting: it follows from something else.

    ``default``: its value, or what makes it. ``omitted``: it is not written where it has that value.
    """
    metadata = {_ROW: None, OMITTED: omitted}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Row:
    """A row with where it stands: the config's part (a dataclass) and its field there."""

    part: type
    field: str
    neutral: Any
    setting: SettingInfo

    @property
    def name(self) -> str:
        """The setting's name in a search space."""
        return self.setting.name or self.field


@cache
def rows_of(*parts: type) -> dict[str, Row]:
    """Name in a search space -> row, of some dataclasses' settings; raises TypeError for a field without one."""
    found: dict[str, Row] = {}
    for part in parts:
        for one in fields(part):
            if _ROW not in one.metadata:
                raise TypeError(f"{part.__name__}.{one.name} has no row: declare it with setting(...)")
            if one.metadata[_ROW] is None:
                continue
            neutral = one.default_factory() if callable(one.default_factory) else one.default
            row = Row(part, one.name, neutral, one.metadata[_ROW])
            found[row.name] = row
    return found


def check_all(part: Any) -> None:
    """Raise SpaceError for the first field of a config's part whose value is not allowed."""
    kind: type = type(part)
    for name, row in rows_of(kind).items():
        row.setting.values.check(name, getattr(part, row.field))

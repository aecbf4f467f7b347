"""Settings of a target: what may stand after the colon in ``NAME:KEY=VALUE,...``.

A target class lists them as ``settings``; the registry parses and checks with them, the class fills in what was
not given, and the canonical name leaves out what equals the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from targets.errors import TargetError


@dataclass(frozen=True)
class Setting:
    """One key: its default, and either the words it may be or the smallest and largest integer."""

    default: Any
    words: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    help: str = ""
    tried: tuple[Any, ...] = ()
    """Values that change how fast a model runs and not what it computes: ``tune`` tries them."""
    counts_cores: bool = False
    """Whether it is a number of cores: then what is tried goes up to as many as there are."""

    def worth_trying(self, cores: int) -> tuple[Any, ...]:
        """The values that ``tune`` tries on a machine with so many cores, none where it leaves the setting alone."""
        if not self.counts_cores:
            return self.tried
        powers = [2**i for i in range(cores.bit_length()) if 2**i < cores]
        return (*powers, cores)

    @property
    def allowed(self) -> str:
        """The values that are allowed, in words, as they stand in messages."""
        if self.words:
            return "one of " + ", ".join(self.words)
        if isinstance(self.default, int):
            upper = f" to {self.most}" if self.most is not None else " or more"
            return f"an integer, {self.least}{upper}" if self.least is not None else "an integer"
        return "a text"

    def parse(self, owner: str, key: str, value: Any) -> Any:
        """The checked value; raises TargetError naming key, value and what is allowed."""
        parsed = value
        if isinstance(self.default, int):
            try:
                parsed = int(str(value))
            except ValueError:
                parsed = None
            if parsed is not None and (
                (self.least is not None and parsed < self.least) or (self.most is not None and parsed > self.most)
            ):
                parsed = None
        elif self.words and value not in self.words:
            parsed = None
        if parsed is None:
            raise TargetError(f"target {owner!r}: {key}={value} is not allowed; {key} is {self.allowed}")
        return parsed


def checked_settings(owner: str, known: Mapping[str, Setting], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all settings that are ``known``: those given, checked, and else the defaults.

    Raises TargetError for a setting that ``owner`` does not have, and for a value that is not allowed.
    """
    for key in given:
        if key not in known:
            hint = f"it takes {', '.join(sorted(known))}" if known else "it takes no settings"
            raise TargetError(f"target {owner!r} has no setting {key!r}; {hint}")
    return {key: one.parse(owner, key, given.get(key, one.default)) for key, one in known.items()}


def canonical_name(base: str, known: Mapping[str, Setting], values: Mapping[str, Any]) -> str:
    """A target's name as it stands in reports: ``NAME[:KEY=VALUE,...]``, keys sorted, defaults left out."""
    said = [f"{key}={values[key]}" for key in sorted(values) if values[key] != known[key].default]
    return f"{base}:{','.join(said)}" if said else base

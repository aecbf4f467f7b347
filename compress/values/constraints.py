"""Quantities, objectives and constraints: what can be asked for, in the words of design.md.

A constraint is ``QUANTITY<=NUMBER[UNIT]`` or ``>=``. Inside, everything is in seconds, bytes, counts and
the metric's own unit; ``x`` is relative to the baseline on the same target.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from targets.errors import ConstraintError

OBJECTIVES = ("quality", "latency", "size", "memory", "instructions")
QUANTITIES = ("quality", "quality_drop", "latency", "size", "memory", "instructions")
"""What a constraint may limit."""

_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KB": 1e3, "KiB": 1024.0, "MiB": 1024.0**2}
_UNITS: dict[str, dict[str, float]] = {
    "quality": {"": 1.0},
    "quality_drop": {"": 1.0},
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "size": _BYTES,
    "memory": _BYTES,
    "instructions": {"": 1.0},
}
_RELATIVE = frozenset({"latency", "size", "memory", "instructions"})
_FORM = re.compile(r"^\s*([A-Za-z_]+)\s*(<=|>=)\s*([0-9.eE+-]+?)\s*([A-Za-z%]*)\s*$")


@dataclass(frozen=True)
class Constraint:
    """``quantity operator limit``; the limit in base units, or relative to the baseline."""

    quantity: str
    operator: str
    limit: float
    relative: bool = False
    text: str = ""

    def excess(self, value: float, baseline: float | None) -> float:
        """How far ``value`` is beyond the limit, in the quantity's base unit (or in x); <= 0 is met."""
        if self.relative:
            value = value / baseline if baseline else value
        return value - self.limit if self.operator == "<=" else self.limit - value

    def violation(self, value: float, baseline: float | None) -> float:
        """``excess`` as a share of the limit: what samplers are told, so that bytes do not drown accuracy."""
        return self.excess(value, baseline) / (abs(self.limit) or 0.01)


def parse_constraint(text: str) -> Constraint:
    """Read ``QUANTITY<=NUMBER[UNIT]``; raises ConstraintError with what would be right."""
    match = _FORM.match(text)
    if match is None:
        raise ConstraintError(
            f"constraint {text!r} is not QUANTITY<=NUMBER[UNIT] (or >=), for example 'quality_drop<=0.01'"
        )
    quantity, operator, number, unit = match.groups()
    if quantity not in QUANTITIES:
        raise ConstraintError(f"constraint {text!r}: unknown quantity {quantity!r}; use one of {', '.join(QUANTITIES)}")
    try:
        limit = float(number)
    except ValueError:
        raise ConstraintError(f"constraint {text!r}: {number!r} is not a number") from None
    if unit == "x" and quantity in _RELATIVE:
        return Constraint(quantity, operator, limit, relative=True, text=text.replace(" ", ""))
    units = _UNITS[quantity]
    if unit not in units:
        known = [name for name in units if name] + (["x"] if quantity in _RELATIVE else [])
        hint = f"use one of {', '.join(known)}" if known else "it takes no unit"
        raise ConstraintError(f"constraint {text!r}: {unit or 'no'} unit does not fit {quantity}; {hint}")
    return Constraint(quantity, operator, limit * units[unit], text=text.replace(" ", ""))


def parse_objectives(names: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Check objective names: two or more, known, each once."""
    for name in names:
        if name not in OBJECTIVES:
            raise ConstraintError(f"unknown objective {name!r}; use two or more of {', '.join(OBJECTIVES)}")
    if len(set(names)) != len(names) or len(names) < 2:
        raise ConstraintError(f"objectives {list(names)}: two or more different ones are needed")
    return tuple(names)

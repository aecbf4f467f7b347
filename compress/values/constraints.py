"""Quantities, objectives and constraints: what a search can be asked for.

A constraint is written ``QUANTITY<=NUMBER[UNIT]``, or with ``>=``. Limits are kept in seconds, bytes, counts and the
metric's own unit; a limit with the unit ``x`` is relative to the baseline on the same target.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from targets.errors import ConstraintError, RequestError

OBJECTIVES = ("quality", "latency", "size", "memory", "instructions", "cycles")
"""What a front may span."""
QUANTITIES = ("quality", "quality_drop", "latency", "size", "memory", "instructions", "cycles")
"""What a constraint may limit."""

_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KB": 1e3, "KiB": 1024.0, "MiB": 1024.0**2}
_UNITS: dict[str, dict[str, float]] = {
    "quality": {"": 1.0},
    "quality_drop": {"": 1.0},
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "size": _BYTES,
    "memory": _BYTES,
    "instructions": _COUNTS,
    "cycles": _COUNTS,
}
_LEAST_MEMORY = 100_000_000
_RELATIVE = frozenset({"latency", "size", "memory", "instructions", "cycles"})
_FORM = re.compile(r"^\s*([A-Za-z_]+)\s*(<=|>=)\s*([0-9.eE+-]+?)\s*([A-Za-z%]*)\s*$")


@dataclass(frozen=True)
class Constraint:
    """A limit on one quantity.

    >>> limit = Constraint("size", "<=", 0.5, relative=True, text="size<=0.5x")
    >>> limit.excess(75_000, 100_000)  # 0.75 of the baseline's bytes
    0.25
    >>> limit.violation(75_000, 100_000)
    0.5
    """

    quantity: str
    operator: str
    """``<=`` or ``>=``."""
    limit: float
    """In base units (seconds, bytes, counts, the metric's own), or relative to the baseline."""
    relative: bool = False
    """Whether the limit is relative to the baseline's value."""
    text: str = ""
    """The constraint as it was written, without spaces."""

    def excess(self, value: float, baseline: float | None) -> float:
        """How far ``value`` is beyond the limit, in the limit's unit; 0 or less means that the constraint is met.

        Where the limit is relative, ``value`` is divided by ``baseline`` first, unless that is None or 0.
        """
        if self.relative:
            value = value / baseline if baseline else value
        return value - self.limit if self.operator == "<=" else self.limit - value

    def violation(self, value: float, baseline: float | None) -> float:
        """``excess`` as a share of the limit, so that excesses of bytes and of accuracy can be compared."""
        return self.excess(value, baseline) / (abs(self.limit) or 0.01)


def parse_constraint(text: str) -> Constraint:
    """The constraint that ``text`` says, written as ``QUANTITY<=NUMBER[UNIT]`` or with ``>=``.

    Raises ConstraintError, which says what would be right.

    >>> parse_constraint("latency <= 2ms")
    Constraint(quantity='latency', operator='<=', limit=0.002, relative=False, text='latency<=2ms')
    >>> parse_constraint("size<=0.5x").relative
    True
    >>> parse_constraint("instructions<=10M").limit
    10000000.0
    """
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


def parse_bytes(text: str | int | None) -> int | None:
    """An amount of memory in bytes, from a text such as ``2GB`` or ``500MB``, or from a number; None stays None.

    Raises RequestError for what is none, or is less than 100 MB, with which nothing can be done.

    >>> [parse_bytes(text) for text in ("2GB", "512MiB", 300000000)]
    [2000000000, 536870912, 300000000]
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", str(text))
    if match is None or (match[2] or "B") not in _BYTES:
        raise RequestError(f"memory {text!r} is not an amount; write 2GB or 500MB")
    found = int(float(match[1]) * _BYTES[match[2] or "B"])
    if found < _LEAST_MEMORY:
        raise RequestError(f"memory {text!r} is too little; at least {_LEAST_MEMORY // 10**6}MB are needed")
    return found


def allowed_drops(constraints: Sequence[Constraint], baseline: float, *, higher_is_better: bool = True) -> list[float]:
    """How much quality each of ``constraints`` on it lets be lost against the baseline's, in the metric's unit.

    >>> allowed_drops([parse_constraint("quality_drop<=0.01"), parse_constraint("quality>=0.75")], 1.0)
    [0.01, 0.25]
    """
    sign, least = (1.0, ">=") if higher_is_better else (-1.0, "<=")
    drops = [c.limit for c in constraints if c.quantity == "quality_drop" and c.operator == "<="]
    return drops + [sign * (baseline - c.limit) for c in constraints if c.quantity == "quality" and c.operator == least]


def parse_objectives(names: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """The names of objectives as a tuple; raises ConstraintError unless they are two or more, known, and each once.

    >>> parse_objectives(["quality", "latency"])
    ('quality', 'latency')
    """
    for name in names:
        if name not in OBJECTIVES:
            raise ConstraintError(f"unknown objective {name!r}; use two or more of {', '.join(OBJECTIVES)}")
    if len(set(names)) != len(names) or len(names) < 2:
        raise ConstraintError(f"objectives {list(names)}: two or more different ones are needed")
    return tuple(names)

"""Domains: what a setting is searched over. A range of real or whole numbers, or a choice of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from targets.errors import SpaceError


@dataclass(frozen=True)
class Float:
    """Real numbers from ``low`` to ``high``, both included; with ``log``, uniform in the logarithm.

    Raises SpaceError where ``low`` is above ``high``, or not above 0 with ``log``.

    >>> Float(0.0, 0.9).holds(0.5)
    True
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not all(isinstance(bound, (int, float)) for bound in (self.low, self.high)):
            raise SpaceError(f"Float({self.low!r}, {self.high!r}): needs numbers")
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise SpaceError(f"Float({self.low}, {self.high}, log={self.log}): needs low <= high, and low > 0 with log")

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is a number that lies in the domain."""
        return isinstance(value, (int, float)) and self.low <= value <= self.high


@dataclass(frozen=True)
class Int:
    """Whole numbers from ``low`` to ``high``, both included; with ``log``, uniform in the logarithm.

    Raises SpaceError where ``low`` is above ``high``, or not above 0 with ``log``.
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise SpaceError(f"Int({self.low!r}, {self.high!r}): needs whole numbers; Float is for others")
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise SpaceError(f"Int({self.low}, {self.high}, log={self.log}): needs low <= high, and low > 0 with log")

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is a whole number that lies in the domain."""
        return isinstance(value, int) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """One of a few values, given one by one or as one list; raises SpaceError where there is none.

    >>> Choice("fp32", "int8") == Choice(["fp32", "int8"])
    True
    """

    values: tuple[bool | float | int | str, ...]

    def __init__(self, *values: Any) -> None:
        flat = tuple(values[0]) if len(values) == 1 and isinstance(values[0], (list, tuple)) else values
        if not flat:
            raise SpaceError("Choice(): needs at least one value")
        object.__setattr__(self, "values", flat)

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is one of the values."""
        return value in self.values


Domain: TypeAlias = Float | Int | Choice | float | int | str
"""What a search space says of a setting: a domain to search, or a constant."""


def middle(domain: Domain) -> Any:
    """A domain's centre (of the logarithm where it is logarithmic; the first of a choice), or the constant.

    >>> middle(Float(1.0, 100.0, log=True)), middle(Int(4, 16)), middle(Choice("a", "b")), middle(0.5)
    (10.0, 10, 'a', 0.5)
    """
    if isinstance(domain, Choice):
        return domain.values[0]
    if isinstance(domain, (Float, Int)):
        centre = (domain.low * domain.high) ** 0.5 if domain.log else (domain.low + domain.high) / 2
        return round(centre) if isinstance(domain, Int) else centre
    return domain


def nearest(domain: Float | Int | Choice, value: Any) -> Any:
    """``value`` moved into the domain; the first of a choice that does not have it.

    >>> nearest(Float(0.0, 0.9), 1.5), nearest(Int(4, 16), 0), nearest(Choice("a", "b"), "c")
    (0.9, 4, 'a')
    """
    if isinstance(domain, Choice):
        return value if domain.holds(value) else domain.values[0]
    bounded = min(max(value, domain.low), domain.high)
    return round(bounded) if isinstance(domain, Int) else float(bounded)


def corners(domain: Domain) -> tuple[Any, ...]:
    """The values of a choice, the ends of a range, or the constant.

    >>> corners(Int(4, 16)), corners("cosine")
    ((4, 16), ('cosine',))
    """
    if isinstance(domain, Choice):
        return domain.values
    return (domain.low, domain.high) if isinstance(domain, (Float, Int)) else (domain,)

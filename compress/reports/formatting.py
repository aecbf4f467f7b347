"""Numbers as people read them: the one place where seconds, bytes and ratios become text.

Everything inside the project is in seconds, bytes, counts and plain ratios (`results.py`); the page and the
terminal tables share these functions, so that one number looks the same in both. ``None`` and what is not
finite mean "not measured" and are shown as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DASH = "\N{EN DASH}"
MISSING = DASH
"""What stands where nothing was measured."""
MINUS = "\N{MINUS SIGN}"

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_PARTS = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def known(value: float | None) -> bool:
    """Whether ``value`` is a number that can be shown."""
    return value is not None and math.isfinite(value)


def fixed(value: float | None, decimals: int) -> str:
    """``value`` with so many decimals, a true minus sign, and no minus on zero."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if not float(text) else text.replace("-", MINUS)


def significant(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, never in exponent form: 37.4, 1.20, 1234."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    return fixed(value, max(digits - 1 - math.floor(math.log10(abs(rounded))), 0))


def _scaled(value: float | None, units: Sequence[tuple[float, str]], whole: str | None = None) -> str:
    """``value`` in the largest of ``units`` that it fills; in the unit called ``whole`` without decimals."""
    if value is None or not math.isfinite(value):
        return MISSING
    # Rounded first, so that 999.6 µs becomes 1.00 ms and not 1000 µs.
    rounded = abs(float(f"{value:.2e}"))
    factor, unit = next(((f, u) for f, u in units if rounded >= f), units[-1])
    number = fixed(value / factor, 0) if unit == whole else significant(value / factor)
    return f"{number} {unit}".rstrip()


def seconds(value: float | None) -> str:
    """A latency: ``37.4 µs``, ``1.20 ms``, ``2.50 s``."""
    return _scaled(value, _TIMES)


def duration(value: float | None) -> str:
    """A time that somebody waited: ``0.4 s``, ``41 s``, ``9 min 41 s``, ``2 h 5 min``."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def size(value: float | None) -> str:
    """Bytes: ``512 B``, ``52.1 kB`` (1 kB is 1000 B, as in constraints), ``1.25 MB``."""
    return _scaled(value, _BYTES, whole="B")


def count(value: float | None) -> str:
    """Parameters, MACs, instructions: ``512``, ``24.9 k``, ``2.66 M``."""
    return _scaled(value, _COUNTS, whole="")


def ratio(value: float | None) -> str:
    """A ratio to the baseline: ``0.37x``; three decimals below 0.1."""
    return MISSING if not known(value) else f"{_ratio(value)}x"


def _ratio(value: float | None) -> str:
    return fixed(value, 3 if value is not None and abs(value) < 0.0995 else 2)


def percent(value: float | None) -> str:
    """A share of one: ``12 %``; ``< 1 %`` for what would round to nothing."""
    if value is None or not math.isfinite(value):
        return MISSING
    return "< 1 %" if 0 < value < 0.005 else f"{fixed(100 * value, 0)} %"


def interval(low: float | None, high: float | None, show: Callable[[float | None], str]) -> str:
    """``0.36-0.38`` (with an en dash); with a negative end ``-0.7 to 1.4``, where a dash could be read as a sign."""
    if not (known(low) and known(high)):
        return MISSING
    left, right = show(low), show(high)
    return f"{left} to {right}" if MINUS in left + right else f"{left}{DASH}{right}"


def ratio_interval(low: float | None, high: float | None) -> str:
    """The interval of a ratio, without the x: ``0.36-0.38``."""
    return interval(low, high, _ratio)


def bar(value: float | None, full: float = 1.0, width: int = 12) -> str:
    """A plain bar of at most ``width`` characters, to an eighth of one; ``full`` fills it, beyond it ends in ``+``."""
    if value is None or not math.isfinite(value) or full <= 0:
        return ""
    eighths = round(max(value, 0.0) / full * width * _PARTS)
    if eighths > width * _PARTS:
        return "█" * (width - 1) + "+"
    whole, rest = divmod(eighths, _PARTS)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")


@dataclass(frozen=True)
class QualityFormat:
    """How one metric's values are written: shares of one in %, their differences in points, the rest plainly."""

    metric: str
    percent: bool
    decimals: int = 1

    @property
    def scale(self) -> float:
        """What values are multiplied with before they are shown."""
        return 100.0 if self.percent else 1.0

    def number(self, value: float | None) -> str:
        """A value without its unit: ``94.3``, or ``0.2178``."""
        return self._write(value, 4)

    def interval(self, low: float | None, high: float | None) -> str:
        """An interval in the unit of ``points``, rounded outward: what crosses a limit must not seem to stop at it."""
        if low is None or high is None or not (known(low) and known(high)):
            return MISSING
        if not self.percent:
            return interval(low, high, self.points)
        step = 10.0**self.decimals
        outward = math.floor(low * 100 * step + 1e-6) / step / 100, math.ceil(high * 100 * step - 1e-6) / step / 100
        return interval(*outward, self.points)

    def points(self, value: float | None) -> str:
        """A difference without its unit: ``0.3``, or ``0.0121``."""
        return self._write(value, 3)

    def _write(self, value: float | None, digits: int) -> str:
        if value is None or not self.percent:
            return significant(value, digits)
        return fixed(100 * value, self.decimals)

    def value(self, value: float | None) -> str:
        """``94.3 %``, or ``0.2178``."""
        return f"{self.number(value)} %" if self.percent and known(value) else self.number(value)

    def difference(self, value: float | None, *, signed: bool = False) -> str:
        """``0.3 points``, or ``0.0121``; ``signed`` writes the plus as well."""
        text = self.points(value)
        if signed and value is not None and value > 0 and any(digit in text for digit in "123456789"):
            text = f"+{text}"
        return f"{text} points" if self.percent and known(value) else text

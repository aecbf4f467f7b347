"""Numbers as people read them: the one place where seconds, bytes and ratios become text.

Everything inside the project is in seconds, bytes, counts and plain ratios (``values/candidates.py``); the page and
the terminal tables share these functions, so that one number looks the same in both. ``None`` and what is not finite
mean "not measured" and are shown as a dash. How long somebody waited is written by ``values/durations.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.values.candidates import Measured

DASH = "\N{EN DASH}"
MISSING = DASH
"""What stands where nothing was measured."""
MINUS = "\N{MINUS SIGN}"

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_PARTS = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def is_known(value: float | None) -> bool:
    """Whether ``value`` is a number that can be shown: not None, not NaN and not infinite."""
    return value is not None and math.isfinite(value)


def format_fixed(value: float | None, decimals: int) -> str:
    """``value`` with so many decimals, a true minus sign, and no minus before zero.

    >>> format_fixed(3.14159, 2)
    '3.14'
    >>> format_fixed(-0.001, 2)
    '0.00'
    """
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if not float(text) else text.replace("-", MINUS)


def format_significant(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, but all that stand before the point, never in exponent form.

    >>> [format_significant(value) for value in (37.42, 1.2, 1234.0)]
    ['37.4', '1.20', '1234']
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    return format_fixed(value, max(digits - 1 - math.floor(math.log10(abs(rounded))), 0))


def _scaled(value: float | None, units: Sequence[tuple[float, str]], whole: str | None = None) -> str:
    """``value`` in the largest of ``units`` that it fills; in the unit called ``whole`` without decimals."""
    if value is None or not math.isfinite(value):
        return MISSING
    # Rounded first, so that 999.6 µs becomes 1.00 ms and not 1000 µs.
    rounded = abs(float(f"{value:.2e}"))
    factor, unit = next(((f, u) for f, u in units if rounded >= f), units[-1])
    number = format_fixed(value / factor, 0) if unit == whole else format_significant(value / factor)
    return f"{number} {unit}".rstrip()


def format_seconds(value: float | None) -> str:
    """A latency, given in seconds.

    >>> [format_seconds(value) for value in (0.0000374, 0.0012, 2.5)]
    ['37.4 µs', '1.20 ms', '2.50 s']
    """
    return _scaled(value, _TIMES)


def format_size(value: float | None) -> str:
    """A size, given in bytes; 1 kB is 1000 B, as in constraints.

    >>> [format_size(value) for value in (512, 52_100, 1_250_000)]
    ['512 B', '52.1 kB', '1.25 MB']
    """
    return _scaled(value, _BYTES, whole="B")


def format_count(value: float | None) -> str:
    """A number of parameters, of multiply-accumulates (MACs), of instructions or of cycles.

    >>> [format_count(value) for value in (512, 24_908, 2_656_768)]
    ['512', '24.9 k', '2.66 M']
    """
    return _scaled(value, _COUNTS, whole="")


def format_ratio(value: float | None) -> str:
    """A ratio to the baseline, with two decimals, or with three below 0.1.

    >>> [format_ratio(value) for value in (0.374, 0.0421)]
    ['0.37x', '0.042x']
    """
    return MISSING if not is_known(value) else f"{_plain_ratio(value)}x"


def _plain_ratio(value: float | None) -> str:
    return format_fixed(value, 3 if value is not None and abs(value) < 0.0995 else 2)


def format_percent(value: float | None) -> str:
    """A share of one, in whole percent.

    >>> [format_percent(value) for value in (0.12, 0.001, 0.0)]
    ['12 %', '< 1 %', '0 %']
    """
    if value is None or not math.isfinite(value):
        return MISSING
    return "< 1 %" if 0 < value < 0.005 else f"{format_fixed(100 * value, 0)} %"


def format_interval(low: float | None, high: float | None, show: Callable[[float | None], str]) -> str:
    """An interval whose ends are written by ``show``, with an en dash between them.

    With a negative end it is written with "to", since a dash could be read as a sign: ``-0.7 to 1.4``.
    """
    if not (is_known(low) and is_known(high)):
        return MISSING
    left, right = show(low), show(high)
    return f"{left} to {right}" if MINUS in left + right else f"{left}{DASH}{right}"


def format_ratio_interval(low: float | None, high: float | None) -> str:
    """The interval of a ratio, without the x: ``0.36-0.38``, with an en dash."""
    return format_interval(low, high, _plain_ratio)


def draw_bar(value: float | None, full: float = 1.0, width: int = 12) -> str:
    """A bar of at most ``width`` characters, exact to an eighth of one; nothing where there is no value.

    The value ``full`` fills it; a bar of a larger value ends in ``+``.

    >>> draw_bar(0.5, width=4)
    '██'
    """
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
    """Whether the values are shares of one."""
    decimals: int = 1
    """Of percentages and points."""

    @property
    def scale(self) -> float:
        """What values are multiplied with before they are shown: 100 for shares of one."""
        return 100.0 if self.percent else 1.0

    def number(self, value: float | None) -> str:
        """A value of the metric without its unit: ``94.3``, or ``0.2178``."""
        return self._write(value, 4)

    def interval(self, low: float | None, high: float | None) -> str:
        """An interval in the unit of ``points``, rounded outward: what crosses a limit must not seem to stop at it."""
        if low is None or high is None or not (is_known(low) and is_known(high)):
            return MISSING
        if not self.percent:
            return format_interval(low, high, self.points)
        step = 10.0**self.decimals
        outward = math.floor(low * 100 * step + 1e-6) / step / 100, math.ceil(high * 100 * step - 1e-6) / step / 100
        return format_interval(*outward, self.points)

    def points(self, value: float | None) -> str:
        """A difference of two values without its unit: ``0.3``, or ``0.0121``."""
        return self._write(value, 3)

    def _write(self, value: float | None, digits: int) -> str:
        if value is None or not self.percent:
            return format_significant(value, digits)
        return format_fixed(100 * value, self.decimals)

    def value(self, value: float | None) -> str:
        """A value of the metric with its unit, if it has one: ``94.3 %``, or ``0.2178``."""
        return f"{self.number(value)} %" if self.percent and is_known(value) else self.number(value)

    def difference(self, value: float | None, *, signed: bool = False) -> str:
        """A difference with its unit, if any: ``0.3 points``, or ``0.0121``; ``signed`` writes the plus as well."""
        text = self.points(value)
        if signed and value is not None and value > 0 and any(digit in text for digit in "123456789"):
            text = f"+{text}"
        return f"{text} points" if self.percent and is_known(value) else text


def cost_in_words(measured: Measured) -> str:
    """What a target that does not time counts of a candidate: its instructions or cycles, else its memory."""
    if measured.cycles is not None:
        return f"{measured.cycles} cycles"
    if measured.instructions is not None or measured.memory is None:
        return f"{measured.instructions} instructions"
    return f"{format_size(measured.memory)} of memory"

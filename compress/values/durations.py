"""How long something takes or may take, as people write it: ``90s``, ``10min``, ``1.5h``."""

from __future__ import annotations

import math
import re

from targets.errors import RequestError

_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_FORM = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*$")


def parse_duration(text: str | float | None) -> float | None:
    """A time in seconds, from a text such as ``90s``, ``10min`` or ``1.5h``, or from a number; None stays None.

    Raises RequestError for what is no time, or no positive one.

    >>> [parse_duration(text) for text in ("90s", "10min", "1.5h", "30")]
    [90.0, 600.0, 5400.0, 30.0]
    """
    if text is None:
        return None
    match = _FORM.match(str(text).lower())
    if match is None or match[2] not in _UNITS:
        raise RequestError(f"time {text!r} is not a duration; write 90s, 10min or 1h")
    seconds = float(match[1]) * _UNITS[match[2]]
    if not 0 < seconds < math.inf:
        raise RequestError(f"time {text!r}: must be more than nothing")
    return seconds


def format_duration(seconds: float) -> str:
    """A time that somebody waits or has waited, given in seconds; below ten seconds with one decimal.

    >>> [format_duration(seconds) for seconds in (0.42, 41.3, 581.0, 7500.0)]
    ['0.4 s', '41 s', '9 min 41 s', '2 h 5 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"

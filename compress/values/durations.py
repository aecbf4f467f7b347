"""Times as people write them: ``90s``, ``10min``, ``1.5h``."""

from __future__ import annotations

import math
import re

from targets.errors import RequestError

_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_FORM = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*$")


def parse_duration(text: str | float | None) -> float | None:
    """Seconds; None stays None. Raises RequestError for what is no positive time."""
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
    """``42 s``, ``3 min 5 s``, ``1 h 2 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

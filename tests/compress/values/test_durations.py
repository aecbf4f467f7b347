"""Times as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.values.durations import format_duration, parse_duration
from targets.errors import RequestError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10min", 600), ("1.5h", 5400), (" 2 M ", 120), ("30", 30), (45, 45), (0.5, 0.5), (".5h", 1800)],
)
def test_times_are_read_as_people_write_them(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_none_is_no_limit() -> None:
    assert parse_duration(None) is None


@pytest.mark.parametrize("text", ["", "soon", "-5s", "5 days", "0s", 0, "1e3", "inf", "nan", float("inf"), "10 10"])
def test_what_is_no_time_is_refused(text: str | float) -> None:
    with pytest.raises(RequestError, match=r"time .* (is not a duration; write 90s|must be more than nothing)"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0.2 s"), (0.44, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"),
        (581.4, "9 min 41 s"), (3599.6, "1 h 0 min"), (7530, "2 h 6 min"), (86399, "24 h 0 min"),
    ],
)  # fmt: skip
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(1, 59))
def test_what_is_written_can_be_read(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds

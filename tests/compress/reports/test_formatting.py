"""Formatting: what people read agrees with the number behind it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.reports import formatting
from compress.reports.formatting import DASH, MINUS, MISSING, QualityFormat

UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (37.4e-6, "37.4 µs"),
        (1.2e-3, "1.20 ms"),
        (999.6e-6, "1.00 ms"),
        (999.4e-6, "999 µs"),
        (2.5, "2.50 s"),
        (250.0, "250 s"),
        (3e-9, "3.00 ns"),
        (0.0, "0 ns"),
        (None, MISSING),
        (math.inf, MISSING),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert formatting.format_seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (52_100, "52.1 kB"),
        (999_700, "1.00 MB"),
        (1_250_000, "1.25 MB"),
        (3e12, "3000 GB"),
    ],
)
def test_size_counts_a_kilobyte_as_1000_bytes_as_constraints_do(value: float, text: str) -> None:
    assert formatting.format_size(value) == text


@pytest.mark.parametrize(("value", "text"), [(512, "512"), (24_908, "24.9 k"), (2_656_768, "2.66 M"), (None, MISSING)])
def test_count(value: float | None, text: str) -> None:
    assert formatting.format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.374, "0.37x"), (1.0, "1.00x"), (12.3, "12.30x"), (0.0421, "0.042x"), (0.0999, "0.10x")]
)
def test_ratio(value: float, text: str) -> None:
    assert formatting.format_ratio(value) == text


def test_interval_writes_out_to_where_a_dash_could_be_read_as_a_sign() -> None:
    assert formatting.format_ratio_interval(0.36, 0.38) == f"0.36{DASH}0.38"
    points = QualityFormat("accuracy", True).points
    assert formatting.format_interval(-0.007, 0.014, points) == f"{MINUS}0.7 to 1.4"
    assert formatting.format_interval(None, 0.014, points) == MISSING


@given(st.floats(min_value=1e-9, max_value=1e5))
def test_a_time_reads_back_as_what_it_was(value: float) -> None:
    number, unit = formatting.format_seconds(value).split(" ")
    assert float(number) * UNITS[unit] == pytest.approx(value, rel=0.006)
    assert unit == "s" or 1 <= float(number) < 1000


@given(st.integers(min_value=1, max_value=10**12))
def test_bytes_and_counts_read_back_as_what_they_were(value: int) -> None:
    number, unit = formatting.format_size(value).split(" ")
    assert float(number) * UNITS[unit] == pytest.approx(value, rel=0.006)
    counted = formatting.format_count(value).split(" ")
    assert float(counted[0]) * COUNTS[counted[1] if len(counted) > 1 else ""] == pytest.approx(value, rel=0.006)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6), st.integers(0, 4))
def test_no_minus_stands_before_nothing(value: float, decimals: int) -> None:
    text = formatting.format_fixed(value, decimals)
    assert "-" not in text
    assert text.startswith(MINUS) == (float(text.replace(MINUS, "-")) < 0)
    assert float(text.replace(MINUS, "-")) == pytest.approx(value, abs=0.51 * 10**-decimals)


@given(st.floats(min_value=0, max_value=5), st.floats(min_value=0.1, max_value=5))
def test_a_bar_is_never_longer_than_its_width_and_grows_with_its_value(value: float, full: float) -> None:
    drawn = formatting.draw_bar(value, full, width=10)
    assert len(drawn) <= 10
    assert len(formatting.draw_bar(value / 2, full, width=10)) <= len(drawn)
    assert drawn.endswith("+") == (round(value / full * 80) > 80)


def test_a_bar_shows_eighths_and_nothing_where_nothing_was_measured() -> None:
    assert formatting.draw_bar(0.5, width=4) == "██"
    assert formatting.draw_bar(0.5 + 1 / 32, width=4) == "██▏"
    assert formatting.draw_bar(None) == ""


def test_shares_are_written_in_percent_and_their_differences_in_points() -> None:
    written = QualityFormat("accuracy", True)
    assert written.value(0.9433) == "94.3 %"
    assert written.difference(0.003) == "0.3 points"
    assert written.difference(-0.003, signed=True) == f"{MINUS}0.3 points"
    assert written.difference(0.003, signed=True) == "+0.3 points"
    assert written.difference(0.0001, signed=True) == "0.0 points"
    assert written.value(None) == MISSING


def test_other_metrics_are_written_plainly() -> None:
    written = QualityFormat("mse", False)
    assert written.value(0.021784) == "0.02178"
    assert written.difference(0.00121, signed=True) == "+0.00121"

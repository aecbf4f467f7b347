"""How the time of a call is divided between trials and what comes at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.measurement.latencies import FINAL
from compress.results import Result
from compress.searching.budgets import budget_of, final_protocol, seconds_of_a_reading
from hearing import Heard

Search = Callable[..., Result]


def kept(seconds: float, targets: int = 1, reading: float = 0.0) -> float:
    """Seconds of a call that are kept for its end."""
    deadline = budget_of(None, seconds, 100.0, targets, reading).deadline
    assert deadline is not None
    return 100.0 + seconds - deadline


@given(st.floats(1.0, 1e5), st.integers(1, 5), st.floats(0.0, 1e5))
def test_trials_always_have_a_good_part_of_the_time(seconds: float, targets: int, reading: float) -> None:
    assert 0.0 < kept(seconds, targets, reading) <= 0.4 * seconds + 1e-6
    assert kept(seconds, targets, reading) >= kept(seconds, targets) - 1e-6


def test_what_is_read_slowly_has_its_time_at_the_end() -> None:
    assert kept(100.0) == pytest.approx(12.0)
    assert kept(100.0, reading=8.0) == pytest.approx(12.0 + 2 * 8.0)
    assert kept(100.0, targets=2) == pytest.approx(24.0)
    assert kept(3600.0) == pytest.approx(60.0)


def test_finalists_are_timed_in_what_is_kept_for_that() -> None:
    assert final_protocol(budget_of(8, None, 0.0, 1, 5.0), 1) == FINAL
    short = final_protocol(budget_of(None, 100.0, 0.0, 2, 5.0), 2)
    assert short.total == pytest.approx(0.8 * 24.0 / 2)
    assert short.seconds < FINAL.seconds


def test_a_reading_takes_what_readings_took_for_each_example() -> None:
    stages = {"score": {"count": 5.0, "cached": 3.0, "seconds": 4.0}}
    assert seconds_of_a_reading(stages, examples=50, of=100) == pytest.approx(1.0)
    assert seconds_of_a_reading({}, examples=50, of=100) == 0.0
    assert seconds_of_a_reading({"score": {"count": 3.0, "cached": 3.0, "seconds": 0.1}}, 50, 100) == 0.0


def test_where_the_time_is_over_with_the_baseline_it_is_said_what_would_do(search: Search) -> None:
    told = Heard()
    assert len(search(trials=None, time=0.001, progress=told).report["candidates"]) == 1
    [said] = [note for note in told.notes if "before the first candidate" in note]
    assert "the baseline alone took" in said
    assert "or more goes on from there" in said
    told = Heard()
    assert len(search(trials=1, time=600.0, progress=told).report["candidates"]) > 1
    assert not [note for note in told.notes if "before the first candidate" in note]

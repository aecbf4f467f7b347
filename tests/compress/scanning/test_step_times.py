"""Seconds of training steps: of networks that were timed, and what follows for others."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compress.scanning.step_times import seconds_of

COLUMNS = arrays.arrays(np.float64, (6, 3), elements=st.floats(0.1, 10.0))


@settings(deadline=None)  # scipy is imported in the first call
@given(COLUMNS, st.lists(st.floats(0.01, 5.0), min_size=3, max_size=3))
def test_what_is_a_weighted_sum_is_told_exactly(columns: np.ndarray, weights: list[float]) -> None:
    seconds = columns @ np.array(weights)
    found = seconds_of(columns, seconds.tolist(), columns)
    np.testing.assert_allclose(found, seconds, rtol=1e-6)


def test_no_step_takes_less_than_a_fifth_of_the_quickest_that_was_timed() -> None:
    timed = np.array([[1.0, 10.0], [1.0, 20.0]])
    assert seconds_of(timed, [1.0, 2.0], np.array([[0.0, 0.0]]))[0] == 0.2

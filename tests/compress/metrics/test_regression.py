"""Errors of numbers, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as theirs

from compress.metrics.metrics import get, quality_drop, quality_of

numbers = st.floats(-100, 100, allow_nan=False, width=32)
pairs = st.tuples(st.integers(2, 20), st.integers(1, 4)).flatmap(
    lambda shape: st.tuples(*(arrays.arrays(np.float64, shape, elements=numbers) for _ in range(2)))
)


@settings(deadline=None, max_examples=80)
@given(pairs)
def test_values_are_scikit_learns(pair: tuple[np.ndarray, np.ndarray]) -> None:
    outputs, labels = pair
    root = theirs.mean_squared_error(labels, outputs) ** 0.5
    assert get("rmse").function(outputs, labels) == pytest.approx(root)
    assert get("r2").function(outputs, labels) == pytest.approx(theirs.r2_score(labels, outputs), rel=1e-6, abs=1e-6)


def test_r2_of_labels_that_never_vary() -> None:
    labels = np.full((5, 1), 0.1)
    assert get("r2").function(labels.copy(), labels) == 1.0
    assert get("r2").function(labels + 1, labels) == 0.0
    assert np.isnan(get("r2").function(labels[:1], labels[:1]))


def test_both_have_intervals_and_drops_the_right_way_round() -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=200)
    good, bad = labels + rng.normal(0, 0.1, 200), labels + rng.normal(0, 0.5, 200)
    for name in ("rmse", "r2"):
        own, found = quality_of(get(name), bad, labels), quality_drop(get(name), good, bad, labels)
        assert own.low < own.value < own.high
        assert 0 < found.low < found.value < found.high

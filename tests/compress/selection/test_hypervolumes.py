"""Hypervolume against closed forms, a Monte Carlo estimate and a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from optuna._hypervolume import compute_hypervolume

from compress.selection.hypervolumes import hypervolume

# A coarse grid, so that ties and duplicates are common.
grid = st.integers(0, 8).map(lambda k: k / 8)


def point_sets(largest: int = 5) -> st.SearchStrategy[np.ndarray]:
    return st.tuples(st.integers(1, 9), st.integers(1, largest)).flatmap(
        lambda shape: arrays.arrays(np.float64, shape, elements=grid)
    )


def ones(points: np.ndarray) -> np.ndarray:
    return np.ones(points.shape[1])


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5])
def test_one_point_is_a_box(d: int) -> None:
    assert hypervolume(np.full((1, d), 0.25), np.ones(d)) == pytest.approx(0.75**d)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_staircase(n: int) -> None:
    k = np.arange(n)
    points = np.stack([k, n - 1 - k], axis=1)
    # A staircase of n steps: 1 + 2 + ... + n unit squares.
    assert hypervolume(points, np.array([n, n])) == pytest.approx(n * (n + 1) / 2)


@pytest.mark.parametrize("d", [2, 3, 4, 5])
def test_one_bad_coordinate_each(d: int) -> None:
    # Point i is 1/2 in coordinate i, else 0: everything but the cube where all coordinates are below 1/2.
    points = np.eye(d) / 2
    assert hypervolume(points, np.ones(d)) == pytest.approx(1 - 0.5**d)


@pytest.mark.parametrize("d", [2, 3, 4, 5])
def test_one_good_coordinate_each(d: int) -> None:
    # Boxes 1/2 x (1/4)^(d-1), meeting in the cube (1/4)^d: inclusion and exclusion, all intersections alike.
    points = np.full((d, d), 0.75) - np.eye(d) / 4
    assert hypervolume(points, np.ones(d)) == pytest.approx(d * 0.5 * 0.25 ** (d - 1) - (d - 1) * 0.25**d)


@settings(deadline=None)
@given(point_sets())
def test_second_implementation(points: np.ndarray) -> None:
    theirs = compute_hypervolume(points, ones(points))
    assert hypervolume(points, ones(points)) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("d", [3, 4])
def test_monte_carlo(d: int) -> None:
    rng = np.random.default_rng(d)
    points, samples = rng.random((12, d)), rng.random((200_000, d))
    dominated = np.zeros(len(samples), dtype=bool)
    for point in points:
        dominated |= (samples >= point).all(axis=1)
    assert hypervolume(points, np.ones(d)) == pytest.approx(dominated.mean(), abs=0.005)


@settings(deadline=None)
@given(point_sets(), st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(points: np.ndarray, random: object) -> None:
    rows = list(range(len(points))) * 2
    random.shuffle(rows)  # type: ignore[attr-defined]
    assert hypervolume(points[rows], ones(points)) == pytest.approx(hypervolume(points, ones(points)), abs=1e-12)


@settings(deadline=None)
@given(point_sets(), st.data())
def test_a_dominated_point_adds_nothing(points: np.ndarray, data: st.DataObject) -> None:
    worse = points[data.draw(st.integers(0, len(points) - 1))] + data.draw(
        arrays.arrays(np.float64, points.shape[1], elements=grid)
    )
    more = np.vstack([points, worse])
    assert hypervolume(more, ones(points)) == pytest.approx(hypervolume(points, ones(points)), abs=1e-12)


@settings(deadline=None)
@given(point_sets(), st.data())
def test_a_point_that_is_better_somewhere_adds(points: np.ndarray, data: st.DataObject) -> None:
    new = data.draw(arrays.arrays(np.float64, points.shape[1], elements=grid))
    before, after = (hypervolume(p, ones(points)) for p in (points, np.vstack([points, new])))
    covered = (points <= new).all(axis=1).any() or (new >= 1).any()
    assert after == pytest.approx(before, abs=1e-12) if covered else after > before + 1e-12


@settings(deadline=None)
@given(point_sets(), st.lists(st.floats(0.01, 100), min_size=5, max_size=5), st.floats(-10, 10))
def test_scaling_and_shifting(points: np.ndarray, factors: list[float], shift: float) -> None:
    scale = np.array(factors[: points.shape[1]])
    plain = hypervolume(points, ones(points))
    moved = hypervolume(points * scale + shift, ones(points) * scale + shift)
    assert moved == pytest.approx(plain * np.prod(scale), rel=1e-6, abs=1e-6 * np.prod(scale))


@pytest.mark.parametrize("point", [[0.5, 1.0], [0.5, 1.5], [0.5, np.inf], [np.nan, 0.5]])
def test_points_beyond_the_reference_contribute_nothing(point: list[float]) -> None:
    assert hypervolume(np.array([point]), np.ones(2)) == 0.0
    assert hypervolume(np.array([[0.5, 0.5], point]), np.ones(2)) == pytest.approx(0.25)


def test_no_points() -> None:
    assert hypervolume(np.empty((0, 3)), np.ones(3)) == 0.0


@pytest.mark.parametrize(
    ("points", "reference"),
    [(np.ones((2, 3)), np.ones(2)), (np.ones(2), np.ones(2)), (np.ones((1, 2)), np.array([1.0, np.inf]))],
)
def test_shapes_that_do_not_fit(points: np.ndarray, reference: np.ndarray) -> None:
    with pytest.raises(ValueError, match="reference"):
        hypervolume(points, reference)

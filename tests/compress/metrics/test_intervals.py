"""Score intervals against independent inversions, published values and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from compress.metrics.intervals import bootstrap, examples_needed, examples_needed_for_proportion, tango, wilson

Z = 1.959963984540054
pairs = st.integers(1, 400).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda lost: st.tuples(st.just(lost), st.integers(0, n - lost), st.just(n)))
)


def score_statistic(lost: int, gained: int, n: int, difference: float) -> float:
    """Tango's statistic with the nuisance parameter found by maximising the likelihood numerically."""

    def negative_log_likelihood(q: float) -> float:
        cells = ((lost, q + difference), (gained, q), (n - lost - gained, 1 - 2 * q - difference))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    inner = minimize_scalar(negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    q = min((low, inner, high), key=negative_log_likelihood)
    return (lost - gained - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))


@settings(deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_is_scipys(counts: tuple[int, int], confidence: float) -> None:
    successes, n = counts
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_at_the_ends() -> None:
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0
    assert wilson(20, 20)[0] == pytest.approx(20 / (20 + Z**2))


# Newcombe 1998, Statistics in Medicine 17, 857, table I, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_rejects_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence)


def test_tango_published() -> None:
    # Fagerland, Lydersen and Laake 2014 (Statistics in Medicine 33, 2850): 1, 1, 7, 12.
    assert tango(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@settings(max_examples=150, deadline=None)
@given(pairs)
def test_tango_inverts_the_score_test(counts: tuple[int, int, int]) -> None:
    lost, gained, n = counts
    low, high = tango(lost, gained, n)
    value = (lost - gained) / n
    assert -1 <= low <= value <= high <= 1
    for end in (low, high):
        if abs(end) < 1 - 1e-6:
            assert abs(score_statistic(lost, gained, n, end)) == pytest.approx(Z, rel=1e-3)


@settings(deadline=None)
@given(pairs)
def test_tango_is_antisymmetric(counts: tuple[int, int, int]) -> None:
    lost, gained, n = counts
    low, high = tango(lost, gained, n)
    assert tango(gained, lost, n) == (-high, -low)


@settings(deadline=None)
@given(st.integers(1, 10**6), st.floats(0.5, 0.999))
def test_tango_without_disagreement(n: int, confidence: float) -> None:
    low, high = tango(0, 0, n, confidence)
    z_squared = float(binomtest(n, n).proportion_ci(confidence, method="wilson").low) ** -1 * n - n
    assert high == pytest.approx(z_squared / (n + z_squared), rel=1e-6)
    assert low == -high


@pytest.mark.parametrize("n", [1, 5, 1000])
def test_tango_where_everything_is_lost(n: int) -> None:
    low, high = tango(n, 0, n)
    assert high == 1.0
    # Losses and gains are all there is (q = (1 - D) / 2), so n (1 - D) = z² (1 + D).
    assert low == pytest.approx((n - Z**2) / (n + Z**2), abs=1e-9)


def test_tango_confirms_one_percent_from_381_on() -> None:
    assert tango(0, 0, 300)[1] > 0.01
    assert tango(0, 0, 380)[1] > 0.01
    assert tango(0, 0, 381)[1] <= 0.01


@settings(deadline=None)
@given(pairs)
def test_tango_widens_with_confidence(counts: tuple[int, int, int]) -> None:
    narrow, wide = tango(*counts, confidence=0.8), tango(*counts, confidence=0.99)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


@pytest.mark.parametrize(("lost", "gained", "n"), [(0, 0, 0), (-1, 0, 5), (0, -1, 5), (3, 3, 5)])
def test_tango_rejects_impossible_counts(lost: int, gained: int, n: int) -> None:
    with pytest.raises(ValueError, match="lost"):
        tango(lost, gained, n)


@pytest.mark.parametrize(("p_lost", "p_gained", "n"), [(0.02, 0.01, 300), (0.05, 0.05, 100), (0.01, 0.0, 500)])
def test_tango_coverage(p_lost: float, p_gained: float, n: int) -> None:
    rng = np.random.default_rng(7)
    draws = rng.multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], size=2000)
    counts, times = np.unique(draws, axis=0, return_counts=True)
    covered = 0
    for (lost, gained, _), how_often in zip(counts.tolist(), times.tolist(), strict=True):
        low, high = tango(lost, gained, n)
        covered += how_often * (low <= p_lost - p_gained <= high)
    assert 0.93 <= covered / 2000 <= 0.99


def test_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    low, high = bootstrap(lambda rows: float(values[rows].mean()), 2000, seed=0)
    half = Z * values.std() / math.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_bootstrap_repeats_with_its_seed() -> None:
    values = np.arange(50.0)

    def mean(rows: np.ndarray) -> float:
        return float(values[rows].mean())

    assert bootstrap(mean, 50, seed=3) == bootstrap(mean, 50, seed=3)
    assert bootstrap(mean, 50, seed=3) != bootstrap(mean, 50, seed=4)


def test_bootstrap_resamples_all_rows_with_replacement() -> None:
    seen: set[int] = set()

    def look(rows: np.ndarray) -> float:
        assert rows.shape == (20,)
        assert len(set(rows.tolist())) < 20 or sorted(rows.tolist()) == list(range(20))
        seen.update(rows.tolist())
        return 0.0

    assert bootstrap(look, 20, seed=0, resamples=50) == (0.0, 0.0)
    assert seen == set(range(20))


def test_bootstrap_leaves_out_undefined_resamples() -> None:
    # About 1 - 1/e of the resamples hold row 0.
    assert bootstrap(lambda rows: 1.0 if 0 in rows else math.nan, 30, seed=0) == (1.0, 1.0)
    # An interval of the other 1/e alone would be a fiction.
    with pytest.raises(ValueError, match="too few"):
        bootstrap(lambda rows: math.nan if 0 in rows else 1.0, 30, seed=0)


@pytest.mark.parametrize(("n", "resamples"), [(0, 10), (10, 0)])
def test_bootstrap_rejects_nothing(n: int, resamples: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        bootstrap(lambda rows: float(rows.sum()), n, seed=0, resamples=resamples)


def test_examples_needed_without_disagreement() -> None:
    assert examples_needed(0, 0, 300, 0.01) == 381
    assert examples_needed(0, 0, 5000, 0.01) == 5000


def test_no_number_settles_a_difference_that_is_the_limit() -> None:
    assert examples_needed(3, 0, 300, 0.01) is None
    assert examples_needed(0, 0, 300, 0.0) is None


@settings(deadline=None)
@given(st.integers(0, 8), st.integers(0, 8), st.integers(50, 500), st.sampled_from([0.0, 0.01, 0.02, 0.05]))
def test_examples_needed_settles_it_and_fewer_do_not(lost: int, gained: int, n: int, limit: float) -> None:
    needed = examples_needed(lost, gained, n, limit)
    if needed is None:
        assert (lost - gained) / n == pytest.approx(limit, abs=1e-9)
        return
    assert needed >= n
    # Whole multiples of the data: at twice the number needed it is settled, at less than half of it it is not.
    times = math.ceil(2 * needed / n)
    low, high = tango(times * lost, times * gained, times * n)
    assert high <= limit or low > limit
    if (times := needed // (2 * n)) >= 1:
        low, high = tango(times * lost, times * gained, times * n)
        assert low <= limit < high


@settings(deadline=None)
@given(st.integers(20, 300), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95]))
def test_examples_needed_for_a_proportion(n: int, share: float, limit: float) -> None:
    right = round(share * n)
    needed = examples_needed_for_proportion(right / n, n, limit)
    if needed is None:
        assert right / n == pytest.approx(limit, abs=1e-9)
        return
    times = math.ceil(2 * needed / n)
    low, high = wilson(times * right, times * n)
    assert low >= limit or high <= limit
    if (times := needed // (2 * n)) >= 1:
        low, high = wilson(times * right, times * n)
        assert low < limit < high


@pytest.mark.parametrize(("share", "n"), [(1.01, 10), (-0.01, 10), (0.5, 0)])
def test_examples_needed_rejects_what_is_no_share(share: float, n: int) -> None:
    with pytest.raises(
        ValueError, match=f"proportion {share} among {n} examples: it must be within 0..1 and n positive"
    ):
        examples_needed_for_proportion(share, n, 0.9)


def test_examples_needed_for_all_right() -> None:
    # Wilson's lower end is n / (n + z²).
    assert examples_needed_for_proportion(1.0, 10, 0.99) == math.ceil(99 * Z**2)

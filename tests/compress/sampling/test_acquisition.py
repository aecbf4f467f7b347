"""What is worth a training: cases that can be worked out by hand, and other ways to the same numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from compress.sampling.acquisition import (
    Beliefs,
    Bracket,
    NextReadings,
    expected_front,
    fastest,
    front_gains,
    halving,
    knowledge_gradient,
    per_second,
    possible_incumbents,
    several,
    usefulness,
)
from compress.selection.hypervolumes import hypervolume

REFERENCE = (1.1, 0.1)


def beliefs(costs, mean, sd) -> Beliefs:
    return Beliefs(np.array(costs, dtype=float), np.array(mean, dtype=float), np.array(sd, dtype=float))


def z_of_drop(drops: np.ndarray) -> np.ndarray:
    return np.log(np.asarray(drops) + 0.01)


def test_the_gain_is_what_the_cost_falls_by_times_the_probability() -> None:
    found = fastest(beliefs([0.4, 0.4, 0.5, 0.7], [0, 1, 0, 0], [1, 1, 1, 1]), limit=0.0, incumbent=0.5)
    assert found == pytest.approx([0.1 * 0.5, 0.1 * ndtr(-1.0), 0.0, 0.0])
    # A reading's noise makes what is hopeless less so.
    assert fastest(beliefs([0.4], [1], [1]), 0.0, 0.5, noise=1.0)[0] == pytest.approx(0.1 * ndtr(-1 / np.sqrt(2)))


@given(st.floats(0.05, 1.0), st.lists(st.floats(0.05, 1.5), min_size=1, max_size=5))
def test_what_cannot_beat_the_incumbent_has_no_gain(incumbent: float, costs: list[float]) -> None:
    each = beliefs(costs, [-5] * len(costs), [1] * len(costs))
    found = fastest(each, 0.0, incumbent)
    assert ((found > 0) == (np.array(costs) < incumbent)).all()


def test_what_is_under_way_may_be_the_incumbent_before() -> None:
    under_way = beliefs([0.3, 0.2], [0, 0], [1, 1])  # each within the limit with probability 1/2
    costs, chances = possible_incumbents(0.5, under_way, 0.0)
    assert dict(zip(costs.tolist(), chances.tolist(), strict=True)) == pytest.approx({0.2: 0.5, 0.3: 0.25, 0.5: 0.25})
    found = fastest(beliefs([0.25], [-9], [1]), 0.0, 0.5, under_way=under_way)
    assert found[0] == pytest.approx(0.25 * 0.05 + 0.25 * 0.25)


def test_probabilities_of_incumbents_add_up_against_a_draw() -> None:
    rng = np.random.default_rng(0)
    under_way = beliefs(rng.uniform(0.1, 0.9, 5), rng.normal(size=5), np.ones(5))
    costs, chances = possible_incumbents(0.6, under_way, 0.3)
    assert chances.sum() == pytest.approx(1)
    within = rng.random((200_000, 5)) < under_way.within(0.3)
    drawn = np.minimum(np.where(within, under_way.costs, np.inf).min(axis=1), 0.6).mean()
    assert float(costs @ chances) == pytest.approx(drawn, abs=0.003)


def test_gains_for_each_second() -> None:
    assert per_second(np.array([0.2, 0.2]), np.array([10.0, 5.0])) == pytest.approx([0.02, 0.04])


def test_halving_the_range_of_costs() -> None:
    bracket = Bracket(0.1, 1.0)
    assert bracket.middle == pytest.approx(np.sqrt(0.1))
    assert bracket.after(0.3, True) == Bracket(0.1, 0.3)
    assert bracket.after(0.3, False) == Bracket(0.3, 1.0)
    assert bracket.after(2.0, True) == bracket.after(0.05, False) == bracket
    pool = beliefs([0.31, 0.32, 0.325, 0.9], [3, 1, 2, 0], [1, 1, 1, 1])
    free = np.ones(4, dtype=bool)
    assert halving(pool, bracket, free) == 1  # of those near the middle it promises most
    free[:3] = False
    assert halving(pool, bracket, free) == 3  # of none the nearest
    assert halving(pool, Bracket(0.3, 0.31), np.ones(4, dtype=bool)) is None
    assert halving(pool, bracket, np.zeros(4, dtype=bool)) is None


def test_the_front_grows_by_a_rectangle_that_can_be_worked_out() -> None:
    """A network known to lose 0.05 at a cost of 0.5, beside the baseline alone: 0.5 less cost over drops from 0.05."""
    sure = beliefs([0.5, 1.0, 1.2], [z_of_drop(0.05), z_of_drop(0.0), z_of_drop(0.0)], [1e-4] * 3)
    found = front_gains(sure, np.array([[1.0, 0.0]]), REFERENCE, z_of_drop)
    assert found[0] == pytest.approx(0.5 * 0.05, rel=0.05)
    assert found[1:] == pytest.approx([0.0, 0.0])


def test_better_quality_than_the_baseline_s_counts_nothing() -> None:
    front = np.array([[1.0, 0.0], [0.5, -0.02]])
    much_better = beliefs([0.6, 0.5], [np.log(1e-4)] * 2, [0.01] * 2)
    assert front_gains(much_better, front, REFERENCE, z_of_drop) == pytest.approx([0.0, 0.0])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6))
def test_the_front_s_gain_is_the_expectation_of_hypervolume(seed: int, size: int) -> None:
    """Against draws of the drop, each with the hypervolume of the front with and without it."""
    rng = np.random.default_rng(seed)
    front = np.stack([rng.uniform(0.1, 1.2, size), rng.uniform(-0.02, 0.12, size)], axis=1)
    each = beliefs([rng.uniform(0.05, 1.0)], [z_of_drop(rng.uniform(0.0, 0.12))], [rng.uniform(0.05, 0.8)])
    found = front_gains(each, front, REFERENCE, z_of_drop)[0]
    clipped = np.stack([front[:, 0], np.maximum(front[:, 1], 0.0)], axis=1)
    before = hypervolume(clipped, np.array(REFERENCE))
    drawn = np.maximum(np.exp(each.mean[0] + each.sd[0] * rng.normal(size=1500)) - 0.01, 0.0)
    gains = [hypervolume(np.vstack([clipped, [each.costs[0], d]]), np.array(REFERENCE)) - before for d in drawn]
    assert found == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / np.sqrt(1500) + 3e-4)


def test_under_way_counts_as_what_is_expected_of_it() -> None:
    one = beliefs([0.3], [z_of_drop(0.02)], [0.1])
    front = np.array([[1.0, 0.0]])
    after = expected_front(front, one, lambda z: np.exp(z) - 0.01)
    assert after == pytest.approx(np.array([[1.0, 0.0], [0.3, 0.02]]))
    assert front_gains(one, after, REFERENCE, z_of_drop)[0] < 0.1 * front_gains(one, front, REFERENCE, z_of_drop)[0]


def test_a_sure_network_is_more_useful_than_one_a_little_faster() -> None:
    found = usefulness(np.array([0.28, 0.30, 1.2]), np.array([0.6, 0.95, 1.0]))
    assert found[1] > found[0]
    assert found[2] == 0


def knows_all(mean, sd, noise) -> NextReadings:
    """The readings of networks that were never read."""
    return NextReadings(np.array(mean, float), np.sqrt(np.array(sd, float) ** 2 + noise**2), np.array(sd, float) ** 2)


def test_the_knowledge_gradient_against_draws() -> None:
    costs, mean, sd, noise, best = [0.3, 0.5, 0.2], [0.2, -1.0, 1.5], [0.5, 0.3, 0.7], 0.4, 0.35
    found = knowledge_gradient(beliefs(costs, mean, sd), knows_all(mean, sd, noise), 0.0, best)
    rng = np.random.default_rng(0)
    for i in range(3):
        true = mean[i] + sd[i] * rng.normal(size=400_000)
        read = true + noise * rng.normal(size=400_000)
        left = 1 / np.sqrt(1 / sd[i] ** 2 + 1 / noise**2)
        after = left**2 * (mean[i] / sd[i] ** 2 + read / noise**2)
        worth = (1 - costs[i]) * np.sqrt(ndtr(-after / left))
        expected = np.where(read <= 0, np.maximum(worth - best, 0), 0).mean()
        assert found[i] == pytest.approx(expected, abs=0.006)


def test_nothing_is_gained_by_reading_what_could_not_be_shipped_instead() -> None:
    mean, sd = [-3.0, 0.0], [0.1, 0.5]
    found = knowledge_gradient(beliefs([0.9, 0.95], mean, sd), knows_all(mean, sd, 0.3), 0.0, best=0.2)
    assert found == pytest.approx([0.0, 0.0])


def test_several_are_chosen_one_given_those_before() -> None:
    gains = np.array([3.0, 2.9, 1.0, 0.0])

    def given_chosen(chosen) -> np.ndarray:
        left = gains.copy()
        if 0 in chosen:
            left[1] = 0.1  # says the same as the first
        return left

    assert several(2, given_chosen) == [0, 2]
    assert several(9, given_chosen) == [0, 2, 1]
    assert several(0, given_chosen) == []

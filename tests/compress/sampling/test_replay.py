"""Searches replayed on a made-up table: the parts of ours put together, against chance."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tabular import replay, synthetic
from benchmarks.tabular.tables import Table, load, save, volume


@pytest.fixture(scope="module")
def table() -> Table:
    """125 networks, of two blocks and four widths: 4 * 5^2 and the smaller patterns of them."""
    return synthetic.make("keywords", seed=3, blocks=2)


def test_a_table_is_complete_and_comes_back_from_its_file(table: Table, tmp_path: Path) -> None:
    assert len(table.of) == len(table.entries) == 4 * 5**2
    save(table, tmp_path / "table.json")
    assert load(tmp_path / "table.json") == table


def test_the_truth_gets_worse_with_less_and_better_with_training(table: Table) -> None:
    errors = np.array([entry.test["fp32"] for entry in table.entries])
    costs = np.array([entry.costs["fp32"] for entry in table.entries])
    assert (errors.mean(axis=0)[:-1] > errors.mean(axis=0)[1:]).all()
    assert np.corrcoef(costs, errors[:, -1])[0, 1] < -0.4
    read = np.array([entry.val["fp32"] for entry in table.entries])
    assert abs((read - errors).mean()) < 0.02  # what is read is what is there, but for luck
    assert 0.1 < table.fastest < 0.8


def test_volume_of_a_front_by_hand() -> None:
    assert volume([(1.0, 0.0), (0.5, 0.05)]) == pytest.approx(0.1 * 0.1 + 0.5 * 0.05)


def test_ours_finds_more_in_the_same_time_than_chance(table: Table) -> None:
    ours = [replay.replay_ours(table, seed, 240.0) for seed in range(2)]
    chance = [replay.replay_plain(table, seed, 240.0, "random", lengths=True) for seed in range(4)]
    assert replay.summary(ours)["hypervolume"] > replay.summary(chance)["hypervolume"]
    assert np.mean([clock.shipped()[0] for clock in ours]) < 1.0
    for clock in ours:
        assert clock.seconds < 1.2 * clock.budget
        assert clock.curve == sorted(clock.curve)


def test_a_search_is_the_same_again(table: Table) -> None:
    one, two = (replay.replay_ours(table, 5, 120.0) for _ in range(2))
    assert one.curve == two.curve
    assert one.kept == two.kept


@pytest.mark.parametrize("name", ["tpe", "nsga2", "grid"])
def test_plain_samplers_are_replayed_until_their_time_is_over(table: Table, name: str) -> None:
    clock = replay.replay_plain(table, 0, 60.0, name, lengths=False)
    assert clock.seconds > 60.0 or clock.trainings == len(table.entries)
    assert set(clock.kept.values()) <= {len(table.lengths) - 1}


def test_it_takes_time_to_reach_a_share_of_the_whole(table: Table) -> None:
    clock = replay.Clock(table, 1e9)
    for entry in table.entries:
        assert clock.train(entry.network, 2, table.lengths[2])
    assert clock.reached(0.5) <= clock.reached(0.99) <= clock.seconds
    assert replay.Clock(replace(table), 1.0).reached(0.5) == float("inf")

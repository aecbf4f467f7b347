"""How the time is spent, and what is trained next."""

from dataclasses import replace

import numpy as np
import pytest

from compress.sampling import quality_model, rungs
from compress.sampling.network_arrays import macs, whole
from compress.sampling.network_features import Eyes
from compress.sampling.next_training import Aim, Known, Options, Trained, UnderWay, incumbent, next_training, shipped
from compress.sampling.pool import random_networks
from small_space import PATTERNS, network

RESPONSE = quality_model.Response.of_proportion(0.02, 500)
NOISE = quality_model.proportion_noise(0.02, 500)
AIM = Aim(0.01, quality_model.proportion_noise(0.03, 500) / 0.031)
POOL = tuple(dict.fromkeys([*random_networks(PATTERNS, 150, seed=0), network(32, 32, 32, 32), network(16, 16, 16, 16)]))
SHARES = macs(PATTERNS, POOL) / macs(PATTERNS, [whole(PATTERNS[()])])[0]
COSTS = 0.05 + 0.95 * SHARES
OPTIONS = Options(POOL, {"fp32": COSTS}, 0.1 + SHARES)


def known(trained=(), spent=20.0, budget=480.0, **changes) -> Known:
    """What is known after trainings, (network, rungs, drop) each of which was read once."""
    plan = rungs.plan(budget, OPTIONS.seconds_per_epoch.tolist())
    done = [Trained(each, count, 20.0 * count, {"fp32": drop}) for each, count, drop in trained]
    readings = [
        quality_model.Reading(each, 20.0 * count, 0.02 + drop, quality_model.proportion_noise(0.02 + drop, 500))
        for each, count, drop in trained
    ]
    model = quality_model.fit(Eyes(PATTERNS), RESPONSE, readings, NOISE, quality_model.Scales())
    return replace(Known(plan, spent, AIM, OPTIONS, done, model), **changes)


def test_rungs_are_shares_of_the_budget() -> None:
    plan = rungs.plan(1000.0, [1.0, 2.0, 3.0])
    assert plan.rungs == pytest.approx((15, 30, 60))
    assert plan.end == pytest.approx(250)
    assert not plan.is_dear
    assert plan.epochs(0, 2.0) == 8
    assert plan.epochs(0, 100.0) == 1  # one at least
    assert plan.total_epochs(1, np.array([3.0, 6.0])) == pytest.approx([30, 15])


def test_where_epochs_are_dear_parts_of_them_count() -> None:
    plan = rungs.plan(360.0, [24.0])
    assert plan.is_dear
    assert plan.rungs == pytest.approx((14.4, 36))
    assert plan.end == pytest.approx(0.6 * 360)
    assert plan.epochs(0, 24.0) == pytest.approx(0.6)
    assert plan.epochs(0, 1000.0) == 0.25
    assert [plan.end_seconds(144.0, ended) for ended in range(3)] == pytest.approx([129.6, 216.0, 0.0])


def test_given_lengths_are_kept_to() -> None:
    plan = rungs.plan(480.0, [1.0, 0.5, 2.0], (4.0, 12.0, 40.0))
    assert [plan.epochs(rung, 7.0) for rung in range(3)] == [4, 8, 28]
    assert plan.rungs == pytest.approx((4, 8, 28))


def test_phases_follow_the_time() -> None:
    plan = rungs.plan(1000.0, [1.0])
    assert plan.phase(50, 0) == plan.phase(50, 2) == "halving"
    assert plan.phase(50, 3) == "exploring"
    assert plan.phase(760, 9) == "ending"
    assert plan.phase(995, 9) == "over"


@pytest.mark.parametrize(("budget", "seconds"), [(0.0, [1.0]), (10.0, []), (10.0, [0.0])])
def test_a_plan_needs_time(budget: float, seconds: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        rungs.plan(budget, seconds)


def test_first_the_range_of_costs_is_halved() -> None:
    first = next_training(known())
    assert first is not None
    assert first.reason == "halving"
    middle = np.sqrt(COSTS.min())
    assert COSTS[POOL.index(first.network)] == pytest.approx(middle, rel=0.05)
    bad = next_training(known([(first.network, 1, 0.3)]))
    assert bad is not None
    assert COSTS[POOL.index(bad.network)] > middle


def test_several_at_once_halve_it_at_several_places() -> None:
    """What is under way counts as what is expected of it; otherwise all workers would try the same cost."""
    state, places = known(), []
    for _ in range(3):
        found = next_training(state)
        assert found is not None
        assert found.reason == "halving"
        places.append(COSTS[POOL.index(found.network)])
        state = replace(state, under_way=(*state.under_way, UnderWay(found.network, found.epochs)))
    apart = np.abs(np.diff(np.log(places)))
    assert (apart > np.log(1.1)).all()


def test_then_what_may_be_faster_than_the_incumbent_and_nothing_else() -> None:
    good = network(32, 32, 32, 32)
    state = known([(good, 3, 0.002), (network(16, 16, 16, 16), 1, 0.3), (POOL[5], 3, 0.0)])
    found = next_training(replace(state, aim=replace(AIM, front_weight=0.0)))
    assert found is not None
    assert found.reason == "fastest"
    assert COSTS[POOL.index(found.network)] < incumbent(state.trained, OPTIONS, 0.01)
    assert found.epochs == state.plan.epochs(0, float(OPTIONS.seconds_per_epoch[POOL.index(found.network)]))
    assert 0 < found.probability < 1


def test_when_nothing_faster_is_possible_the_rest_of_the_front_is_filled() -> None:
    cheapest = POOL[int(np.argmin(COSTS))]
    state = known([(cheapest, 3, 0.009), (network(32, 32, 32, 32), 3, 0.009), (POOL[5], 3, 0.0)])
    assert incumbent(state.trained, OPTIONS, 0.01) == COSTS.min()
    found = next_training(state)
    assert found is None or found.reason == "front"


def test_nothing_is_trained_that_gains_nothing() -> None:
    only = Options((POOL[0],), {"fp32": np.ones(1)}, np.ones(1))
    state = known()
    assert next_training(replace(state, options=only, plan=replace(state.plan, halvings=0))) is None


def test_a_network_under_way_is_not_proposed_again() -> None:
    state = known([(POOL[i], 1, 0.05) for i in (3, 4, 5)])
    first = next_training(state)
    assert first is not None
    second = next_training(replace(state, under_way=[UnderWay(first.network, 50.0)]))
    assert second is not None
    assert second.network != first.network


def test_a_promising_network_climbs_its_rungs() -> None:
    """Two thirds of the way and nearly within the limit, beside hopeless ones: the next rung is its own."""
    near = network(32, 32, 32, 32)
    only = Options((near, *POOL[3:6]), {"fp32": np.array([0.3, 0.9, 0.95, 0.99])}, np.array([0.3, 0.9, 0.9, 0.9]))
    state = replace(known([(near, 1, 0.012), *((n, 3, 0.2) for n in POOL[3:6])]), options=only)
    found = next_training(state)
    assert found is not None
    assert found.network == near
    assert found.epochs == state.plan.epochs(1, 0.3)


def test_at_the_end_what_is_shipped_gets_a_training_of_its_own() -> None:
    state = known([(POOL[i], 1, 0.03) for i in (3, 4, 5)] + [(network(32, 32, 32, 32), 3, 0.008)], spent=370.0)
    found = next_training(state)
    assert found is not None
    assert found.reason == "ending"
    assert found.starts_anew
    seconds = found.epochs * OPTIONS.seconds_per_epoch[POOL.index(found.network)]
    assert seconds == pytest.approx(55.0)
    assert next_training(replace(state, spent=479.0)) is None


def test_what_is_shipped_is_within_the_limit_on_val_and_weighs_certainty() -> None:
    assert shipped(known()) is None
    assert shipped(known([(POOL[4], 3, 0.02)])) is None
    sure, lucky = network(48, 48, 48, 48), network(48, 48, 32, 48)
    state = known([(sure, 3, 0.0), (lucky, 3, 0.01)])
    # Their costs differ by two percent: the one that is surely within the limit is shipped.
    options = Options((sure, lucky), {"fp32": np.array([0.5, 0.49])}, np.ones(2))
    found = shipped(replace(state, options=options))
    assert found is not None
    assert found[0] == sure


def test_every_precision_of_a_training_counts() -> None:
    halved = Options(POOL, {"fp32": COSTS, "int8": COSTS / 2}, OPTIONS.seconds_per_epoch)
    trained = [Trained(network(32, 32, 32, 32), 3, 60.0, {"fp32": 0.0, "int8": 0.004})]
    at = POOL.index(network(32, 32, 32, 32))
    assert incumbent(trained, halved, 0.01) == COSTS[at] / 2
    assert incumbent(trained, halved, 0.002) == COSTS[at]

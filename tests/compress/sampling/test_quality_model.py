"""The Gaussian process on losses: against formulas and another implementation, and what its readings mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from compress.sampling import gaussian_process as gp
from compress.sampling.network_arrays import whole
from compress.sampling.network_features import GONE, Eyes
from compress.sampling.pool import random_networks
from compress.sampling.quality_model import Reading, Response, Scales, fit, proportion_noise
from small_space import PATTERNS, network

EYES = Eyes(PATTERNS)
RESPONSE = Response.of_proportion(0.02, 500)
NOISE = proportion_noise(0.02, 500)


def read(each, epochs: float, loss: float, **changes) -> Reading:
    return Reading(each, epochs, loss, proportion_noise(loss, 500), **changes)


def some_readings(count: int = 12) -> list[Reading]:
    rng = np.random.default_rng(0)
    networks = random_networks(PATTERNS, count + 1, seed=0)[1:]
    share = EYES.see(networks).expected
    losses = np.minimum(0.9, 0.02 * np.exp(share + 0.3 * rng.normal(size=len(share))))
    return [read(n, 5.0 + i, float(loss)) for i, (n, loss) in enumerate(zip(networks, losses, strict=True))]


def test_the_posterior_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    seen, new, z = rng.normal(size=(15, 3)), rng.normal(size=(7, 3)), rng.normal(size=15)
    noise = rng.uniform(0.01, 0.5, 15)
    # Root mean squares over three coordinates are distances over the root of three.
    length = 0.8
    theirs = GaussianProcessRegressor(Matern(length * np.sqrt(3), nu=2.5), alpha=noise, optimizer=None).fit(seen, z)
    mean, sd = theirs.predict(new, return_std=True)
    kernel = gp.matern(gp.mean_squares(seen, seen), length)
    found = gp.posterior(kernel + np.diag(noise), z)
    mine = found.at(gp.matern(gp.mean_squares(new, seen), length), np.ones(7))
    assert mine[0] == pytest.approx(mean, abs=1e-6)
    assert mine[1] == pytest.approx(sd, abs=1e-6)
    assert found.log_likelihood == pytest.approx(theirs.log_marginal_likelihood_value_, abs=1e-6)


def test_left_out_groups_are_predicted_from_all_others() -> None:
    rng = np.random.default_rng(2)
    points, z = rng.normal(size=(12, 2)), rng.normal(size=12)
    groups = [0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 4, 4]
    kernel, noise = gp.matern(gp.mean_squares(points, points), 1.0), 0.1 * np.eye(12)
    errors = gp.leave_one_out(gp.posterior(kernel + noise, z), groups)
    for group in set(groups):
        out = np.array([name == group for name in groups])
        rest = gp.posterior((kernel + noise)[np.ix_(~out, ~out)], z[~out])
        mean, sd = rest.at(kernel[np.ix_(out, ~out)], np.ones(out.sum()))
        assert errors[out] == pytest.approx((z[out] - mean) / np.sqrt(sd**2 + 0.1), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_without_noise_observations_are_met_and_doubt_grows_with_distance(places: list[float], random) -> None:
    points = np.array(sorted(places))[:, None]
    if np.diff(points[:, 0]).min() < 0.05:
        return
    z = np.array([random.uniform(-1, 1) for _ in places])
    found = gp.posterior(gp.matern(gp.mean_squares(points, points), 0.5), z)
    mean, sd = found.at(gp.matern(gp.mean_squares(points, points), 0.5), np.ones(len(points)))
    assert mean == pytest.approx(z, abs=1e-3)
    assert sd == pytest.approx(0, abs=1e-3)
    away = points.max() + np.linspace(0.05, 3, 12)[:, None]
    _, sd = found.at(gp.matern(gp.mean_squares(away, points), 0.5), np.ones(12))
    assert (np.diff(sd) >= -1e-9).all()


def test_features_of_a_network() -> None:
    seen = EYES.see([whole(PATTERNS[()]), network(16, 32, dropped=("b", "c"))])
    assert seen.layers[0] == pytest.approx(0)
    assert seen.whole[0] == pytest.approx(0)
    assert seen.expected[0] == pytest.approx(0)
    # stem, a.0, a.1, a.2 are left, all of b and c is gone; the head's outputs never change.
    trunk, own = np.log2(16 / 60), np.log2(32 / 60)
    assert seen.layers[1] == pytest.approx([trunk, own, own, trunk, GONE, GONE, GONE, GONE])
    assert seen.whole[1, 2] == pytest.approx(0.6)
    assert seen.expected[1] > seen.expected[0] + 1
    damaged = Eyes(PATTERNS, lambda networks: np.array([9.0] * len(networks))).see(
        [network(16, 32, dropped=("b", "c"))]
    )
    assert damaged.whole[0, 1] == pytest.approx(0.25)


def test_losses_and_z_of_proportions_and_of_drops() -> None:
    assert RESPONSE.scaled(np.array([0.02])) == pytest.approx(np.log(0.021))
    assert RESPONSE.of_drop(np.array([-0.5, 0.0, 0.01])) == pytest.approx(np.log([0.021, 0.021, 0.031]))
    assert RESPONSE.drop(RESPONSE.of_drop(np.array([0.013]))) == pytest.approx(0.013)
    drops = Response.of_drops(0.005)
    assert drops.of_drop(np.array([-1.0, 0.02])) == pytest.approx(np.log([0.005, 0.025]))


@settings(max_examples=8, deadline=None)
@given(st.permutations(list(range(12))))
def test_the_order_of_readings_does_not_matter_and_fits_are_the_same_again(order: list[int]) -> None:
    readings = some_readings()
    others = random_networks(PATTERNS, 20, seed=3)
    one = fit(EYES, RESPONSE, readings, NOISE)
    two = fit(EYES, RESPONSE, [readings[i] for i in order], NOISE)
    assert one.scales == two.scales
    epochs = np.full(20, 10.0)
    assert (one.predict(others, epochs).mean == two.predict(others, epochs).mean).all()


def test_before_anything_is_read_smaller_networks_and_shorter_trainings_promise_less() -> None:
    model = fit(EYES, RESPONSE, [], NOISE)
    networks = [whole(PATTERNS[()]), network(32, 32, 32, 32), network(16, 16, dropped=("a", "b"))]
    found = model.predict(networks, np.full(3, 20.0))
    assert (np.diff(found.mean) > 0).all()
    assert (np.diff(found.sd) > 0).all()
    short, long = model.predict(networks[:1] * 2, np.array([1.0, 50.0])).mean
    assert short > long


def test_a_reading_moves_what_is_expected_of_its_network_and_its_neighbours() -> None:
    chosen, near, far = network(32, 32, 32, 32), network(32, 32, 32, 48), network(16, 60, dropped=("b", "c"))
    before = fit(EYES, RESPONSE, [], NOISE).predict([chosen, near, far], np.full(3, 20.0))
    after = fit(EYES, RESPONSE, [read(chosen, 20, 0.3)], NOISE).predict([chosen, near, far], np.full(3, 20.0))
    moved = after.mean - before.mean
    assert moved[0] > moved[1] > 0.5
    assert after.sd[0] < after.sd[1] < after.sd[2]


def test_many_readings_of_one_network_are_no_new_evidence_each() -> None:
    chosen = network(32, 32, 32, 32)
    scales = Scales()
    one = fit(EYES, RESPONSE, [read(chosen, 20, 0.03)], NOISE, scales)
    ten = fit(EYES, RESPONSE, [read(chosen, 20, 0.03) for _ in range(10)], NOISE, scales)
    sd_one, sd_ten = (float(m.predict([chosen], np.array([20.0])).sd[0]) for m in (one, ten))
    own = np.hypot(proportion_noise(0.03, 500) / 0.031, scales.training)
    assert sd_ten > 0.6 * sd_one  # independent ones would leave about a third
    assert sd_ten > 0.7 * np.sqrt(0.6) * own * sd_one / np.hypot(sd_one, own)


def test_the_drop_on_train_tells_apart_what_val_cannot() -> None:
    good, bad = network(32, 16, 60, 32), network(32, 60, 16, 32)
    readings = [read(good, 20, 0.03), read(bad, 20, 0.03)]
    on_train = [Reading(good, 20, 0.002, 0.0005, "train"), Reading(bad, 20, 0.05, 0.002, "train")]
    scales, epochs = Scales(), np.full(2, 20.0)
    without = fit(EYES, RESPONSE, readings, NOISE, scales).predict([good, bad], epochs)
    found = fit(EYES, RESPONSE, readings + on_train, NOISE, scales).predict([good, bad], epochs)
    assert (found.mean[1] - found.mean[0]) - (without.mean[1] - without.mean[0]) > 0.25


def test_an_offset_of_all_readings_on_train_is_learnt() -> None:
    """Train examples that are harder for every network by the same factor say nothing bad of a new one."""
    readings = some_readings(10)
    harder = [Reading(r.network, r.epochs, 2.5 * r.loss, 0.01 * r.loss, "train") for r in readings]
    new = [r.network for r in some_readings(12)][10:]
    epochs = np.full(2, 15.0)
    plain = fit(EYES, RESPONSE, readings, NOISE, Scales()).predict(new, epochs)
    both = fit(EYES, RESPONSE, readings + harder, NOISE, Scales()).predict(new, epochs)
    assert both.mean == pytest.approx(plain.mean, abs=0.35)


def test_a_precision_may_be_worse_than_another() -> None:
    readings = some_readings(10)
    in_int8 = [read(r.network, r.epochs, min(0.9, 1.5 * r.loss), precision="int8") for r in readings]
    model = fit(EYES, RESPONSE, readings + in_int8, NOISE)
    new = random_networks(PATTERNS, 30, seed=8)[1:]
    epochs = np.full(len(new), 15.0)
    worse = model.predict(new, epochs, "int8").mean - model.predict(new, epochs).mean
    assert worse.mean() == pytest.approx(np.log(1.5), abs=0.15)


def test_the_next_reading_says_less_of_a_network_that_was_read() -> None:
    chosen, new = network(32, 32, 32, 32), network(48, 32, 48, 32)
    model = fit(EYES, RESPONSE, [read(chosen, 20, 0.03)], NOISE, Scales())
    epochs, noise = np.full(2, 20.0), np.full(2, 0.4)
    ahead, now = model.look_ahead([chosen, new], epochs, noise), model.predict([chosen, new], epochs)
    left = np.sqrt(now.sd**2 - (ahead.covariance / ahead.sd) ** 2)
    assert (left < now.sd).all()
    assert left[0] / now.sd[0] > left[1] / now.sd[1]
    assert ahead.mean[1] == pytest.approx(now.mean[1])


def test_looking_ahead_is_what_one_more_reading_does() -> None:
    """Against the model with the reading that was expected: the same mean, and the doubt that was foretold."""
    chosen, scales = network(32, 32, 32, 32), Scales()
    before = fit(EYES, RESPONSE, [read(chosen, 10, 0.05)], NOISE, scales)
    noise = np.array([0.3])
    ahead, now = before.look_ahead([chosen], np.array([20.0]), noise), before.predict([chosen], np.array([20.0]))
    loss = float(np.exp(ahead.mean[0]) - RESPONSE.floor)
    second = Reading(chosen, 20, loss, 0.3 * (loss + RESPONSE.floor))
    after = fit(EYES, RESPONSE, [read(chosen, 10, 0.05), second], NOISE, scales).predict([chosen], np.array([20.0]))
    assert after.mean == pytest.approx(now.mean, abs=0.03)  # the baseline is taken to be as long trained as the longest
    assert after.sd == pytest.approx(np.sqrt(now.sd**2 - (ahead.covariance / ahead.sd) ** 2), abs=0.01)


def test_a_model_of_its_own_truth_is_calibrated() -> None:
    """Losses drawn from the model itself: standardised errors of left out networks have a root mean square near 1."""
    rng = np.random.default_rng(4)
    networks = random_networks(PATTERNS, 46, seed=4)[1:]
    seen, scales = EYES.see(networks), Scales()
    kernel = scales.similar**2 * gp.matern(gp.mean_squares(seen.layers, seen.layers), scales.length)
    kernel = kernel + scales.linear**2 * seen.whole @ seen.whole.T + 1e-9 * np.eye(len(networks))
    z = np.log(0.02) + seen.expected + np.linalg.cholesky(kernel) @ rng.normal(size=len(networks))
    readings = []
    for each, value in zip(networks, z, strict=True):
        loss = float(np.exp(value + 0.2 * rng.normal()))
        readings.append(Reading(each, float(np.exp(2.5)), loss, 0.16 * (loss + RESPONSE.floor)))
    errors = fit(EYES, RESPONSE, readings, NOISE).calibration()
    assert len(errors) == 45
    assert 0.7 < np.sqrt((errors**2).mean()) < 1.4


def test_of_very_many_readings_the_best_are_used_and_some_of_all_others() -> None:
    rng = np.random.default_rng(0)
    networks = random_networks(PATTERNS, 300, seed=1)[1:]
    readings = [read(n, e, float(rng.uniform(0.01, 0.8))) for n in networks for e in (5.0, 20.0)]
    model = fit(EYES, RESPONSE, readings, NOISE, Scales())
    ordered = sorted(readings, key=lambda r: r.loss)
    used = {(n, round(float(t), 6)) for n, t in zip(model._points.networks, model._points.times, strict=True)}
    assert len(used) == 401  # and the baseline
    assert all((r.network, round(float(np.log(r.epochs) - 2.5), 6)) in used for r in ordered[:200])
    # The doubt about a bad network is as before, nearly: others that were read are near.
    assert model.predict([ordered[-1].network], np.array([20.0])).sd[0] < 1

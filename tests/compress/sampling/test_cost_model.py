"""Costs of untrained networks: a regression on blocks of channels, with its error."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.sampling import cost_model
from compress.sampling.network_arrays import channels, macs
from compress.sampling.pool import random_networks, spread
from small_space import PATTERNS, network

STEP = 16


def staircase(networks: list, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """A cost as runtimes have it, written down once more: calls, blocks of products, blocks moved."""
    rng = np.random.default_rng(seed)
    found = []
    for each in networks:
        total = 3.0
        for layer in PATTERNS[each.dropped].layers:
            inputs, outputs = (-(-c // STEP) for c in layer.channels(each.width_of, PATTERNS[each.dropped].full))
            total += 0.4 + 0.002 * (inputs + outputs) * layer.positions
            if layer.kind != "depthwise":
                total += 0.0005 * inputs * outputs * layer.positions * layer.kernel
        found.append(total)
    return np.array(found) / found[-1] * np.exp(noise * rng.normal(size=len(found)))


def test_columns_of_a_network_by_hand() -> None:
    row = cost_model.features(PATTERNS["b", "c"], network(16, 48, dropped=("b", "c")), STEP)
    assert row["1"] == 1
    # Trunk: one block of 16; block a: three; 3 inputs of the stem make one, 64 of the head four; 10 outputs one.
    assert row["conv 9"] == 2
    assert row["conv 9 out"] == 64 * (1 + 3)
    assert row["conv 9 in x out"] == 9 * 64 * (1 * 1 + 1 * 3)
    assert row["depthwise 9 out"] == 64 * 3
    assert "depthwise 9 in x out" not in row
    assert row["linear 1 in x out"] == 4 * 1
    assert row["moved"] == 64 * ((1 + 1) + (1 + 3) + (3 + 3) + (3 + 1)) + (4 + 1)


def test_a_staircase_is_learnt_from_eighteen_networks() -> None:
    measured = spread(PATTERNS, 18, seed=0)
    model = cost_model.fit(PATTERNS, measured, staircase(measured), STEP)
    others = [*random_networks(PATTERNS, 300, seed=5), measured[-1]]
    assert model.predict(others) == pytest.approx(staircase(others), rel=0.02)
    assert model.median_error < 0.005


def test_the_stated_error_is_that_of_networks_that_were_not_measured() -> None:
    measured = spread(PATTERNS, 22, seed=0)
    model = cost_model.fit(PATTERNS, measured, staircase(measured, noise=0.03), STEP)
    others = [*random_networks(PATTERNS, 300, seed=5), measured[-1]]
    real = np.median(np.abs(model.predict(others) / staircase(others) - 1))
    assert 0.4 * real < model.median_error < 4 * max(real, 0.01)
    assert model.worst_error >= model.median_error


def test_weights_are_never_negative() -> None:
    networks = random_networks(PATTERNS, 30, seed=1)
    ratios = np.random.default_rng(0).uniform(0.1, 1.0, 30)
    rows = cost_model.feature_rows(PATTERNS, networks, STEP)
    assert min(cost_model.regress(rows, ratios).values()) >= 0


def test_of_a_network_that_was_measured_the_mean_of_model_and_measurement_counts() -> None:
    measured = spread(PATTERNS, 18, seed=0)
    model = cost_model.fit(PATTERNS, measured, staircase(measured), STEP)
    new = network(32, 16, 32, 48)
    predicted = float(model.predict([new])[0])
    assert not model.is_off(new, predicted * 1.005)
    assert model.is_off(new, predicted * 1.2)
    again = model.with_measured(new, predicted * 1.2).with_measured(new, predicted).with_measured(new, predicted * 1.01)
    assert again.costs([new])[0] == pytest.approx(predicted, rel=0.01)  # the median of three
    lower = model.with_measured(new, predicted * 0.9)
    assert lower.predict([new])[0] * 0.9 < lower.costs([new])[0] < lower.predict([new])[0]
    assert new not in model.measured


def test_what_is_counted_is_what_was_measured_and_is_not_measured_again() -> None:
    """A network that was predicted within a limit, and is beyond it, is not made half of both."""
    measured = spread(PATTERNS, 18, seed=0)
    model = cost_model.fit(PATTERNS, measured, staircase(measured), STEP, exact=True)
    new = network(32, 16, 32, 48)
    predicted = float(model.predict([new])[0])
    assert not model.is_off(new, 1.5 * predicted)
    again = model.with_measured(new, 1.5 * predicted)
    assert again.costs([new])[0] == 1.5 * predicted
    assert again.costs(measured) == pytest.approx(staircase(measured))


NARROW = {
    dropped: replace(pattern, groups=tuple(replace(group, widths=(1, *group.widths)) for group in pattern.groups))
    for dropped, pattern in PATTERNS.items()
}
"""The space with groups of a single channel; a depthwise layer of one is an ordinary convolution."""


def test_code_that_comes_with_a_kind_of_layer_is_part_of_a_size() -> None:
    """Only block ``a`` has a depthwise layer."""

    def size(each) -> float:
        _, outputs = channels(NARROW[each.dropped], [each])
        found = zip(NARROW[each.dropped].layers, outputs[0], strict=True)
        return 1000.0 + 500.0 * any(layer.kind == "depthwise" and count > 1 for layer, count in found)

    measured = spread(NARROW, 30, seed=0)
    model = cost_model.fit(NARROW, measured, [size(n) / size(measured[-1]) for n in measured], 1, places=False)
    others = random_networks(NARROW, 200, seed=2)
    assert any("a" not in each.dropped and each.width_of["a"] == 1 for each in others)
    assert model.predict(others) == pytest.approx([size(n) / size(measured[-1]) for n in others], rel=1e-6)


def test_instructions_of_kernels_that_multiply_four_numbers_for_two_outputs_at_a_time() -> None:
    """Written as the loops run: windows are gathered, then rows of two outputs, then words of four numbers."""

    def instructions(each) -> float:
        total = 5000.0
        inputs, outputs = channels(NARROW[each.dropped], [each])
        for layer, i, o in zip(NARROW[each.dropped].layers, inputs[0], outputs[0], strict=True):
            if layer.kind == "depthwise" and i > 1:
                total += layer.positions * (30 + 12 * o)
                continue
            words, rest = divmod(int(i) * layer.kernel, 4)
            pairs, last = divmod(int(o), 2)
            row = 40 + 9 * words + 14 * rest
            total += layer.positions * (25 + 2 * int(i) * layer.kernel + pairs * row + last * (0.7 * row))
        return total

    measured = spread(NARROW, 40, seed=0)
    ratios = [instructions(n) / instructions(measured[-1]) for n in measured]
    others = random_networks(NARROW, 200, seed=2)
    known = np.array([instructions(n) / instructions(measured[-1]) for n in others])
    table = cost_model.FeatureTable(NARROW, 1, counted=True)
    finely = np.abs(cost_model.fit(NARROW, measured, ratios, 1, table=table).predict(others) / known - 1)
    roughly = np.abs(cost_model.fit(NARROW, measured, ratios, 1).predict(others) / known - 1)
    assert finely.max() < 0.02
    assert finely.max() < roughly.max() / 3


def test_sizes_are_exact() -> None:
    def size(each) -> float:
        inputs, outputs = channels(PATTERNS[each.dropped], [each])
        layers = PATTERNS[each.dropped].layers
        of_layers = zip(layers, inputs[0], outputs[0], strict=True)
        pairs = [layer.macs(int(i), int(o)) / layer.positions for layer, i, o in of_layers]
        return 900.0 + 4 * sum(pairs) + 4 * outputs.sum() + 150.0 * len(layers)

    measured = spread(PATTERNS, 18, seed=0)
    largest = size(measured[-1])
    model = cost_model.fit(PATTERNS, measured, [size(n) / largest for n in measured], 1, places=False)
    others = random_networks(PATTERNS, 200, seed=2)
    assert model.predict(others) == pytest.approx([size(n) / largest for n in others], rel=1e-6)
    assert model.worst_error < 1e-6


@settings(max_examples=20, deadline=None)
@given(st.permutations(list(range(12))))
def test_the_order_of_measurements_does_not_matter(order: list[int]) -> None:
    measured = spread(PATTERNS, 12, seed=0)
    ratios = staircase(measured, noise=0.02)
    some = random_networks(PATTERNS, 50, seed=2)
    model = cost_model.fit(PATTERNS, measured, ratios, STEP)
    shuffled = cost_model.fit(PATTERNS, [measured[i] for i in order], ratios[order], STEP)
    assert shuffled.predict(some) == pytest.approx(model.predict(some), rel=1e-6)


@pytest.mark.parametrize("ratio", [0.0, -0.1, float("nan"), float("inf")])
def test_a_cost_must_be_positive_and_finite(ratio: float) -> None:
    measured = spread(PATTERNS, 5, seed=0)
    with pytest.raises(ValueError, match="positive, finite"):
        cost_model.fit(PATTERNS, measured, [1.0, 1.0, ratio, 1.0, 1.0], STEP)


def test_two_networks_are_too_few() -> None:
    measured = spread(PATTERNS, 5, seed=0)[:2]
    with pytest.raises(ValueError, match="three or more"):
        cost_model.fit(PATTERNS, measured, [1.0, 1.0], STEP)


def test_more_macs_cost_more_in_a_model_of_macs() -> None:
    measured = spread(PATTERNS, 18, seed=0)
    shares = macs(PATTERNS, measured) / macs(PATTERNS, measured).max()
    model = cost_model.fit(PATTERNS, measured, shares, 1)
    others = random_networks(PATTERNS, 100, seed=2)
    assert model.predict(others) == pytest.approx(macs(PATTERNS, others) / macs(PATTERNS, measured).max(), rel=1e-6)

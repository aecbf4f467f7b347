"""Random networks, their neighbours, those that are measured, and arrays of their shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.sampling.network_arrays import channels, macs, patterns_by_dropped, whole
from compress.sampling.pool import neighbours, random_networks, spread
from small_space import PATTERNS, WIDTHS, network, pattern


def test_arrays_agree_with_the_layers_one_by_one() -> None:
    networks = random_networks(PATTERNS, 200, seed=3)
    expected = [PATTERNS[n.dropped].macs(n.width_of) for n in networks]
    assert macs(PATTERNS, networks).tolist() == expected
    some = [n for n in networks if n.dropped == ("b",)]
    inputs, outputs = channels(PATTERNS["b",], some)
    for i, each in enumerate(some):
        shapes = [layer.channels(each.width_of, PATTERNS["b",].full) for layer in PATTERNS["b",].layers]
        assert shapes == list(zip(inputs[i], outputs[i], strict=True))


def test_patterns_must_be_different_and_the_baseline_among_them() -> None:
    with pytest.raises(ValueError, match="same blocks"):
        patterns_by_dropped([pattern(()), pattern(())])
    with pytest.raises(ValueError, match="whole baseline"):
        patterns_by_dropped([pattern(("a",))])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 300))
def test_random_networks_are_of_the_space_different_and_the_same_again(seed: int, count: int) -> None:
    networks = random_networks(PATTERNS, count, seed)
    assert networks == random_networks(PATTERNS, count, seed)
    assert len(set(networks)) == len(networks) <= count
    assert networks[0] == whole(PATTERNS[()])
    for each in networks:
        assert set(each.width_of) == {group.name for group in PATTERNS[each.dropped].groups}
        assert set(each.width_of.values()) <= set(WIDTHS)


def test_a_small_space_is_found_nearly_whole() -> None:
    only = {(): pattern(())}
    assert len(random_networks(only, 1000, seed=0)) > 200  # of 4^4


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_neighbours_differ_by_a_step_or_two_and_a_block(seed: int) -> None:
    middle = network(32, 32, 48, 32)
    found = neighbours(PATTERNS, [middle], 30, seed)
    assert found
    assert middle not in found
    for each in found:
        assert len(each.dropped) <= 1
        steps = [abs(WIDTHS.index(w) - WIDTHS.index(middle.width_of[name])) for name, w in each.widths]
        assert max(steps) <= 1
        assert sum(steps) <= 2


def test_a_block_that_comes_back_is_as_wide_as_the_others() -> None:
    found = neighbours(PATTERNS, [network(16, 16, 16, dropped=("a",))], 60, seed=1)
    back = [each.width_of["a"] for each in found if not each.dropped]
    assert back
    assert set(back) <= {16, 32}


def test_networks_to_measure_are_of_all_sizes_most_of_them_small() -> None:
    networks = spread(PATTERNS, 18, seed=0)
    sizes = macs(PATTERNS, networks)
    assert len(networks) == 18
    assert (np.diff(sizes) >= 0).all()
    assert networks[-1] == whole(PATTERNS[()])
    assert np.median(sizes) < sizes[-1] / 4

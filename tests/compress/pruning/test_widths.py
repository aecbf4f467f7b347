"""Width arithmetic: bounds, steps and order hold for all numbers, not for examples only."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from compress.pruning.widths import ladder, realise
from targets.errors import SpaceError

RATIOS = st.floats(0, 1, exclude_max=True)
STEPS = st.integers(1, 64)
SHAPES = st.tuples(st.integers(1, 16), st.integers(1, 64)).map(lambda pair: (pair[0] * pair[1], pair[0]))
"""(channels, multiple), the first a multiple of the second."""


@given(SHAPES, RATIOS, STEPS)
def test_width_is_a_multiple_and_within_bounds(shape: tuple[int, int], ratio: float, step: int) -> None:
    channels, multiple = shape
    kept = realise(channels, ratio, step, multiple)
    assert min(multiple, channels) <= kept <= channels
    assert kept % multiple == 0
    assert kept == channels or kept % step == 0 or math.lcm(step, multiple) > channels
    assert kept == channels or step <= channels


@given(SHAPES, RATIOS, RATIOS, STEPS)
def test_a_greater_ratio_never_leaves_more(shape: tuple[int, int], a: float, b: float, step: int) -> None:
    channels, multiple = shape
    small, great = sorted((a, b))
    # Within the rounding that ties forgive, order is not asked for.
    assume(great - small > 1e-6 or great == small)
    assert realise(channels, great, step, multiple) <= realise(channels, small, step, multiple)


@given(SHAPES, RATIOS, STEPS)
def test_a_realised_width_realises_to_itself(shape: tuple[int, int], ratio: float, step: int) -> None:
    channels, multiple = shape
    kept = realise(channels, ratio, step, multiple)
    assert realise(channels, 1 - kept / channels, step, multiple) == kept


@given(SHAPES, RATIOS, STEPS)
def test_it_is_the_nearest_rung(shape: tuple[int, int], ratio: float, step: int) -> None:
    channels, multiple = shape
    wanted = channels * (1 - ratio)
    rungs = [*ladder(channels, step, multiple), channels]
    nearest = min(abs(rung - wanted) for rung in rungs)
    assert abs(realise(channels, ratio, step, multiple) - wanted) == pytest.approx(nearest, abs=1e-6)


@given(SHAPES, STEPS)
def test_ratio_zero_keeps_all(shape: tuple[int, int], step: int) -> None:
    assert realise(shape[0], 0.0, step, shape[1]) == shape[0]


@given(st.integers(2, 512), st.floats(0.5, 1, exclude_max=True))
def test_half_or_more_always_removes_something_where_a_step_fits(channels: int, ratio: float) -> None:
    assert realise(channels, ratio) < channels


@pytest.mark.parametrize(
    ("channels", "ratio", "step", "multiple", "kept"),
    [
        (32, 0.7, 16, 1, 16),  # Torch-Pruning's round_to leaves 32 here
        (64, 0.5, 1, 1, 32),
        (64, 0.3, 16, 1, 48),
        (64, 0.375, 16, 1, 48),  # a tie between 32 and 48: the wider
        (64, 0.99, 16, 1, 16),
        (8, 0.5, 16, 1, 8),  # the step is wider than the layer
        (30, 0.5, 16, 1, 16),
        (30, 0.1, 16, 1, 30),
        (24, 0.5, 16, 3, 12),  # no multiple of 16 and 3 fits: the step gives way
        (32, 0.5, 1, 4, 16),
        (32, 0.5, 1, 32, 32),
        (1, 0.9, 1, 1, 1),
    ],
)
def test_examples(channels: int, ratio: float, step: int, multiple: int, kept: int) -> None:
    assert realise(channels, ratio, step, multiple) == kept


@pytest.mark.parametrize("ratio", [1.0, -0.1, 1.5, math.nan, "0.5", True, None])
def test_ratio_out_of_range_is_refused(ratio: object) -> None:
    with pytest.raises(SpaceError, match="ratio"):
        realise(32, ratio)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [(32, 0.5, 0), (32, 0.5, 1.5), (30, 0.5, 1, 4), (0, 0.5)])
def test_widths_that_make_no_sense_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(SpaceError):
        realise(*arguments)

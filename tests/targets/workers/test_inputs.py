"""Feeds: made up in the model's type and shape, cut to one sample, batched so that nothing shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.errors import ModelError
from targets.workers.inputs import make_feeds, run_batches
from targets.workers.runtime import Input, Session


class Recording(Session):
    """y = 2x, noting the batch sizes it was run at."""

    def __init__(self, batch: int | None) -> None:
        self.inputs = (Input("x", "float32", (batch, 2)),)
        self.sizes: list[int] = []

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.sizes.append(len(feeds["x"]))
        return [feeds["x"] * 2]


@given(st.integers(0, 40), st.integers(1, 12), st.one_of(st.none(), st.integers(1, 9)))
def test_batching_does_not_show_in_the_result(count, batch, static):
    x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    session = Recording(static)
    (y,) = run_batches(session, {"x": x}, batch)
    np.testing.assert_array_equal(y, x * 2)
    assert max(session.sizes) <= (static or batch)
    if static:
        assert set(session.sizes) == {static}


DYNAMIC = Input("x", "float32", (None, 3, None))


def test_dynamic_axes_are_one_or_what_was_asked():
    assert make_feeds([DYNAMIC], {}, {}, seed=0)["x"].shape == (1, 3, 1)
    assert make_feeds([DYNAMIC], {}, {"x": (4, 3, 7)}, seed=0)["x"].shape == (4, 3, 7)
    with pytest.raises(ModelError, match=r"does not fit the model's \?x3x\?"):
        make_feeds([DYNAMIC], {}, {"x": (1, 4, 7)}, seed=0)


def test_a_data_set_is_cut_to_one_sample_or_the_static_batch():
    data = np.arange(5 * 3, dtype=np.float32).reshape(5, 3, 1)
    np.testing.assert_array_equal(make_feeds([DYNAMIC], {"x": data}, {}, seed=0)["x"], data[:1])
    eight = make_feeds([Input("x", "float32", (8, 3, 1))], {"x": data}, {}, seed=0)["x"]
    np.testing.assert_array_equal(eight, np.concatenate([data, data[:3]]))
    with pytest.raises(ModelError, match="without any sample"):
        make_feeds([DYNAMIC], {"x": data[:0]}, {}, seed=0)


@given(
    st.sampled_from(["float32", "float16", "float64", "int8", "uint8", "int64", "bool", "complex64"]), st.integers(0, 9)
)
def test_made_up_values_have_the_type_and_repeat(dtype, seed):
    item = Input("x", dtype, (None, 50))
    first, again = (make_feeds([item], {}, {}, seed=seed)["x"] for _ in range(2))
    assert first.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(first, again)
    if first.dtype.kind in "iu":
        assert 0 <= first.min() <= first.max() < 8


def test_text_is_made_up_too():
    assert make_feeds([Input("x", "str", (None,))], {}, {}, seed=0)["x"].tolist() == ["a"]


class InTime(Recording):
    """Gives (time, batch, features), as networks for text lines do; ``steps`` long."""

    steps = 3

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        super().run(feeds)
        return [np.stack([feeds["x"] * step for step in range(self.steps)])]


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("static", [None, 1])
@pytest.mark.parametrize("steps", [2, 3])
def test_outputs_without_a_batch_in_front_are_those_of_each_sample(batch, static, steps):
    session = InTime(static)
    session.steps = steps
    rows = np.arange(14, dtype=np.float32).reshape(7, 2)
    [found] = run_batches(session, {"x": rows}, batch)
    expected = np.stack([np.stack([row[np.newaxis] * step for step in range(steps)]) for row in rows])
    np.testing.assert_array_equal(found, expected)


def test_a_number_for_each_sample_has_the_samples_in_front():
    class Mean(Recording):
        def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [feeds["x"].mean()]

    [found] = run_batches(Mean(None), {"x": np.asarray([[1, 3], [4, 6]], np.float32)}, 2)
    np.testing.assert_array_equal(found, [2.0, 5.0])


def test_outputs_of_another_shape_for_each_sample_are_not_joined():
    class Found(Recording):
        def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.zeros((1, int(feeds["x"].max()), 4))]

    with pytest.raises(ModelError, match="output 0 has the shapes 1x4 and 2x4 for different samples"):
        run_batches(Found(1), {"x": np.asarray([[1, 1], [2, 2]], np.float32)}, 2)


class Two(Recording):
    """Of two inputs, the first with a batch of its own."""

    def __init__(self, first: int | None = None, second: int | None = None) -> None:
        super().__init__(first)
        self.inputs += (Input("ids", "int32", (second, 3)),)


ROWS, IDS = np.ones((4, 2), np.float32), np.ones((4, 3), np.int32)


@pytest.mark.parametrize(
    ("session", "given", "said"),
    [
        (Two(), {"x": ROWS}, "no values for input 'ids'; inputs are x, ids"),
        (Two(), {"x": ROWS, "ids": IDS, "y": IDS}, "values for 'y': no model has that input; inputs are ids, x"),
        (Two(), {"x": ROWS, "ids": IDS + 0.5}, "input 'ids' takes int32, was given float64"),
        (Two(), {"x": ROWS, "ids": IDS[:, :2]}, r"input 'ids' takes shape \?x3, was given 4x2"),
        (Two(), {"x": ROWS, "ids": IDS[:, 0]}, r"input 'ids' takes shape \?x3, was given 4$"),
        (Two(), {"x": ROWS[:3], "ids": IDS}, "the same number of samples on their first axis, have {'x': 3, 'ids': 4}"),
        (Two(), {"x": np.float32(1), "ids": IDS}, "on their first axis, have {'x': -1, 'ids': 4}"),
        (Two(2, 4), {"x": ROWS, "ids": IDS}, r"inputs have different static batch sizes \[2, 4\]; cannot batch"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_the_inputs_name(session, given, said):
    with pytest.raises(ModelError, match=said):
        run_batches(session, given, 2)
    assert not session.sizes, "nothing is run"


def test_whole_numbers_go_into_other_whole_numbers():
    session = Two()
    assert len(run_batches(session, {"x": ROWS, "ids": IDS.astype(np.int64)}, 3)) == 1
    assert session.sizes[-2:] == [3, 1]

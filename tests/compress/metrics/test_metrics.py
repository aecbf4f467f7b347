"""Metrics against scikit-learn, their intervals against the theory, and what they refuse."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs

from compress.metrics.intervals import tango, wilson
from compress.metrics.metrics import METRICS, Metric, disagreements, get, quality_drop, quality_of, slice_qualities
from compress.values.candidates import Drop
from targets.errors import MeasurementError, TaskError

SHARES = ("accuracy", "balanced_accuracy", "macro_f1", "top5")


def scores_of(decided: Any, number: int = 8) -> np.ndarray:
    """Scores (n, classes) whose largest is at ``decided`` (n,)."""
    scores: np.ndarray = np.eye(number, dtype=np.float32)[np.asarray(decided)]
    return scores


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of a baseline, noisier ones of a candidate (both (600, 8)), and labels of uneven frequency."""
    rng = np.random.default_rng(0)
    labels = rng.choice(8, 600, p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05])
    baseline = scores_of(labels) * 2 + rng.normal(0, 1, (600, 8))
    return baseline, baseline + rng.normal(0, 1, (600, 8)), labels


def hits(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy as a user might write it."""
    return float((outputs.argmax(axis=1) == labels).mean())


decisions = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(0, 7), min_size=n, max_size=n) for _ in range(2)))
)


@settings(deadline=None, max_examples=50)
@given(decisions)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_are_scikit_learns(pair: tuple[list[int], list[int]]) -> None:
    decided, labels = pair
    outputs, wanted = scores_of(decided), np.array(labels)
    expected = {
        "accuracy": theirs.accuracy_score(labels, decided),
        "balanced_accuracy": theirs.balanced_accuracy_score(labels, decided),
        "macro_f1": theirs.f1_score(labels, decided, average="macro"),
    }
    for name, value in expected.items():
        assert get(name).function(outputs, wanted) == pytest.approx(value)


def test_top5_is_scikit_learns(sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    outputs, _, labels = sample
    value = theirs.top_k_accuracy_score(labels, outputs, k=5, labels=range(8))
    assert quality_of(get("top5"), outputs, labels).value == pytest.approx(value)


def test_top5_of_a_constant_output_is_not_always_right() -> None:
    assert quality_of(get("top5"), np.zeros((8, 8)), np.arange(8)).value == 5 / 8


def test_errors_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    assert quality_of(get("mae"), outputs, labels).value == pytest.approx(theirs.mean_absolute_error(labels, outputs))
    assert quality_of(get("mse"), outputs, labels).value == pytest.approx(theirs.mean_squared_error(labels, outputs))


def test_errors_do_not_broadcast() -> None:
    values = np.arange(10.0)
    assert quality_of(get("mse"), values[:, None], values).value == 0.0
    with pytest.raises(TaskError, match="do not fit"):
        quality_of(get("mse"), np.zeros((10, 2)), values)


def test_errors_of_several_outputs() -> None:
    outputs = (np.zeros((4, 1)), np.ones((4, 3)))
    labels = (np.ones((4, 1)), np.ones((4, 3)))
    assert quality_of(get("mae"), outputs, labels).value == pytest.approx(1 / 4)
    with pytest.raises(TaskError, match="2 outputs"):
        quality_of(get("mae"), outputs, labels[0])


def test_agreement_takes_classes_or_outputs(sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    baseline, outputs, _ = sample
    agreement = get("agreement")
    from_outputs = quality_of(agreement, outputs, baseline)
    assert from_outputs.value == pytest.approx(hits(outputs, baseline.argmax(axis=1)))
    assert quality_of(agreement, outputs, baseline.argmax(axis=1)) == from_outputs
    assert quality_of(agreement, baseline, baseline).value == 1.0


def test_decisions_per_pixel_are_averaged_per_example() -> None:
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(30, 4, 5, 6)), rng.integers(0, 4, (30, 5, 6))
    found = quality_of(get("accuracy"), outputs, labels)
    assert found.value == pytest.approx((outputs.argmax(axis=1) == labels).mean())
    assert found.n == 30
    assert disagreements(get("accuracy"), outputs, outputs, labels) is None


def test_accuracy_has_wilsons_interval() -> None:
    labels = np.zeros(50, dtype=int)
    found = quality_of(get("accuracy"), scores_of([0] * 45 + [1] * 5), labels)
    assert (found.metric, found.value, found.n) == ("accuracy", 0.9, 50)
    assert (found.low, found.high) == wilson(45, 50)


@settings(deadline=None)
@given(decisions, st.data())
def test_drop_of_accuracy_has_tangos_interval(pair: tuple[list[int], list[int]], data: st.DataObject) -> None:
    before, labels = (np.array(side) for side in pair)
    after = np.array(data.draw(st.lists(st.integers(0, 7), min_size=len(before), max_size=len(before))))
    lost = int(((before == labels) & (after != labels)).sum())
    gained = int(((before != labels) & (after == labels)).sum())
    accuracy = get("accuracy")
    arguments = scores_of(before), scores_of(after), labels
    assert disagreements(accuracy, *arguments) == (lost, gained, len(labels))
    found = quality_drop(accuracy, *arguments)
    assert (found.low, found.high) == tango(lost, gained, len(labels))
    difference = quality_of(accuracy, arguments[0], labels).value - quality_of(accuracy, arguments[1], labels).value
    assert found.value == pytest.approx(difference)


@pytest.mark.parametrize("name", SHARES)
def test_a_drop_is_turned_round_with_its_sides(name: str, sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    baseline, outputs, labels = sample
    forth, back = quality_drop(get(name), baseline, outputs, labels), quality_drop(get(name), outputs, baseline, labels)
    assert forth.low <= forth.value <= forth.high
    assert (back.value, back.low, back.high) == pytest.approx((-forth.value, -forth.high, -forth.low))


@pytest.mark.parametrize("name", ["mae", "mse"])
def test_a_drop_is_positive_where_errors_grow(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=200)
    good, bad = labels + rng.normal(0, 0.1, 200), labels + rng.normal(0, 1.0, 200)
    found = quality_drop(get(name), good, bad, labels)
    assert 0 < found.low < found.value < found.high
    assert found.value == pytest.approx(
        quality_of(get(name), bad, labels).value - quality_of(get(name), good, labels).value
    )


def test_a_drop_of_errors_counts_the_same_way() -> None:
    rate = Metric("error", lambda o, y: 1 - hits(o, y), False, lambda o, y: o.argmax(axis=1) != y)
    labels = np.zeros(10, dtype=int)
    before, after = scores_of([0] * 9 + [1]), scores_of([1] * 4 + [0] * 6)
    assert disagreements(rate, before, after, labels) == (4, 1, 10)
    assert quality_drop(rate, before, after, labels) == quality_drop(get("accuracy"), before, after, labels)


def test_bootstrapped_drops_are_paired(sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    baseline, _, labels = sample
    nearly = baseline.copy()
    nearly[:6] = np.roll(nearly[:6], 1, axis=1)
    own, found = quality_of(get("macro_f1"), nearly, labels), quality_drop(get("macro_f1"), baseline, nearly, labels)
    assert found.high - found.low < (own.high - own.low) / 3


def test_bootstrap_agrees_with_the_score_interval(sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    baseline, outputs, labels = sample
    brought = Metric("hits", hits)
    exact, resampled = (quality_of(metric, outputs, labels) for metric in (get("accuracy"), brought))
    assert (resampled.low, resampled.high) == pytest.approx((exact.low, exact.high), abs=0.008)
    first, second = (quality_drop(metric, baseline, outputs, labels) for metric in (get("accuracy"), brought))
    assert (second.value, second.low, second.high) == pytest.approx(dataclasses.astuple(first), abs=0.008)


def test_the_seed_decides_the_interval(sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    baseline, outputs, labels = sample
    metric = get("macro_f1")
    assert quality_drop(metric, baseline, outputs, labels, 1) == quality_drop(metric, baseline, outputs, labels, 1)
    assert quality_drop(metric, baseline, outputs, labels, 1) != quality_drop(metric, baseline, outputs, labels, 2)


@pytest.mark.parametrize("metric", [*(get(name) for name in SHARES), Metric("hits", hits)], ids=lambda m: m.name)
def test_no_disagreement_does_not_make_a_drop_certain(metric: Metric) -> None:
    labels = np.arange(40) % 8
    outputs = scores_of(labels)
    found = quality_drop(metric, outputs, outputs.copy(), labels)
    assert (found.value, found.low, found.high) == (0.0, *tango(0, 0, 40))
    own = quality_of(metric, outputs, labels)
    assert (own.value, own.low, own.high) == (1.0, *wilson(40, 40))


def test_a_model_does_not_drop_against_itself(sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    baseline, _, labels = sample
    assert quality_drop(get("accuracy"), baseline, baseline, labels) == Drop(0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", [*SHARES, "agreement"])
def test_nan_is_never_right(name: str) -> None:
    # argmax of a row of NaN is 0: so is every label.
    outputs, labels = np.full((20, 8), np.nan), np.zeros(20, dtype=int)
    assert quality_of(get(name), outputs, labels).value == 0.0
    outputs[:10] = scores_of([0] * 10)
    outputs[0, 5] = np.nan
    expected = 2 * 9 / (9 + 20) if name == "macro_f1" else 9 / 20
    assert quality_of(get(name), outputs, labels).value == pytest.approx(expected)


def test_nan_agrees_with_nothing() -> None:
    broken = np.full((20, 8), np.nan)
    assert quality_of(get("agreement"), broken, broken).value == 0.0


@pytest.mark.parametrize("metric", [get("mse"), get("mae"), Metric("mine", lambda o, y: float(np.nanmean(o - y)))])
def test_nan_elsewhere_is_an_error(metric: Metric) -> None:
    outputs = np.zeros(20)
    outputs[3] = np.nan
    with pytest.raises(MeasurementError, match=r"not finite: NaN in 1 of 20"):
        quality_of(metric, outputs, np.zeros(20))
    with pytest.raises(MeasurementError, match="not finite"):
        quality_drop(metric, np.zeros(20), outputs, np.zeros(20))


def test_an_infinite_value_is_an_error() -> None:
    with pytest.raises(MeasurementError, match=r"'mse' is inf"):
        quality_of(get("mse"), np.array([0.0, np.inf]), np.zeros(2))


def test_a_metric_that_raises_is_named_with_its_line() -> None:
    def broken(outputs: np.ndarray, labels: np.ndarray) -> float:
        return float(np.linalg.inv(outputs).mean() + labels.mean())

    # The line in the metric, not the one in numpy that it leads to.
    with pytest.raises(TaskError, match=r"'broken' raised LinAlgError: .*\(.*test_metrics\.py:\d+\)$") as caught:
        quality_of(Metric("broken", broken), np.zeros((5, 2)), np.zeros(5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("each", [lambda o, y: o == y, lambda _o, _y: np.ones(3), lambda _o, _y: np.float64(1.0)])
def test_values_per_example_must_average_to_the_metric(each: Any) -> None:
    metric = Metric("mine", lambda _o, _y: 0.25, per_example=each)
    with pytest.raises(TaskError, match="per_example"):
        quality_of(metric, np.zeros(10), np.zeros(10))


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (np.zeros((5, 1)), np.zeros(5, dtype=int), "two or more classes"),
        (np.zeros((5, 3)), np.zeros((5, 3)), "do not fit"),
        (np.zeros((5, 3)), np.full(5, 0.5), "class numbers"),
        (np.zeros((5, 3)), np.full(5, -1), "class numbers"),
        (np.zeros((5, 3)), np.zeros(4, dtype=int), r"\[4, 5\] examples"),
        (np.zeros((0, 3)), np.zeros(0, dtype=int), r"\[0\] examples"),
        ((np.zeros((5, 3)), np.zeros((5, 3))), np.zeros(5, dtype=int), "2 outputs"),
        (
            np.zeros((5, 3)),
            (np.zeros(5, dtype=int), np.zeros(5, dtype=int)),
            "labels are 2 arrays, this metric takes one",
        ),
    ],
)
@pytest.mark.parametrize("name", ["accuracy", "macro_f1"])
def test_what_does_not_fit_is_refused(name: str, outputs: Any, labels: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        quality_of(get(name), outputs, labels)
    assert name in str(caught.value)


def test_top5_of_five_classes_is_refused() -> None:
    with pytest.raises(TaskError, match="more than five"):
        quality_of(get("top5"), np.zeros((4, 5)), np.zeros(4, dtype=int))
    with pytest.raises(TaskError, match="label 6 is not among the 6 classes of the model"):
        quality_of(get("top5"), np.zeros((4, 6)), np.array([0, 5, 6, 1]))


def test_outputs_for_other_places_cannot_agree() -> None:
    """Two pixels of the baseline's, four of this one's."""
    with pytest.raises(
        TaskError, match=r"labels decide on \(5, 2\), outputs on \(5, 4\); give the baseline's own outputs"
    ):
        quality_of(get("agreement"), np.zeros((5, 3, 4)), np.zeros((5, 3, 2)))


def test_labels_may_have_an_axis_of_one() -> None:
    labels = np.arange(8)
    assert quality_of(get("accuracy"), (scores_of(labels),), labels[:, None]).value == 1.0


def test_an_own_metric_gets_all_outputs() -> None:
    metric = Metric("sum", lambda outputs, labels: float((outputs[0] + outputs[1] - labels).mean()), False)
    found = quality_of(metric, (np.arange(30.0), np.ones(30)), np.arange(30.0))
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_an_own_metric_may_be_undefined_on_a_resample() -> None:
    def auc(outputs: np.ndarray, labels: np.ndarray) -> float:
        if len(set(labels.tolist())) < 2:
            raise ValueError("one class only")
        return float((outputs[labels == 1, None] > outputs[labels == 0]).mean())

    labels = np.array([0] * 30 + [1, 1])
    found = quality_of(Metric("auc", auc), np.linspace(0, 1, 32) ** 2, labels)
    assert found.value == 1.0
    scored = slice_qualities(Metric("auc", auc), np.linspace(0, 1, 32), labels, {"half": [0] * 16 + [1] * 16})
    assert list(scored["half"]) == ["1"]


def test_an_own_metric_that_no_resample_has_has_no_interval() -> None:
    def once(outputs: np.ndarray, _: np.ndarray) -> float:
        if len(set(outputs.tolist())) < len(outputs):
            raise ValueError("an example is there twice")
        return 0.5

    with pytest.raises(
        TaskError, match=r"'once' has no interval: only 0 of \d+ resamples gave .* too few examples \(32\)"
    ):
        quality_of(Metric("once", once), np.arange(32), np.arange(32))


def test_get_knows_the_names() -> None:
    own = Metric("mine", hits)
    assert get(own) is own
    assert all(get(name).name == name for name in METRICS)
    with pytest.raises(TaskError, match=r"unknown metric 'f1'; use one of accuracy, .*macro_f1"):
        get("f1")


def test_slices_are_scored_apart(sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    outputs, _, labels = sample
    speakers = [f"s{i % 3}" for i in range(600)]
    found = slice_qualities(
        get("accuracy"), outputs, labels, {"speaker": speakers, "even": [i % 2 == 0 for i in range(600)]}
    )
    assert {name: list(parts) for name, parts in found.items()} == {
        "speaker": ["s0", "s1", "s2"],
        "even": ["False", "True"],
    }
    assert found["speaker"]["s1"] == quality_of(get("accuracy"), outputs[1::3], labels[1::3])
    assert sum(part.n for part in found["even"].values()) == 600
    mean = math.fsum(part.value * part.n for part in found["speaker"].values()) / 600
    assert mean == pytest.approx(hits(outputs, labels))


def test_a_slice_needs_a_value_for_each_example() -> None:
    with pytest.raises(TaskError, match=r"'speaker' has 2 values for 8 examples"):
        slice_qualities(get("accuracy"), scores_of(np.arange(8)), np.arange(8), {"speaker": ["a", "b"]})

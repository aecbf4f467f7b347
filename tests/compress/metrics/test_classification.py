"""Precision, recall and F1, of classes, labels and tokens, against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as theirs

from compress.metrics.classification import per_class
from compress.metrics.decisions import class_axis
from compress.metrics.metrics import get, quality_drop, quality_of
from targets.errors import TaskError

pairs = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(0, 5), min_size=n, max_size=n) for _ in range(2)))
)
several = st.tuples(st.integers(1, 30), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(*(arrays.arrays(np.int64, shape, elements=st.integers(0, 1)) for _ in range(2)))
)


def scores_of(decided: Any, number: int = 6) -> np.ndarray:
    """Scores (n, classes) whose largest is at ``decided`` (n,)."""
    scores: np.ndarray = np.eye(number, dtype=np.float32)[np.asarray(decided)]
    return scores


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_averages_over_classes_are_scikit_learns(pair: tuple[list[int], list[int]]) -> None:
    decided, labels = pair
    outputs, wanted = scores_of(decided), np.array(labels)
    for name, function in (("macro_precision", theirs.precision_score), ("macro_recall", theirs.recall_score)):
        expected = function(labels, decided, average="macro", zero_division=0)
        assert get(name).function(outputs, wanted) == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_every_class_is_scikit_learns(pair: tuple[list[int], list[int]]) -> None:
    decided, labels = pair
    there = sorted({*decided, *labels})
    expected = theirs.precision_recall_fscore_support(labels, decided, labels=there, zero_division=0)
    found = per_class(scores_of(decided), np.array(labels))
    assert list(found) == [str(c) for c in there]
    for i, one in enumerate(found.values()):
        assert (one.precision, one.recall, one.f1, one.n) == pytest.approx(tuple(column[i] for column in expected))
        assert one.decided == decided.count(there[i])


def test_classes_are_told_of_single_decisions_only() -> None:
    labels = np.arange(6)
    assert len(per_class(scores_of(labels), labels)) == 6
    assert len(per_class((scores_of(labels),), labels)) == 6
    assert per_class((scores_of(labels), scores_of(labels)), labels) == {}
    assert per_class(np.zeros((6, 3, 4)), np.zeros((6, 4), dtype=int)) == {}
    assert per_class(np.zeros(6), np.zeros(6)) == {}


def test_nan_is_no_class() -> None:
    outputs = scores_of([0, 0, 1])
    outputs[0] = np.nan
    found = per_class(outputs, np.array([0, 0, 1]))
    assert (found["0"].recall, found["0"].precision, found["0"].decided) == (0.5, 1.0, 1)


@settings(deadline=None, max_examples=60)
@given(several)
def test_several_labels_are_scikit_learns(pair: tuple[np.ndarray, np.ndarray]) -> None:
    decided, wanted = pair
    logits = np.where(decided == 1, 2.5, -0.5)
    assert get("multilabel_accuracy").function(logits, wanted) == pytest.approx((decided == wanted).mean())
    assert get("multilabel_exact").function(logits, wanted) == pytest.approx((decided == wanted).all(1).mean())
    for average in ("micro", "macro"):
        if not (decided + wanted).any():
            continue
        # One column is a matrix of two classes to scikit-learn; beside an empty one it is one label of two.
        padded = [np.hstack([x, np.zeros((len(x), 1), dtype=int)]) for x in (wanted, decided)]
        expected = theirs.f1_score(*padded, average=average, zero_division=np.nan)
        assert get(f"multilabel_{average}_f1").function(logits, wanted) == pytest.approx(expected)


def test_one_logit_is_a_binary_decision() -> None:
    logits, labels = np.array([[1.2], [-0.3], [0.1], [-2.0]]), np.array([1, 1, 1, 0])
    found = quality_of(get("multilabel_accuracy"), logits, labels)
    assert (found.value, found.n) == (0.75, 4)
    assert (
        quality_drop(get("multilabel_accuracy"), np.where(labels == 1, 1.0, -1.0), logits[:, 0], labels).value == 0.25
    )
    assert get("multilabel_micro_f1").function(logits, labels) == pytest.approx(theirs.f1_score(labels, [1, 0, 1, 0]))


def test_labels_of_which_none_holds_have_no_f1() -> None:
    for name in ("multilabel_micro_f1", "multilabel_macro_f1"):
        assert np.isnan(get(name).function(np.full((3, 2), -1.0), np.zeros((3, 2), dtype=int)))


def test_nan_is_wrong_for_every_label() -> None:
    logits, labels = np.full((4, 2), np.nan), np.array([[0, 1]] * 4)
    for name in ("multilabel_accuracy", "multilabel_exact", "multilabel_micro_f1", "multilabel_macro_f1"):
        assert quality_of(get(name), logits, labels).value == 0.0


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (np.zeros((4, 3)), np.zeros((4, 2), dtype=int), "do not fit"),
        (np.zeros((4, 3)), np.full((4, 3), 2), "not 0 or 1"),
        ((np.zeros((4, 3)), np.zeros((4, 3))), np.zeros((4, 3), dtype=int), "2 outputs"),
    ],
)
def test_other_labels_are_refused(logits: Any, labels: np.ndarray, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        quality_of(get("multilabel_macro_f1"), logits, labels)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(1, 9), st.integers(2, 5), st.booleans())
def test_tokens_are_scikit_learns(seed: int, n: int, length: int, number: int, last: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, number, (n, length))
    labels[rng.random(labels.shape) < 0.3] = -100
    labels[0, 0] = 1
    scores = rng.normal(size=(n, length, number))
    kept = labels != -100
    expected = theirs.accuracy_score(labels[kept], scores.argmax(-1)[kept])
    if last and length == number:
        return  # both axes fit: classes are then on the first
    found = get("token_accuracy").function(scores if last else scores.transpose(0, 2, 1), labels)
    assert found == pytest.approx(expected)


def test_tokens_have_an_interval_and_padding_alone_has_none() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(50, 7, 4)), rng.integers(0, 4, (50, 7))
    found = quality_of(get("token_accuracy"), scores, labels)
    assert found.low < found.value < found.high
    assert found.n == 50
    assert np.isnan(get("token_accuracy").function(scores, np.full((50, 7), -100)))
    with pytest.raises(TaskError, match="do not fit"):
        quality_of(get("token_accuracy"), scores, labels[:, :5])
    with pytest.raises(TaskError, match="each token"):
        quality_of(get("token_accuracy"), scores[:, 0], labels)


def test_the_axis_of_the_classes() -> None:
    assert class_axis((8, 5), (8,)) == 1
    assert class_axis((8, 5, 7), (8, 7)) == 1
    assert class_axis((8, 7, 5), (8, 7)) == 2
    assert class_axis((8, 7, 7), (8, 7)) == 1
    assert class_axis((8, 4, 6, 5), (8, 4, 6)) == 3
    assert class_axis((8, 5), (8, 5)) == 1

"""Probabilities told from logits, and scored and trained as what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from compress.metrics.metrics import METRICS, Metric, get, quality_of
from compress.metrics.output_kinds import explained, output_kind, scored_as
from compress.training.objectives import Objective

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, (60, 3))
LOGITS = ((2 * LABELS - 1) * RANDOM.uniform(0.2, 4, LABELS.shape)).astype(np.float32)
SHARES = (1 / (1 + np.exp(-LOGITS))).astype(np.float32)
CLASSES = LOGITS.argmax(1)
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


@pytest.mark.parametrize("name", [name for name in METRICS if name.startswith("multilabel")])
def test_probabilities_of_labels_decide_at_a_half(name: str) -> None:
    metric = get(name)
    assert output_kind(metric, SHARES, LABELS) == "sigmoid"
    assert output_kind(metric, LOGITS, LABELS) == "logits"
    fitted = scored_as(metric, "sigmoid")
    assert fitted.name == metric.name
    assert fitted.function(SHARES, LABELS) == metric.function(LOGITS, LABELS) == 1.0
    assert fitted.function((SHARES,), LABELS) == 1.0
    if fitted.per_example is not None:
        assert np.array_equal(fitted.per_example(SHARES, LABELS), metric.per_example(LOGITS, LABELS))  # type: ignore[misc]
    wrong = 1 - SHARES
    assert fitted.function(wrong, LABELS) == 0.0


def test_what_only_lies_between_0_and_1_is_no_probability() -> None:
    metric, small = get("multilabel_accuracy"), np.full((60, 3), 0.1, np.float32)
    one_label = np.ones((60, 3), int)
    assert output_kind(metric, small, one_label) == "logits"
    assert output_kind(metric, small, one_label, last="Sigmoid") == "sigmoid", "the file tells"
    assert output_kind(get("accuracy"), SHARES, CLASSES) == "logits"
    assert output_kind(get("accuracy"), SHARES, CLASSES, last="Sigmoid") == "sigmoid"
    assert output_kind(get("mse"), SHARES, LABELS, last="Sigmoid") == "logits", "no logits are wanted"
    assert output_kind(get("multilabel_accuracy"), np.full((60, 3), np.nan), LABELS, last="Sigmoid") == "logits"


def test_a_softmax_is_told_by_its_sum_on_either_axis_of_the_classes() -> None:
    assert output_kind(get("accuracy"), SOFTMAX, CLASSES) == "softmax"
    assert output_kind(get("accuracy"), (SOFTMAX, LOGITS), CLASSES) == "softmax"
    tokens = np.stack([SOFTMAX, SOFTMAX], 1)
    assert output_kind(get("token_accuracy"), tokens, np.stack([CLASSES, CLASSES], 1)) == "softmax"
    assert output_kind(get("accuracy"), SOFTMAX[:4], CLASSES[:4]) == "logits", "too few to tell"
    for off, kind in ((0.0005, "softmax"), (0.01, "logits"), (-0.01, "logits")):
        assert output_kind(get("accuracy"), SOFTMAX * (1 + off), CLASSES) == kind, (
            "but for rounding, even of half precision"
        )
    assert scored_as(get("accuracy"), "softmax") is get("accuracy")


def test_a_metric_of_the_users_own_is_scored_as_it_is() -> None:
    own = Metric("multilabel_accuracy", lambda _, __: 0.0, loss="bce")
    assert scored_as(own, "sigmoid", 1) is own


def test_of_several_outputs_the_one_that_decides_is_scored() -> None:
    several = (np.zeros((60, 7), np.float32), SHARES)
    fitted = scored_as(get("multilabel_macro_f1"), "sigmoid", 1)
    assert fitted.function(several, LABELS) == 1.0
    assert quality_of(fitted, several, LABELS).value == 1.0
    assert quality_of(scored_as(get("accuracy"), "logits", 1), several, CLASSES).value == 1.0


def test_what_is_said_names_the_metric_and_what_is_done() -> None:
    said = explained("sigmoid", get("multilabel_exact"), trained=True)
    assert all(word in said for word in ("probabilities", "multilabel_exact", "0.5", "logits"))
    assert "training" not in explained("softmax", get("accuracy"), trained=False)


def test_losses_of_probabilities_are_those_of_their_logits() -> None:
    logits, shares, labels = (torch.from_numpy(x) for x in (LOGITS, SHARES, LABELS))
    value = Objective(None, "bce", "sigmoid").value(shares, labels, 0.0)
    assert float(value) == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, labels.float())), rel=1e-4)
    classes, softmax = torch.from_numpy(CLASSES), torch.from_numpy(SOFTMAX)
    value = Objective(None, "cross_entropy", "softmax").value(softmax, classes, 0.0)
    assert float(value) == pytest.approx(float(F.cross_entropy(logits, classes)), rel=1e-4)
    for kind, outputs, given in (("bce", "sigmoid", shares), ("cross_entropy", "softmax", softmax)):
        other = given.roll(1, 0)
        found = Objective(None, kind, outputs).divergence((given,), (other,), classes, 3.0)  # type: ignore[arg-type]
        expected = Objective(None, kind).divergence((logits,), (logits.roll(1, 0),), classes, 3.0)
        assert float(found) == pytest.approx(float(expected), rel=1e-3)


def test_saturated_probabilities_have_finite_losses_and_gradients() -> None:
    shares = torch.tensor([[0.0], [1.0]], requires_grad=True)
    Objective(None, "bce", "sigmoid").value(shares, torch.tensor([[1], [1]]), 0.0).backward()
    assert shares.grad is not None
    assert bool(shares.grad.isfinite().all())

"""Quality and loss against the original's own outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compress.metrics import metrics
from compress.tasks.original_outputs import Goal, goal, labelled, parts_of

RANDOM = np.random.default_rng(0)
SCORES = RANDOM.standard_normal((50, 4)).astype(np.float32)
SHARES = (np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)).astype(np.float32)
VECTORS = RANDOM.standard_normal((50, 6, 5)).astype(np.float32)
NUMBERS = RANDOM.standard_normal((50, 1)).astype(np.float32)
WORDS = RANDOM.integers(0, 9, (50, 3))


def goal_of(*outputs: np.ndarray) -> Goal:
    return goal(outputs, [f"o{i}" for i in range(len(outputs))], [WORDS])


def value(found: Goal, *outputs: np.ndarray) -> float:
    metric = metrics.get(found.metric)
    return metrics.quality_of(metric, outputs[0] if len(outputs) == 1 else outputs, found.labels).value


@pytest.mark.parametrize(
    ("outputs", "name", "best"),
    [
        ((SCORES,), "agreement", 1.0),
        ((SHARES,), "agreement", 1.0),
        ((VECTORS,), "cosine", 1.0),
        ((NUMBERS,), "relative_error", 0.0),
        ((SCORES.argmax(axis=1), SHARES), "agreement", 1.0),
        ((SCORES, SHARES), "agreement", 1.0),
        ((SCORES, VECTORS), "agreement and cosine", 1.0),
        ((SCORES, NUMBERS), "agreement and 1 - relative_error", 1.0),
        ((SCORES.argmax(axis=1),), "agreement", 1.0),
    ],
)
def test_the_original_is_as_good_as_can_be_and_noise_costs(outputs: Any, name: str, best: float) -> None:
    found = goal_of(*outputs)
    metric = metrics.get(found.metric)
    assert metric.name == name
    assert metric.higher_is_better == (name != "relative_error")
    assert value(found, *outputs) == pytest.approx(best)
    other = tuple(np.roll(x, 1, axis=0) for x in outputs)
    assert abs(value(found, *other) - best) > 0.2
    drop = metrics.quality_drop(
        metric, outputs[0] if len(outputs) == 1 else outputs, other[0] if len(other) == 1 else other, found.labels
    )
    assert drop.value > 0.2
    assert 0 <= metrics.quality_of(metric, other[0] if len(other) == 1 else other, found.labels).value <= 1


def test_every_output_counts() -> None:
    found = goal_of(SCORES, VECTORS)
    assert value(found, SCORES, -VECTORS) == pytest.approx(0.5)
    assert value(found, -SCORES, VECTORS) < 0.7


def test_places_of_one_output_count_each() -> None:
    """One of two places is decided for the next class: half of what that output says, a quarter of all."""
    places = np.stack([SHARES, SHARES], 2)
    found = goal_of(places, VECTORS)
    half = np.stack([SHARES, np.roll(SHARES, 1, axis=1)], 2)
    assert value(found, places, VECTORS) == pytest.approx(1.0)
    assert value(found, half, VECTORS) == pytest.approx(0.75)


def test_what_rebuilds_its_input_decides_on_nothing() -> None:
    [part] = parts_of([SCORES], ["y"], [SCORES])
    assert part.kind == "numbers"


def test_an_error_is_relative_to_the_spread_not_the_size() -> None:
    far = NUMBERS + 1000
    found = goal_of(far)
    assert value(found, far + far.std()) == pytest.approx(1.0, abs=1e-3)
    assert value(found, far + 0.1 * far.std()) == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("outputs", [(SHARES,), (SCORES, SHARES), (VECTORS, SCORES), (SCORES.argmax(axis=1), SHARES)])
def test_a_loss_of_its_own_falls_when_the_outputs_come_nearer(outputs: Any) -> None:
    found = goal_of(*outputs)
    assert found.loss is not None
    labels = torch.from_numpy(found.labels)
    tensors = [torch.from_numpy(x) for x in outputs]
    mixed = [0.5 * x + 0.5 * x.roll(1, 0) if x.is_floating_point() else x for x in tensors]
    far = [x.roll(1, 0) for x in tensors]
    losses = [float(found.loss(tuple(several), labels)) for several in (tensors, mixed, far)]
    assert losses == sorted(losses)
    assert losses[0] < losses[2] - 0.05
    free = [x.clone().requires_grad_() if x.is_floating_point() else x for x in mixed]
    found.loss(tuple(free), labels).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() and x.grad.any() for x in free if x.is_floating_point())


def test_scores_of_one_output_are_trained_by_the_usual_loss() -> None:
    assert goal_of(SCORES).loss is None
    assert goal_of(VECTORS).loss is None


def test_labels_are_compared_with_the_output_that_decides() -> None:
    labels = SCORES.argmax(axis=1)
    metric, loss = labelled([SCORES], parts_of([SCORES], ["y"], [WORDS]))
    assert (metric, loss) == ("accuracy", None)
    outputs = (labels, SHARES)
    metric, loss = labelled(outputs, parts_of(outputs, ["label", "shares"], [WORDS]))
    assert metrics.get(metric).name == "accuracy of shares"
    assert metrics.quality_of(metrics.get(metric), outputs, labels).value == 1.0
    tensors = tuple(torch.from_numpy(x) for x in outputs)
    value = float(loss(tensors, torch.from_numpy(labels)))
    assert value == pytest.approx(float(-np.log(SHARES.max(axis=1)).mean()), rel=1e-4)

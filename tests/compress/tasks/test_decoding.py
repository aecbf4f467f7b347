"""A task's decode: what it is called with, and what it may give."""

from __future__ import annotations

from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from torch import Tensor

import compress
from compress.metrics.metrics import quality_of
from compress.tasks.decoding import BATCH, decoded, task_metric
from compress.tasks.identities import metric_code
from compress.tasks.labels import RaggedLabels
from targets.errors import TaskError


def decode(outputs: Any) -> list[dict[str, Tensor]]:
    scores, corners = outputs
    return [{"boxes": c, "scores": s, "labels": torch.zeros(len(s))} for s, c in zip(scores, corners, strict=True)]


def task(**changes: Any) -> compress.Task:
    given = {"name": "x", "model": torch.nn.Identity(), "val": [1], "metric": "map50", "decode": decode, **changes}
    return compress.Task(**given)


def outputs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, 3) and boxes (n, 3, 4), two outputs of different shapes."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, 10, (count, 3, 4)).astype(np.float32)
    corners[..., 2:] += 10
    return random.random((count, 3)).astype(np.float32), corners


def test_it_is_called_with_tensors_in_batches_and_scored() -> None:
    seen: list[tuple[Any, ...]] = []

    def watched(given: Any) -> Any:
        seen.append(given)
        return decode(given)

    found = outputs(BATCH + 3)
    labels = RaggedLabels({"boxes": torch.from_numpy(x[:1]), "labels": torch.zeros(1)} for x in found[1]).numpy()
    quality = quality_of(task_metric(task(decode=watched)), found, labels)
    assert 0 < quality.low <= quality.value < 1
    assert [tuple(x.shape) for one in seen for x in one] == [(BATCH, 3), (BATCH, 3, 4), (3, 3), (3, 3, 4)]
    assert all(isinstance(x, Tensor) for one in seen for x in one)  # once, for the value and for its interval


def test_a_network_with_one_output_gives_a_tensor() -> None:
    [one] = decoded(lambda x: [{"boxes": x[0]}], np.zeros((1, 2, 4), np.float32))
    assert isinstance(one["boxes"], np.ndarray)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda _: None, "decode gave NoneType for 2 examples; it must return a list with one dict for each"),
        (lambda _: [{}], "decode gave 1 of them for 2 examples"),
        (lambda _: [1, 2], "detection 0 is int; give a dict of 'boxes', 'labels', 'scores'"),
        (lambda _: 1 / 0, r"the task's decode raised ZeroDivisionError.*test_decoding.py:\d+"),
        (
            lambda _: [{"boxes": torch.zeros(2, 4), "scores": torch.zeros(3), "labels": torch.zeros(2)}] * 2,
            r"detection 0: 'scores' are of shape \(3,\) for 2 boxes",
        ),
    ],
)
def test_what_it_gives_is_checked(given: Any, said: str) -> None:
    labels = RaggedLabels([{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}] * 2).numpy()
    with pytest.raises(TaskError, match=said) as caught:
        quality_of(task_metric(task(decode=given)), outputs(2), labels)
    assert "\n" not in str(caught.value)


def test_a_task_that_asks_for_the_one_without_the_other_is_refused() -> None:
    with pytest.raises(TaskError, match="metric 'map50' takes boxes; give a decode="):
        task_metric(task(decode=None))
    with pytest.raises(TaskError, match="decode makes boxes, which metric 'accuracy' does not take"):
        task_metric(task(metric="accuracy"))
    with pytest.raises(TaskError, match="decode is int; give a function"):
        task(decode=3)


def test_another_decode_is_another_metric() -> None:
    code = metric_code(task_metric(task()))
    assert code == metric_code(task_metric(task()))
    assert code != metric_code(task_metric(task(decode=lambda x: decode(x)[::-1])))
    assert code != metric_code(task_metric(task(metric="map50-95")))


def test_it_goes_to_another_process_without_what_was_kept() -> None:
    metric, found = task_metric(task()), outputs(400)
    labels = RaggedLabels({"boxes": torch.from_numpy(x[:1]), "labels": torch.zeros(1)} for x in found[1])
    value = metric.function(found, labels.numpy())
    sent = cloudpickle.dumps((metric, labels))
    assert len(sent) < 400_000
    again, theirs = cloudpickle.loads(sent)
    assert again.function(found, theirs.numpy()) == value
    assert isinstance(theirs, RaggedLabels)

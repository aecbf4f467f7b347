"""The digits recipe: its data are split fairly, and its baseline is worth compressing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

import recipes.digits


def test_task_builds_without_training() -> None:
    task = recipes.digits.task()
    assert task.name == "digits"
    assert [len(split) for split in (task.train, task.val, task.test)] == [4 * 898, 449, 450]
    image, label = task.train[0]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert int(label) in range(10)


def test_splits_are_disjoint_reproducible_and_hold_every_digit() -> None:
    first, second = recipes.digits.datasets(), recipes.digits.datasets()
    images = {name: [x.numpy().tobytes() for x in split.tensors[0]] for name, split in first.items()}
    assert sum(map(len, images.values())) == len(set().union(*images.values()))
    for name, split in first.items():
        assert torch.equal(split.tensors[0], second[name].tensors[0])
        counts = np.bincount(split.tensors[1].numpy(), minlength=10) / len(split)
        assert counts.min() > 0.09


def test_the_camera_shifts_dims_and_disturbs_each_image_in_its_own_way() -> None:
    dot = np.zeros((200, 1, 8, 8), np.float32)
    dot[:, :, 4, 4] = 1.0
    seen = recipes.digits.perturbed(dot, np.random.default_rng(0))
    assert (seen.shape, seen.dtype) == (dot.shape, np.float32)
    places = Counter(divmod(int(one.argmax()), 8) for one in seen[:, 0])
    assert {place for place, _ in places.most_common(9)} == {(y, x) for y in (3, 4, 5) for x in (3, 4, 5)}
    brightest = seen.max(axis=(1, 2, 3))
    assert 0.6 < brightest.mean() < 0.9
    assert np.std(seen[:, 0, 0, :]) == pytest.approx(recipes.digits.NOISE, rel=0.1)


def test_baseline_learns_and_leaves_the_random_state_alone() -> None:
    sets = recipes.digits.datasets()
    state = torch.random.get_rng_state()
    model = recipes.digits.train_baseline(sets["train"], epochs=3)
    assert torch.equal(state, torch.random.get_rng_state())
    images, labels = sets["val"].tensors
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.7

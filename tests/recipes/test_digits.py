"""The digits recipe: its data are split fairly, and its baseline is worth compressing."""

from __future__ import annotations

import numpy as np
import torch

import recipes.digits


def test_task_builds_without_training() -> None:
    task = recipes.digits.task()
    assert task.name == "digits"
    assert [len(split) for split in (task.train, task.val, task.test)] == [898, 449, 450]
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


def test_baseline_learns_and_leaves_the_random_state_alone() -> None:
    sets = recipes.digits.datasets()
    state = torch.random.get_rng_state()
    model = recipes.digits.train_baseline(sets["train"], epochs=6)
    assert torch.equal(state, torch.random.get_rng_state())
    images, labels = sets["val"].tensors
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.93

"""The detection recipe: scenes that share no digit, a detector that learns, and a search of it in small."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

import compress
import recipes.detection as recipe
from compress.tasks.datasets import read
from compress.tasks.decoding import task_metric
from compress.tasks.labels import RaggedLabels
from targets.runtimes.fake.fake_target import FakeTarget

FEW = {"train": 160, "val": 40, "test": 40}


@pytest.fixture(scope="module")
def sets() -> dict[str, list[recipe.Scene]]:
    return recipe.datasets(FEW)


def test_scenes_hold_what_their_labels_say(sets: dict[str, list[recipe.Scene]]) -> None:
    assert {name: len(scenes) for name, scenes in sets.items()} == FEW
    for image, label in sets["train"]:
        assert image.shape == (1, 64, 64)
        assert image.dtype == torch.float32
        boxes, kinds = label["boxes"], label["labels"]
        assert 1 <= len(boxes) == len(kinds) <= 4
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= 64).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert sides.min() >= 10
        assert sides.max() <= 32
        inside = image[0, int(boxes[0, 1]) : int(boxes[0, 3]), int(boxes[0, 0]) : int(boxes[0, 2])]
        assert inside.max() > 0.5


def test_scenes_are_the_same_each_time_and_others_in_each_split(sets: dict[str, list[recipe.Scene]]) -> None:
    again = recipe.datasets(FEW)
    for name, scenes in sets.items():
        assert torch.equal(scenes[3][0], again[name][3][0])
    images = {image.numpy().tobytes() for scenes in sets.values() for image, _ in scenes}
    assert len(images) == sum(FEW.values())


def test_decode_gives_back_what_was_put_in() -> None:
    """Outputs that say one digit of each head for certain."""
    wanted = [(8.0, 8.0, 20.0, 22.0, 3), (30.0, 28.0, 58.0, 56.0, 7)]
    outputs = []
    for stride, (left, top, right, bottom, kind) in zip(recipe.STRIDES, wanted, strict=True):
        cells = recipe.SIZE // stride
        scores, distances = torch.full((1, 10, cells, cells), -9.0), torch.zeros(1, 4, cells, cells)
        across, down = int((left + right) / 2 // stride), int((top + bottom) / 2 // stride)
        x, y = stride * (across + 0.5), stride * (down + 0.5)
        scores[0, kind, down, across] = 9.0
        reach = torch.tensor([x - left, y - top, right - x, bottom - y]) / stride
        distances[0, :, down, across] = reach.expm1().log()  # the inverse of softplus
        outputs += [scores, distances]
    [found] = recipe.decode(tuple(outputs))
    assert sorted(found["labels"].tolist()) == [3, 7]
    for box, kind in zip(found["boxes"], found["labels"], strict=True):
        assert torch.allclose(box, torch.tensor(next(w[:4] for w in wanted if w[4] == kind)), atol=1e-3)


def test_what_the_loss_asks_for_is_what_decode_finds(sets: dict[str, list[recipe.Scene]]) -> None:
    """Outputs themselves are fitted to a few scenes, without a network."""
    labels = tuple(label for _, label in sets["train"][:6])
    shapes = [(6, channels, 64 // stride, 64 // stride) for stride in recipe.STRIDES for channels in (10, 4)]
    outputs = tuple(torch.full(shape, -2.0 if shape[1] == 10 else 1.0, requires_grad=True) for shape in shapes)
    optimizer = torch.optim.Adam(outputs, lr=0.2)
    for _ in range(120):
        optimizer.zero_grad()
        torch.autograd.backward(recipe.loss(outputs, labels))
        optimizer.step()
    assert recipe.loss(outputs, labels) < 0.1
    found = tuple(x.detach().numpy() for x in outputs)
    assert task_metric(recipe.task()).function(found, RaggedLabels(labels).numpy()) > 0.95


def test_a_better_box_covers_others_of_its_class_only() -> None:
    scores = torch.full((1, 10, 16, 16), -9.0)
    scores[0, 2, 5, 5], scores[0, 2, 5, 6], scores[0, 4, 5, 5] = 3.0, 2.0, 1.0
    rest = torch.full((1, 10, 8, 8), -9.0), torch.zeros(1, 4, 8, 8)
    [found] = recipe.decode((scores, torch.full((1, 4, 16, 16), 3.0), *rest))
    assert found["labels"].tolist() == [2, 4]


def test_the_detector_can_be_stored_and_leaves_the_random_state_alone(sets: dict[str, list[recipe.Scene]]) -> None:
    state = torch.random.get_rng_state()
    model = recipe.train_baseline(sets["train"][:64], epochs=1)
    assert torch.equal(state, torch.random.get_rng_state())
    image = sets["val"][0][0][None]
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert all(torch.equal(a, b) for a, b in zip(model(image), again(image), strict=True))
    assert [tuple(x.shape) for x in model(image)] == [(1, 10, 16, 16), (1, 4, 16, 16), (1, 10, 8, 8), (1, 4, 8, 8)]


def test_it_is_searched_from_end_to_end(sets: dict[str, list[recipe.Scene]], tmp_path: Path) -> None:
    """A few steps of training on a few scenes: what is found is poor, and all of it is there."""
    task = recipe.task()
    small = compress.Task(
        name="detection", model=lambda: recipe.train_baseline(sets["train"][:96], epochs=2), loss=task.loss,
        decode=task.decode, metric=task.metric, **sets,
    )  # fmt: skip
    space = compress.SearchSpace(epochs=1, l1=0.0, batch_size=32, precision=compress.Choice("fp32", "int8"))
    compress.search(small, FakeTarget(), space=space, trials=1, constraints=["quality_drop<=1"], out=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["trials"]["finished"] == 1
    assert report["satisfied"]
    [pick] = [picks["fastest"] for picks in report["picks"].values()]
    measured = {one["id"]: next(iter(one["measured"].values())) for one in report["candidates"]}
    assert measured[pick["id"]]["quality"]["test"]["metric"] == "map50"


@pytest.mark.slow
def test_the_baseline_is_worth_compressing() -> None:
    sets = recipe.datasets()
    model, split = recipe.train_baseline(sets["train"]), read(sets["val"], "val")
    with torch.no_grad():
        outputs = tuple(x.numpy() for x in model(split.inputs[0]))
    assert task_metric(recipe.task()).function(outputs, split.labels.numpy()) > 0.8

"""A search of a detector: several outputs, boxes as labels, a loss or a training loop of the task's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compress
from compress.results import Result
from targets.errors import TaskError
from targets.runtimes.fake.fake_target import FakeTarget

SIZE, STRIDE = 16, 4
CELLS = torch.stack(
    torch.meshgrid(*[torch.arange(STRIDE / 2, SIZE, STRIDE)] * 2, indexing="ij")[::-1], -1
)  # (4, 4, 2): across, down


class Finder(nn.Module):
    """How likely a spot is in each cell, and half its width: two outputs of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 16, 4, stride=4), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.scores, self.reach = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        return {"scores": self.scores(x), "reach": self.reach(x)[:, 0]}


def images(count: int, seed: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """One or two spots in cells of their own: bright ones are of class 1, dim ones of class 0."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        image, boxes, labels = 0.1 * torch.randn(1, SIZE, SIZE, generator=generator), [], []
        for cell in torch.randperm(16, generator=generator)[: int(torch.randint(1, 3, (), generator=generator))]:
            top, left = STRIDE * int(cell // 4), STRIDE * int(cell % 4)
            kind = int(torch.randint(0, 2, (), generator=generator))
            image[0, top : top + STRIDE, left : left + STRIDE] += 0.8 + kind
            boxes.append([left, top, left + STRIDE, top + STRIDE])
            labels.append(kind)
        found.append((image, {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)}))
    return found


def loss(outputs: dict[str, Tensor], labels: tuple[dict[str, Tensor], ...]) -> Tensor:
    assert isinstance(labels, tuple)
    wanted = torch.zeros_like(outputs["scores"])
    for i, one in enumerate(labels):
        for (left, top, _, _), kind in zip(one["boxes"].tolist(), one["labels"].tolist(), strict=True):
            wanted[i, kind, int(top) // STRIDE, int(left) // STRIDE] = 1.0
    there = wanted.amax(1) > 0
    return F.binary_cross_entropy_with_logits(outputs["scores"], wanted) + F.mse_loss(
        outputs["reach"][there], torch.full_like(outputs["reach"][there], STRIDE / 2)
    )


def decode(outputs: tuple[Tensor, Tensor]) -> list[dict[str, Tensor]]:
    scores, reach = outputs
    found = []
    for likely, half in zip(scores.sigmoid().flatten(1 + 1), reach.flatten(1), strict=True):
        centres = CELLS.reshape(-1, 2)
        boxes = torch.cat([centres - half[:, None], centres + half[:, None]], 1)
        best, kinds = likely.max(0)
        found.append({"boxes": boxes, "scores": best, "labels": kinds})
    return found


def trained() -> nn.Module:
    torch.manual_seed(0)
    model, data = Finder().train(), images(150, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        for start in range(0, 150, 50):
            inputs, labels = zip(*data[start : start + 50], strict=True)
            optimizer.zero_grad()
            torch.autograd.backward(loss(model(torch.stack(inputs)), labels))
            optimizer.step()
    return model.eval()


SPACE = compress.SearchSpace(epochs=2, l1=0.0, dropout=0.0, label_smoothing=0.0, patience=1)


@pytest.fixture
def search(quick: None, tmp_path: Path) -> Callable[..., Result]:  # noqa: ARG001
    def run(**changes: Any) -> Result:
        task = {
            "name": "spots", "model": trained, "train": images(120, 1), "val": images(60, 2), "test": images(60, 3),
            "metric": "map50", "loss": loss, "decode": decode, **changes,
        }  # fmt: skip
        return compress.search(
            compress.Task(**task), FakeTarget(), space=SPACE, trials=2, constraints=["quality_drop<=0.5"],
            out=tmp_path / "run",
        )  # fmt: skip

    return run


def test_a_detector_is_searched_with_boxes_as_labels(search: Callable[..., Result], tmp_path: Path) -> None:
    run = search()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    [target] = report["targets"]
    qualities = {one["id"]: one["measured"][target]["quality"] for one in report["candidates"]}
    baseline = qualities[report["baseline"]]["val"]
    assert baseline["metric"] == "map50"
    assert baseline["value"] > 0.6  # about 0.99
    assert (baseline["n"], baseline["low"] <= baseline["value"] <= baseline["high"]) == (60, True)
    assert report["trials"]["finished"] == 2
    assert {one["config"]["precision"]["scheme"] for one in report["candidates"]} >= {"fp32", "int8"}
    pick = run.pick("fastest")
    assert qualities[pick.id]["test"]["n"] == 60
    before = (tmp_path / "run" / "record.jsonl").read_text().count('"stage":"finetune","cached":false')
    search()  # the same task: nothing is trained again
    assert (tmp_path / "run" / "record.jsonl").read_text().count('"stage":"finetune","cached":false') == before


@pytest.mark.slow
def test_a_loop_of_the_tasks_own_trains_on_its_own_data(search: Callable[..., Result], tmp_path: Path) -> None:
    seen = []

    def finetune(module: nn.Module, train: Any, settings: Any) -> None:
        seen.append((len(train), settings.epochs))
        optimizer = torch.optim.AdamW(module.parameters(), lr=settings.lr)
        module.train()
        inputs, labels = zip(*train[:40], strict=True)
        torch.autograd.backward(loss(module(torch.stack(inputs)), labels))
        optimizer.step()

    search(loss=None, finetune=finetune)
    assert seen
    assert seen[0] == (120, 2)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["trials"]["finished"] == 2
    assert not report["failures"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decode": lambda outputs: decode(outputs)[1:]}, "decode gave 59 of them for 60 examples"),
        (
            {"decode": lambda outputs: [one | {"boxes": one["boxes"] + 500} for one in decode(outputs)]},
            "decode's example.* boxes lie outside of the images, which is 16 wide and 16 high",
        ),
        ({"loss": None}, "metric 'map50' has no usual loss to train with; give the task a loss="),
    ],
)
def test_what_cannot_be_searched_is_said(search: Callable[..., Result], changes: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said) as caught:
        search(**changes)
    assert "\n" not in str(caught.value)

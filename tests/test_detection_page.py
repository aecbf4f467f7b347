"""The task file in docs/detection.md: it is searched as it stands there, with hand-written stand-ins for ultralytics.

They take and give what version 8.4 of that library does, as far as the page uses it; the library itself is under the
AGPL and not installed with the tests.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compress
from compress.tasks.loading import load_task
from targets.runtimes.fake.fake_target import FakeTarget

PAGE = Path(__file__).parent.parent / "docs" / "detection.md"
PIXELS = 32


class Head(nn.Module):
    """Boxes and scores of each place, joined where ``export`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.export = False
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 1, 1)
        nn.init.constant_(self.boxes.bias, 8.0)

    def forward(self, x: Tensor) -> Any:
        boxes, scores = self.boxes(x).flatten(2), self.scores(x).sigmoid().flatten(2)
        return torch.cat([boxes, scores], 1) if self.export else {"boxes": boxes, "scores": scores}


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), Head())

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class Images:
    """Grey images with a bright square, as the library's data sets give them: boxes as shares of the image."""

    def __init__(self, img_path: str, imgsz: int, augment: bool, data: dict[str, Any], task: str) -> None:
        assert (img_path, imgsz, augment, task) == (img_path, PIXELS, False, "detect")
        assert img_path in data.values()
        self.seed = len(img_path)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, Any]:
        image = torch.full((3, PIXELS, PIXELS), 100 + i + self.seed, dtype=torch.uint8)
        count = i % 3
        return {"img": image, "cls": torch.zeros(count, 1), "bboxes": torch.tensor([[0.5, 0.5, 0.25, 0.25]] * count)
                .reshape(-1, 4)}  # fmt: skip


class Trainer:
    trained = 0

    def __init__(self, overrides: dict[str, Any]) -> None:
        assert {"model", "data", "epochs", "batch", "lr0", "imgsz"} <= set(overrides)
        self.model: Any = overrides["model"]
        self.ema: Any = None

    def train(self) -> None:
        found = self.model(torch.rand(2, 3, PIXELS, PIXELS))
        assert set(found) == {"boxes", "scores"}  # as its loss takes them
        torch.autograd.backward(found["scores"].sum() * 1e-3)
        torch.optim.SGD(self.model.parameters(), 1e-3).step()
        self.ema = SimpleNamespace(ema=copy.deepcopy(self.model))
        Trainer.trained += 1


def suppressed(outputs: Tensor, conf_thres: float, iou_thres: float) -> list[Tensor]:
    """(k, 6): corners, score and class of the best places of each image."""
    assert 0 < conf_thres < iou_thres < 1
    assert outputs.shape[1] == 5
    best = outputs[:, 4].topk(3).indices
    rows = outputs.gather(2, best[:, None].expand(-1, 5, -1)).transpose(1, 2)
    centre, size = rows[..., :2] + 8, rows[..., 2:4].abs() + 1
    return list(torch.cat([centre - size / 2, centre + size / 2, rows[..., 4:], 0 * rows[..., 4:]], 2))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        "ultralytics": {"YOLO": lambda weights: SimpleNamespace(model=Detector())},  # noqa: ARG005
        "ultralytics.data.dataset": {"YOLODataset": Images},
        "ultralytics.data.utils": {"check_det_dataset": lambda path: {"train": "t", "val": "va", "path": path}},
        "ultralytics.models.yolo.detect": {"DetectionTrainer": Trainer},
        "ultralytics.utils.nms": {"non_max_suppression": suppressed},
    }
    for name in ("ultralytics.data", "ultralytics.models", "ultralytics.models.yolo", "ultralytics.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, found in parts.items():
        module = ModuleType(name)
        module.__dict__.update(found)
        monkeypatch.setitem(sys.modules, name, module)


def test_the_task_file_is_searched(library: None, tmp_path: Path) -> None:  # noqa: ARG001
    [text] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    small = text.replace("320", str(PIXELS)).replace("compress.Int(5, 30)", "1")
    assert small.count(str(PIXELS)) >= 2
    (tmp_path / "yolo.py").write_text(small)
    loaded = load_task(str(tmp_path / "yolo.py"), "mydata.yaml")
    image, label = loaded.task.train[2]
    assert (image.shape, float(image.max()) <= 1.0) == ((3, PIXELS, PIXELS), True)
    assert label["boxes"].tolist() == [[12.0, 12.0, 20.0, 20.0]] * 2
    compress.search(loaded.task, FakeTarget(), space=loaded.space, constraints=["quality_drop<=1"], trials=1,
                    out=tmp_path / "run")  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["trials"]["finished"] == 1
    assert not report["failures"]
    assert Trainer.trained >= 1
    assert {one["config"]["precision"]["scheme"] for one in report["candidates"]} >= {"fp32", "int8"}

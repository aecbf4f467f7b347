"""Digits found in scenes of 64 x 64 pixels by a small anchor-free detector; made on the spot, nothing to fetch.

Each scene holds one to four handwritten digits of scikit-learn's, 10 to 32 pixels wide, on a noisy ground. The digits
of train, val and test are different ones, so that no scene of one holds a digit of another. The detector is in the
manner of YOLO: a convolutional trunk and two heads, for small and for large digits, each of which says for every cell
of its grid how likely each digit is there, and how far the sides of its box are. ``decode`` makes boxes of that.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import compress

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

SIZE = 64
"""Pixels of a scene, wide and high."""
STRIDES = (4, 8)
"""Pixels between the cells of each head's grid."""
LARGE = 18.0
"""Pixels of a box's longer side from which on the second head finds it."""
CLASSES = 10
SCENES = {"train": 1500, "val": 400, "test": 1000}
_NEAR = 1.5
"""Cells within so many strides of a box's centre learn to find it."""
_LIKELY, _OVERLAP, _MOST = 0.05, 0.6, 60
"""Boxes are left out below this score, and beside a better one of their class that they overlap; at most so many."""

SPACE = compress.SearchSpace(
    importance="bn",
    batch_size=32,
    lr=compress.Float(1.5e-3, 5e-3, log=True),
    l1=0.0,
    # The task brings its own loss, and the network has no layers for these.
    dropout=0.0,
    label_smoothing=0.0,
    temperature=1.0,
    distill_weight=compress.Float(0.0, 0.5),
)
CONSTRAINTS = ["quality_drop<=0.02"]


def task() -> compress.Task:
    """The recipe's task: 1500 scenes for training, 400 for val, 1000 for test."""
    sets = datasets()

    def baseline(trained: bool = True) -> nn.Module:
        return train_baseline(sets["train"]) if trained else network()

    return compress.Task(
        name="detection",
        model=baseline,
        train=sets["train"],
        val=sets["val"],
        test=sets["test"],
        metric="map50",
        loss=loss,
        decode=decode,
    )


Scene = tuple["Tensor", dict[str, "Tensor"]]
"""(1, 64, 64) float32 pixels; ``boxes`` (k, 4) as left, top, right, bottom in pixels, and ``labels`` (k,)."""


def datasets(scenes: dict[str, int] | None = None) -> dict[str, list[Scene]]:
    """Scenes of each split, seeded; the digits are split 50/25/25, each digit in the same proportion."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found: Any = load_digits()
    digits, kinds = found.images.astype("float32") / 16, found.target
    train, rest = train_test_split(np.arange(len(kinds)), test_size=0.5, random_state=0, stratify=kinds)
    val, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=kinds[rest])
    chosen = {"train": train, "val": val, "test": test}
    return {
        name: _scenes(digits[chosen[name]], kinds[chosen[name]], count, seed)
        for seed, (name, count) in enumerate((scenes or SCENES).items())
    }


def _scenes(digits: np.ndarray, kinds: np.ndarray, count: int, seed: int) -> list[Scene]:
    import numpy as np
    import torch
    from torch.nn.functional import interpolate

    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        image = torch.from_numpy(random.normal(random.uniform(0.1, 0.3), 0.12, (SIZE, SIZE)).astype("float32"))
        boxes: list[tuple[int, int, int, int]] = []
        labels: list[int] = []
        for _ in range(int(random.integers(1, 5))):
            width, height = (int(side) for side in random.integers(12, 29) * random.uniform(0.85, 1.15, 2))
            left, top = int(random.integers(0, SIZE - width)), int(random.integers(0, SIZE - height))
            if any(_shared((left, top, left + width, top + height), other) > 0.1 for other in boxes):
                continue
            which = int(random.integers(len(digits)))
            drawn = interpolate(torch.from_numpy(digits[which])[None, None], size=(height, width), mode="bilinear")
            place = image[top : top + height, left : left + width]
            place.copy_(torch.maximum(place, drawn[0, 0] * float(random.uniform(0.6, 1.0))))
            boxes.append((left, top, left + width, top + height))
            labels.append(int(kinds[which]))
        wanted = {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}
        found.append((image[None], wanted))
    return found


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """What two boxes share, as a part of the smaller one."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(0, wide) * max(0, high) / min(areas)


def network() -> nn.Module:
    """The detector: (batch, 1, 64, 64) -> scores and distances of the first head, then of the second.

    Scores are logits (batch, 10, rows, columns), distances raw numbers (batch, 4, rows, columns) whose softplus is in
    strides; grids are 16 x 16 and 8 x 8.
    """
    detector: nn.Module = getattr(sys.modules[__name__], "Detector")()  # noqa: B009
    return detector


def __getattr__(name: str) -> Any:
    """``Head`` and ``Detector``: made when first asked for, since importing a recipe must not load torch."""
    if name not in ("Head", "Detector"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torch import nn

    def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    class Head(nn.Module):
        """What is where, for each cell of a grid."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.body = block(channels, 48)
            self.scores, self.distances = nn.Conv2d(48, CLASSES, 1), nn.Conv2d(48, 4, 1)
            nn.init.constant_(self.scores.bias, -4.6)  # type: ignore[arg-type]  # nothing is there, at first

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            """(batch, channels, h, w) -> scores (batch, 10, h, w) and distances (batch, 4, h, w)."""
            x = self.body(x)
            return self.scores(x), self.distances(x)

    class Detector(nn.Module):
        """A trunk, and a head on each of its last two stages."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = block(1, 32, 2)
            self.fine = nn.Sequential(block(32, 48, 2), block(48, 48))
            self.coarse = nn.Sequential(block(48, 96, 2), block(96, 96))
            self.heads = nn.ModuleList([Head(48), Head(96)])

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            """(batch, 1, 64, 64) -> what the first head says, then what the second does."""
            fine = self.fine(self.stem(x))
            near, far = self.heads[0](fine), self.heads[1](self.coarse(fine))
            return (*near, *far)

    for made in (Head, Detector):  # where pickle looks for them
        made.__qualname__ = made.__name__
        globals()[made.__name__] = made
    return globals()[name]


def loss(outputs: tuple[Tensor, ...], labels: tuple[dict[str, Tensor], ...]) -> Tensor:
    """Focal loss of the scores (Lin et al. 2017) and generalized IoU of the boxes (Rezatofighi et al. 2019)."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    total, count = torch.zeros(()), 0
    for head, stride in enumerate(STRIDES):
        scores, distances = (x.float().flatten(2).transpose(1, 2) for x in outputs[2 * head : 2 * head + 2])
        cells = _cells(stride, scores.device)
        wanted, boxes, there = _assigned(cells, labels, head)
        chance = torch.sigmoid(scores)
        focus = (wanted - chance).square()
        total = total + (focus * binary_cross_entropy_with_logits(scores, wanted, reduction="none")).sum()
        if there.any():
            found = _boxes(cells.expand(len(scores), -1, -1)[there], distances[there], stride)
            total = total + (1 - _generalized_iou(found, boxes[there])).sum()
        count += int(there.sum())
    return total / max(1, count)


def decode(outputs: tuple[Tensor, ...]) -> list[dict[str, Tensor]]:
    """The boxes of each scene in a batch of outputs: likely cells, without those that a better one overlaps."""
    import torch

    scores, boxes = [], []
    for head, stride in enumerate(STRIDES):
        logits, distances = (x.float().flatten(2).transpose(1, 2) for x in outputs[2 * head : 2 * head + 2])
        scores.append(torch.sigmoid(logits))
        boxes.append(_boxes(_cells(stride, logits.device), distances, stride))
    every, corners = torch.cat(scores, 1), torch.cat(boxes, 1)
    best, place = every.flatten(1).topk(_MOST, dim=1)
    kinds, cells = place % CLASSES, place // CLASSES
    chosen = corners.gather(1, cells[..., None].expand(-1, -1, 4))
    covered = (_iou(chosen[:, :, None], chosen[:, None]) > _OVERLAP) & (kinds[:, :, None] == kinds[:, None])
    kept = ~covered.triu(1).any(1) & (best > _LIKELY)
    return [
        {"boxes": chosen[i][kept[i]], "scores": best[i][kept[i]], "labels": kinds[i][kept[i]]} for i in range(len(best))
    ]


def _cells(stride: int, device: Any) -> Tensor:
    """(cells, 2): the centre of each cell in pixels, across and down."""
    import torch

    centres = torch.arange(stride / 2, SIZE, stride, device=device)
    down, across = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([across, down], -1).reshape(-1, 2)


def _boxes(cells: Tensor, distances: Tensor, stride: int) -> Tensor:
    """(..., 4) left, top, right, bottom from a cell's centre and the raw distances to the four sides."""
    import torch
    from torch.nn.functional import softplus

    reach = softplus(distances) * stride
    return torch.cat([cells - reach[..., :2], cells + reach[..., 2:]], -1)


def _assigned(cells: Tensor, labels: Any, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, cells, ...): which digits a head's cells should say, the box of each, and where there is one."""
    import torch

    wanted = torch.zeros(len(labels), len(cells), CLASSES, device=cells.device)
    boxes = torch.zeros(len(labels), len(cells), 4, device=cells.device)
    there = torch.zeros(len(labels), len(cells), dtype=torch.bool, device=cells.device)
    reach = _NEAR * STRIDES[head]
    for i, label in enumerate(labels):
        for box, kind in zip(label["boxes"], label["labels"], strict=True):
            size = box[2:] - box[:2]
            if (float(size.max()) >= LARGE) != (head == 1):
                continue
            near = ((cells - (box[:2] + box[2:]) / 2).abs() < torch.minimum(size / 2, size.new_full((), reach))).all(1)
            wanted[i, near, int(kind)], boxes[i, near], there[i, near] = 1.0, box, True
    return wanted, boxes, there


def _iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4)."""
    import torch

    wide_high = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp_min(0)
    shared = wide_high.prod(-1)
    areas = ((box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1) for box in (one, other))
    return shared / (sum(areas) - shared).clamp_min(1e-6)


def _generalized_iou(one: Tensor, other: Tensor) -> Tensor:
    """IoU, less the share of the smallest box around both that neither fills."""
    import torch

    around = (torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])).prod(-1)
    overlap = _iou(one, other)
    areas = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1)
    union = areas / (1 + overlap)  # of IoU = shared / union, and union = areas - shared
    return overlap - (around - union) / around.clamp_min(1e-6)


def train_baseline(train: list[Scene], epochs: int = 8) -> nn.Module:
    """Train the detector from scratch: AdamW, one cycle up to 4e-3, batches of 32; a minute on one core."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-3)
        steps = epochs * (len(train) // 32)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=max(1, steps))
        for _ in range(epochs):
            order = torch.randperm(len(train)).tolist()
            for start in range(0, len(order) - 31, 32):
                images, labels = zip(*(train[i] for i in order[start : start + 32]), strict=True)
                optimizer.zero_grad()
                torch.autograd.backward(loss(model(torch.stack(images).to(memory_format=torch.channels_last)), labels))
                optimizer.step()
                schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[no-any-return]

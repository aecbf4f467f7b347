"""Handwritten digits as a bad camera sees them, with a small CNN; all comes with scikit-learn, nothing to fetch.

The quickest way to see a whole search: the baseline trains in seconds, on the spot. Its widths are multiples of
32, so that both pruning (in blocks of 16 channels on most CPUs) and integer kernels have something to win.

scikit-learn's images of 8 x 8 pixels are so clean that the smallest network reads them as well as the largest. So here
they are shifted by up to a pixel, dimmed and noisy (seeded): what a network loses by being made smaller can be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import compress

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import TensorDataset

VERSIONS = 4
"""How often each train image is in the train split, shifted, dimmed and disturbed in another way each time."""
SHIFT = 1
"""Pixels, up to so many in both directions."""
DIMMEST = 0.5
NOISE = 0.15
"""Standard deviation, of the range from black to white."""

SPACE = compress.SearchSpace(
    # Two points better than the norm of the weights at a quarter of the channels (benchmarks/README.md).
    importance="bn",
    # An epoch is 57 steps, a fraction of a second.
    epochs=compress.Int(3, 16),
    lr=compress.Float(2e-3, 2e-2, log=True),
    l1=0.0,
    dropout=compress.Float(0.0, 0.2),
)


def task() -> compress.Task:
    """The recipe's task: 1797 images, half for training (four times), a quarter each for val and test."""
    sets = datasets()

    def baseline(trained: bool = True) -> nn.Module:
        return train_baseline(sets["train"]) if trained else network()

    return compress.Task(
        name="digits",
        model=baseline,
        train=sets["train"],
        val=sets["val"],
        test=sets["test"],
    )


def datasets() -> dict[str, TensorDataset]:
    """(1, 8, 8) float32 images about [0, 1] and digits, split 50/25/25, seeded, each digit in the same proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found: Any = load_digits()
    images = found.images[:, None].astype("float32") / 16
    train, rest, train_labels, rest_labels = train_test_split(
        images, found.target, test_size=0.5, random_state=0, stratify=found.target
    )
    val, test, val_labels, test_labels = train_test_split(
        rest, rest_labels, test_size=0.5, random_state=0, stratify=rest_labels
    )
    rng = np.random.default_rng(0)
    versions = np.concatenate([perturbed(train, rng) for _ in range(VERSIONS)])
    return {
        "train": _tensors(versions, np.tile(train_labels, VERSIONS)),
        "val": _tensors(perturbed(val, rng), val_labels),
        "test": _tensors(perturbed(test, rng), test_labels),
    }


def perturbed(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The images (n, 1, 8, 8) as the camera sees them: each shifted, dimmed and disturbed in its own way."""
    rows, columns = rng.integers(-SHIFT, SHIFT + 1, (2, len(images)))
    room = np.pad(images, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    height, width = images.shape[2:]
    shifted = np.stack([
        one[:, SHIFT + row : SHIFT + row + height, SHIFT + column : SHIFT + column + width]
        for one, row, column in zip(room, rows, columns, strict=True)
    ])  # fmt: skip
    light = rng.uniform(DIMMEST, 1.0, (len(images), 1, 1, 1))
    disturbed: np.ndarray = light * shifted + rng.normal(0.0, NOISE, images.shape)
    return disturbed.astype(np.float32)


def network() -> nn.Sequential:
    """Three 3x3 convolutions of 32, 64 and 64 channels: (batch, 1, 8, 8) -> (batch, 10) logits."""
    from torch import nn

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 32, 1), *block(32, 64, 1), *block(64, 64, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10))


def train_baseline(train: TensorDataset, epochs: int = 20) -> nn.Module:
    """Train the network from scratch: AdamW, cosine from 5e-3, batches of 64; seconds on one core."""
    import torch
    from torch.nn.functional import cross_entropy

    images, labels = train.tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for start in range(0, len(order) - 1, 64):  # a last batch of one is left out: BatchNorm needs two
                chosen = order[start : start + 64]
                optimizer.zero_grad()
                torch.autograd.backward(cross_entropy(model(images[chosen]), labels[chosen]))
                optimizer.step()
            schedule.step()
    return model.eval()


def _tensors(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    import torch
    from torch.utils.data import TensorDataset

    return TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))

"""A MobileNetV2-like network on 10,000 images of CIFAR-10: epochs are dear, a quarter to half a minute of a core each.

paretopress search benchmarks/dear/mobilenet_cifar.py --data cifar10.zip --time 6min --constraint "quality_drop<=0.02"
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import compress
from recipes import image_classification

TRAIN, VAL = 10_000, 2_000
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 2, 1))
"""(expansion, channels, repeats, stride), after a stem of 32 channels; 192 channels before the classifier."""
CONSTRAINTS = ["quality_drop<=0.02"]


class Inverted(nn.Module):
    """An inverted residual block (Sandler et al. 2018): expand, depthwise, project; with a shortcut where it fits."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        expanding = (
            [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()] if expansion > 1 else []
        )
        self.branch = nn.Sequential(
            *expanding, nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner),
            nn.ReLU6(), nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, outputs, height / stride, width / stride)."""
        return x + self.branch(x) if self.shortcut else self.branch(x)


def network() -> nn.Sequential:
    """(batch, 3, 32, 32) -> (batch, 10) logits."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    channels = 32
    for expansion, outputs, repeats, stride in BLOCKS:
        for number in range(repeats):
            layers.append(Inverted(channels, outputs, stride if number == 0 else 1, expansion))
            channels = outputs
    layers += [nn.Conv2d(channels, 192, 1, bias=False), nn.BatchNorm2d(192), nn.ReLU6(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 10))


def train_baseline(train: TensorDataset, epochs: int = 10) -> nn.Module:
    """Train the network from scratch: AdamW, a warm-up and cosine, batches of 64, images mirrored at random."""
    images, labels = train.tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network().train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2)
        steps = epochs * (len(images) // 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.2)
        for _ in range(epochs):
            order = torch.randperm(len(images))[: len(images) // 64 * 64]
            for chosen in order.split(64):
                batch = images[chosen].contiguous(memory_format=torch.channels_last)
                if torch.rand(()) < 0.5:
                    batch = batch.flip(-1)
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(model(batch), labels[chosen]))
                optimizer.step()
                schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval()


def task(data: str | None = None) -> compress.Task:
    """The task; ``data``: CIFAR-10 as the recipe image-classification takes it. Raises TaskError as that does."""
    if data is None:
        raise compress.TaskError(f"mobilenet_cifar needs CIFAR-10 ({image_classification.SOURCE}); pass --data")
    images = image_classification.read_images(Path(data))
    sets = image_classification.datasets(images)
    whole = sets["train"].whole(torch.arange(TRAIN))
    train = TensorDataset(whole[0].contiguous(), whole[1])
    val = TensorDataset(*(x[:VAL] for x in sets["val"].tensors))

    def baseline(trained: bool = True) -> nn.Module:
        return train_baseline(train) if trained else network()

    return compress.Task(
        name="mobilenet-cifar", model=baseline, train=train, val=val, test=sets["test"], metric="accuracy"
    )

"""A task file that trains in a second: scikit-learn's digits and three convolutions of 16, 32 and 32 channels."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import TensorDataset

import compress

SPACE = compress.SearchSpace(epochs=compress.Int(1, 2), l1=0.0)


def datasets() -> dict[str, TensorDataset]:
    """(1, 8, 8) images in [0, 1] and digits: 900 for training, 400 for val, 497 for test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images[:, None].astype("float32") / 16)
    labels = torch.from_numpy(found.target)
    parts = {"train": slice(0, 900), "val": slice(900, 1300), "test": slice(1300, None)}
    return {name: TensorDataset(images[part], labels[part]) for name, part in parts.items()}


def network() -> nn.Sequential:
    """(batch, 1, 8, 8) -> (batch, 10) logits."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1)):
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def trained() -> nn.Module:
    """About 95 % right on val."""
    images, labels = datasets()["train"].tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(8):
            for chosen in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(model(images[chosen]), labels[chosen]))
                optimizer.step()
    return model.eval()


def task() -> compress.Task:
    """What the command line asks for."""
    return compress.Task(name="tiny", model=trained, **datasets())

"""What the tasks on spoken digits share: the data of the recipe keyword-spotting as sequences, and how a network is
trained on them. Not a task of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.utils.data import TensorDataset

import compress
from recipes import keyword_spotting

FRAMES, FEATURES, DIGITS = 49, keyword_spotting.COEFFICIENTS, 10


def make_task(
    name: str, network: Callable[[], nn.Module], data: str | None, epochs: int, lr: float, seed: int = 0
) -> compress.Task:
    """The recipe's task with (49, 10) sequences instead of images, and ``network()`` trained on them as the baseline.

    Raises TaskError as the recipe does where ``data`` is none or not the Free Spoken Digit Dataset.
    """
    recipe = keyword_spotting.task(data)
    train, val, test = (
        TensorDataset(x.tensors[0][:, 0], x.tensors[1]) for x in (recipe.train, recipe.val, recipe.test)
    )

    def baseline(trained: bool = True) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return train_network(network(), train, epochs, lr) if trained else network()

    return replace(recipe, name=name, model=baseline, train=train, val=val, test=test)


def train_network(model: nn.Module, train: TensorDataset, epochs: int, lr: float) -> nn.Module:
    """Train in place: AdamW, a warm-up to ``lr`` and cosine, batches of 64, gradients of length 1 at most."""
    inputs, labels = train.tensors
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    batches = (len(inputs) - 2) // 64 + 1  # a last batch of one is left out
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * batches, pct_start=0.15)
    for _ in range(epochs):
        order = torch.randperm(len(inputs))
        for start in range(0, len(order) - 1, 64):
            chosen = order[start : start + 64]
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen]))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()

"""What the tasks on spoken digits share: the data of the recipe keyword-spotting as sequences, how a network is trained
on them, the recurrent network and the search space. Not a task of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import compress
from recipes import keyword_spotting

FRAMES, FEATURES, DIGITS = 49, keyword_spotting.COEFFICIENTS, 10
HIDDEN = 128

SPACE = compress.SearchSpace(
    prune_ratio=compress.Float(0.2, 0.8),
    epochs=compress.Int(6, 16),
    lr=compress.Float(1e-3, 1e-2, log=True),
    weight_decay=compress.Float(1e-4, 3e-2, log=True),
    l1=0.0,
    dropout=compress.Float(0.0, 0.2),
    label_smoothing=0.0,
    distill_weight=compress.Float(0.4, 1.0),
    temperature=compress.Float(1.5, 5.0),
)


class Spotter(nn.Module):
    """A recurrent layer of a kind (``nn.GRU``, ``nn.LSTM``) over the frames; the mean of its outputs is classified."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(FEATURES, HIDDEN, batch_first=True)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(HIDDEN, DIGITS)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 49, 10) -> (batch, 10) logits."""
        return self.head(self.dropout(self.recurrent(x)[0].mean(1)))


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

"""Spoken digits with a GRU of 128 hidden units, whose size is pruned; needs --data (the recipe keyword-spotting's).

``paretopress search benchmarks/tasks/gru_keywords.py --data fsdd.zip --time 20min``
"""

from __future__ import annotations

from spoken_digits import DIGITS, FEATURES, make_task
from torch import Tensor, nn

import compress

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
    """A GRU over the frames; the mean of its outputs is classified."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, hidden, batch_first=True)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(hidden, DIGITS)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 49, 10) -> (batch, 10) logits."""
        return self.head(self.dropout(self.gru(x)[0].mean(1)))


def task(data: str | None = None) -> compress.Task:
    """The task; ``data`` is a folder or a zip of the Free Spoken Digit Dataset."""
    return make_task("gru-keywords", Spotter, data, epochs=12, lr=5e-3)

"""Spoken digits with a transformer encoder of 4 layers and 8 heads; needs --data (the recipe keyword-spotting's).

``paretopress search benchmarks/tasks/transformer_digits.py --data fsdd.zip --time 40min``

Heads, their width, feed-forward width and the width of the embedding are pruned. Two frames make a token, so that a
sequence has 24 of them and the matrix products take most of the time.
"""

from __future__ import annotations

import torch
from spoken_digits import DIGITS, FEATURES, FRAMES, make_task
from torch import Tensor, nn

import compress

WIDTH, HEADS, INNER, LAYERS = 128, 8, 512, 4
TOKENS = FRAMES // 2

SPACE = compress.SearchSpace(
    prune_ratio=compress.Float(0.1, 0.7),
    epochs=compress.Int(4, 12),
    lr=compress.Float(3e-4, 3e-3, log=True),
    weight_decay=compress.Float(1e-4, 3e-2, log=True),
    l1=0.0,
    dropout=compress.Float(0.0, 0.2),
    label_smoothing=0.0,
    distill_weight=compress.Float(0.4, 1.0),
    temperature=compress.Float(1.5, 5.0),
)


class Classifier(nn.Module):
    """Tokens of two frames with learned positions, a pre-norm encoder, and the mean of its outputs classified."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS, inner: int = INNER, layers: int = LAYERS) -> None:
        super().__init__()
        self.embed = nn.Linear(2 * FEATURES, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, TOKENS, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, inner, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, DIGITS)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 49, 10) -> (batch, 10) logits; the last frame is left out."""
        tokens = x[:, : 2 * TOKENS].reshape(-1, TOKENS, 2 * FEATURES)
        return self.head(self.norm(self.encoder(self.embed(tokens) + self.position)).mean(1))


def task(data: str | None = None) -> compress.Task:
    """The task; ``data`` is a folder or a zip of the Free Spoken Digit Dataset."""
    return make_task("transformer-digits", Classifier, data, epochs=12, lr=1e-3)

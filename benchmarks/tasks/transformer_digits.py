"""Spoken digits with a transformer encoder of 4 layers and 8 heads; needs --data (the recipe keyword-spotting's).

``paretopress search benchmarks/tasks/transformer_digits.py --data fsdd.zip --time 40min``

Heads, their width, feed-forward width and the width of the embedding are pruned. Two frames make a token, so that a
sequence has 24 of them and the matrix products take most of the time.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

import compress
import spoken_digits
from spoken_digits import DIGITS, FEATURES, FRAMES, make_task

WIDTH, HEADS, INNER, LAYERS = 128, 8, 512, 4
TOKENS = FRAMES // 2

SPACE = replace(
    spoken_digits.SPACE,
    prune_ratio=compress.Float(0.1, 0.7),
    epochs=compress.Int(4, 12),
    lr=compress.Float(3e-4, 3e-3, log=True),
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

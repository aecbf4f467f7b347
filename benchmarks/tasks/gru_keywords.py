"""Spoken digits with a GRU of 128 hidden units, whose size is pruned; needs --data (the recipe keyword-spotting's).

``paretopress search benchmarks/tasks/gru_keywords.py --data fsdd.zip --time 20min``
"""

from __future__ import annotations

from torch import nn

import compress
import spoken_digits

SPACE = spoken_digits.SPACE


def task(data: str | None = None) -> compress.Task:
    """The task; ``data`` is a folder or a zip of the Free Spoken Digit Dataset."""
    return spoken_digits.make_task("gru-keywords", lambda: spoken_digits.Spotter(nn.GRU), data, epochs=12, lr=5e-3)

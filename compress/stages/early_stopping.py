"""Early stopping: a short training first, and the rest of the epochs for the networks that earn it.

A training that has lost far more than allowed after a share of its epochs will not make up for it. Each of the two
parts has a learning-rate schedule of its own, so what is judged is a finished, if short, training, and not one in the
middle of its highest rates.
"""

from __future__ import annotations

from collections.abc import Sequence

from compress.values.configs import FinetuneSettings
from compress.values.constraints import Constraint, allowed_drops

BEST_CASE = 3.0
"""The rest of the epochs is never expected to leave less than a third of what a short training has lost."""
_LEAST = 0.01
"""A share of the baseline's quality that is forgiven where a constraint allows no loss at all."""


def short_epochs(settings: FinetuneSettings) -> int:
    """Epochs of the short training; 0 where there is none, or nothing would be left for the rest."""
    first = round(settings.short_share * settings.epochs)
    return first if 0 < first < settings.epochs else 0


def is_hopeless(
    quality: float, baseline: float, constraints: Sequence[Constraint], *, higher_is_better: bool = True
) -> bool:
    """Whether a short training has lost more than ``BEST_CASE`` times what any of ``constraints`` allows.

    ``quality``, ``baseline``: the metric on val. Without a constraint on quality nothing is hopeless.
    """
    sign = 1.0 if higher_is_better else -1.0
    lost = sign * (baseline - quality)
    allowed = allowed_drops(constraints, baseline, higher_is_better=higher_is_better)
    return any(lost > BEST_CASE * max(limit, _LEAST * abs(baseline)) for limit in allowed)

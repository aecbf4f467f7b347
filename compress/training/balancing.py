"""Classes of uneven frequency: each counts as much as every other.

Weights are n / (classes * n_c), so that they average to 1 over the examples. Either the loss is weighted by them, or
examples are drawn with replacement in proportion to them, an epoch being as long as before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from targets.errors import TrainingError


def class_weights(labels: Any) -> Tensor:
    """(classes,) weights by inverse frequency; 1 for class numbers that no example has. Raises as ``check``."""
    check_balanceable(labels)
    counts = torch.bincount(labels.long()).float()
    there = counts > 0
    weights = torch.ones_like(counts)
    weights[there] = len(labels) / (float(there.sum()) * counts[there])
    return weights


def example_weights(labels: Any) -> Tensor:
    """(n,) the weight of each example's class. Raises as ``check``."""
    return class_weights(labels)[labels.long()]


def check_balanceable(labels: Any) -> None:
    """Raise TrainingError unless there is one class number for each example."""
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point() or bool((labels < 0).any()):
        form = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TrainingError(
            f"balance: labels are {form}; it takes one class number (0, 1, 2, ...) for each example; set balance='none'"
        )

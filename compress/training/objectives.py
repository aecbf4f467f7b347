"""What training minimises: the task's own loss, or the usual one for its metric.

The usual losses are cross-entropy (classes on axis 1, or on the last axis where the labels say so), binary
cross-entropy with logits for labels of which several may hold, and squared or absolute errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.metrics.decisions import class_axis
from compress.metrics.output_kinds import OutputKind
from compress.networks.running import main_output
from targets.errors import TaskError

Loss = Callable[[Any, Any], Tensor]
_LEAST_VARIANCE = 1e-6
"""Of a teacher's output that hardly changes; its errors then count as those of one that varies by a thousandth."""
_SMALLEST = 1e-6
"""Probabilities closer to 0 or 1 than this have the logits of these."""


@dataclass(frozen=True)
class Objective:
    """A loss, and what it is (label smoothing and divergences between distributions apply to some only)."""

    loss: Loss | None
    kind: str
    """``cross_entropy``, ``bce``, ``mse``, ``l1`` or ``own``."""
    outputs: OutputKind = "logits"
    """What the network puts out; of probabilities the cross-entropies take the logits."""

    def value(self, outputs: Any, labels: Any, smoothing: float, weights: Tensor | None = None) -> Tensor:
        """The loss of a batch; ``weights`` (classes,) are those of the classes in a cross-entropy."""
        if self.loss is not None:
            return self.loss(outputs, labels)
        first = main_output(outputs).float()
        first = self._logits(first)
        kind = _likely(first, labels) if self.kind == "own" or not isinstance(labels, Tensor) else self.kind
        if kind == "unknown":
            return first.new_full((), math.nan)
        if kind == "cross_entropy":
            scores = first.movedim(class_axis(first.shape, labels.shape), 1)
            if weights is not None:
                weights = _fitted(weights, scores.shape[1])
            return F.cross_entropy(scores, labels.long(), weight=weights, label_smoothing=smoothing)
        labels = labels.float().reshape(first.shape) if labels.numel() == first.numel() else labels.float()
        try:
            np.broadcast_shapes(first.shape, labels.shape)
        except ValueError:
            raise TaskError(
                f"labels of shape {tuple(labels.shape)} do not fit outputs of shape {tuple(first.shape)} for the usual "
                "loss; give labels of that shape, or the task a loss="
            ) from None
        if kind == "bce":
            return F.binary_cross_entropy_with_logits(first, labels * (1.0 - smoothing) + 0.5 * smoothing)
        return F.mse_loss(first, labels) if kind == "mse" else F.l1_loss(first, labels)

    def divergence(self, outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...], labels: Any, t: float) -> Tensor:
        """How far ``outputs`` are from a teacher's, averaged over the outputs.

        T^2 * KL(teacher / T, student / T) where outputs are logits (Hinton et al. 2015), else the squared distance; of
        several outputs as a share of the teacher's variance, so that pixels do not drown scores.
        What a network puts out in training only, after what it always does, has no teacher.
        """
        terms = []
        for student, teacher in zip(outputs[: len(expected)], expected, strict=True):
            student, teacher = self._logits(student.float()), self._logits(teacher.float())
            if self.kind == "cross_entropy" and student.dim() > 1 and student.shape[1] > 1:
                axis = class_axis(student.shape, labels.shape) if isinstance(labels, Tensor) else 1
                log_p, q = F.log_softmax(student / t, dim=axis), F.softmax(teacher / t, dim=axis)
                # Per decision: one an example, or one a pixel.
                terms.append(F.kl_div(log_p, q, reduction="none").sum(axis).mean() * t**2)
            elif self.kind == "bce":
                q = torch.sigmoid(teacher / t)
                found, least = (F.binary_cross_entropy_with_logits(x / t, q) for x in (student, teacher))
                terms.append((found - least) * t**2)
            else:
                scale = teacher.var(correction=0).clamp_min(_LEAST_VARIANCE) if len(expected) > 1 else 1.0
                terms.append(F.mse_loss(student, teacher) / scale)
        return torch.stack(terms).mean()

    def _logits(self, outputs: Tensor) -> Tensor:
        """What a cross-entropy is to take, of outputs in float32."""
        if self.kind not in ("cross_entropy", "bce") or self.outputs == "logits":
            return outputs
        if self.outputs == "softmax":
            return outputs.clamp_min(_SMALLEST).log()
        return torch.logit(outputs, eps=_SMALLEST)


def make_objective(
    loss: Loss | None, metric_loss: str | None, metric: str, outputs: OutputKind = "logits"
) -> Objective:
    """The task's own loss, else the usual one for its metric; raises TaskError where there is neither.

    ``outputs``: what the network puts out.
    """
    if loss is not None:
        return Objective(loss, "own")
    if metric_loss is None:
        raise TaskError(f"metric {metric!r} has no usual loss to train with; give the task a loss=")
    return Objective(None, metric_loss, outputs)


def _likely(outputs: Tensor, labels: Any) -> str:
    """The usual loss for data of this form: all there is to go by where the user trains, and told us no loss."""
    if not isinstance(labels, Tensor):
        return "unknown"
    decisions = outputs.shape[:1] + outputs.shape[2:]
    if outputs.dim() > 1 and outputs.shape[1] > 1 and labels.shape == decisions and not labels.is_floating_point():
        return "cross_entropy"
    return "mse" if labels.numel() == outputs.numel() else "unknown"


def _fitted(weights: Tensor, classes: int) -> Tensor:
    """One weight for each class of the outputs; those that train lacks weigh 1."""
    missing = classes - len(weights)
    return weights if missing <= 0 else torch.cat([weights, weights.new_ones(missing)])

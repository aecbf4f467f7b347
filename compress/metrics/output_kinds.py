"""Whether a model puts out logits or probabilities already, and how metrics that take logits are scored then.

Cross-entropies and the metrics of several labels take logits. A model that ends in a sigmoid or a softmax gives
probabilities: its classes are decided the same way, but a label is a yes above 0.5, not above 0, and losses need the
logits that the probabilities are of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from compress.metrics.decisions import Arrays, class_axis
from compress.metrics.metrics import METRICS, Metric

OutputKind = Literal["logits", "softmax", "sigmoid"]
"""What outputs are: ``softmax`` are probabilities that add up to 1, ``sigmoid`` one of each label or class alone."""
_YES = 0.5
"""The probability above which a label is decided for; that of a logit above 0."""
_FEWEST = 8
"""Fewer rows than these may add up to 1 by chance."""


def output_kind(metric: Metric, outputs: Arrays, labels: Arrays, last: str = "") -> OutputKind:
    """What ``outputs`` (n, ...) of the model are, as far as the usual loss of ``metric`` takes logits; else ``logits``.

    ``labels``: (n, ...); ``last``: the operator that the model's file ends in (``Sigmoid``, ``Softmax``), if that is
    known. Numbers that only happen to lie between 0 and 1 are no probabilities: rows must add up to 1 or, where several
    labels may hold, decide better as probabilities than as logits.

    >>> shares = np.array([[0.9, 0.1], [0.2, 0.8]] * 10)
    >>> output_kind(METRICS["accuracy"], shares, np.array([0, 1] * 10))
    'softmax'
    >>> output_kind(METRICS["accuracy"], shares * 5 - 2, np.array([0, 1] * 10))
    'logits'
    """
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    if metric.loss not in ("cross_entropy", "bce") or not np.issubdtype(first.dtype, np.floating) or not first.size:
        return "logits"
    if not ((first >= 0.0) & (first <= 1.0)).all():  # which NaN is not, either
        return "logits"
    if metric.loss == "cross_entropy":
        if _adds_up(first, labels):
            return "softmax"
        return "sigmoid" if last == "Sigmoid" else "logits"
    if last in ("Sigmoid", "Softmax"):
        return "sigmoid"
    return "sigmoid" if _decides_better(metric, outputs, labels) else "logits"


def scored_as(metric: Metric, kind: OutputKind, index: int | None = None) -> Metric:
    """A metric of ours for a model that puts out ``kind``; one of the user's own is as it is.

    Probabilities of several labels decide at 0.5; all others decide as logits do. ``index``: of the output that
    decides, where the model has several.
    """
    if METRICS.get(metric.name) is not metric:
        return metric
    shifted = kind != "logits" and metric.loss == "bce"
    if index is None and not shifted:
        return metric

    def chosen(outputs: Any) -> Any:
        picked = outputs[index] if index is not None and isinstance(outputs, tuple) else outputs
        return _less(picked) if shifted else picked

    return _of(metric, chosen)


def _of(metric: Metric, chosen: Callable[[Any], Any]) -> Metric:
    """``metric`` of what is ``chosen`` of the outputs."""

    def after(function: Callable[[Any, Any], Any] | None) -> Any:
        return None if function is None else lambda outputs, labels: function(chosen(outputs), labels)

    decide: Any = after(metric.decide)
    return replace(metric, function=after(metric.function), per_example=after(metric.per_example), decide=decide)


def explained(kind: OutputKind, metric: Metric, *, trained: bool) -> str:
    """What is said of probabilities; ``trained``: whether the usual loss is made of them."""
    named = METRICS.get(metric.name) is not None and METRICS[metric.name].loss == "bce"
    decided = "a label counts as decided for above 0.5" if named else "decisions are read off them as they are"
    logits = ", and training takes the logits that they are of" if trained else ""
    return f"the model's outputs are probabilities ({kind}), where {metric.name} takes logits: {decided}{logits}"


def _adds_up(scores: np.ndarray, labels: Arrays) -> bool:
    """Whether the scores of the classes add up to 1 for each decision."""
    if scores.ndim < 2 or isinstance(labels, tuple):
        return False
    axis = class_axis(scores.shape, labels.shape)
    if scores.shape[axis] < 2 or scores.size // scores.shape[axis] < _FEWEST:
        return False
    return bool(np.allclose(scores.sum(axis=axis), 1.0, atol=1e-3))


def _decides_better(metric: Metric, outputs: Arrays, labels: Arrays) -> bool:
    """Whether the decisions at 0.5 are better than those at 0, which all are for yes."""
    other = scored_as(metric, "sigmoid")
    if other is metric:
        return False
    try:
        return other.function(outputs, labels) > metric.function(outputs, labels)
    except Exception:  # what does not fit is told where it is scored
        return False


def _less(outputs: Any) -> Any:
    if isinstance(outputs, tuple):
        return tuple(_less(output) for output in outputs)
    return outputs - np.asarray(_YES, outputs.dtype) if np.issubdtype(outputs.dtype, np.floating) else outputs

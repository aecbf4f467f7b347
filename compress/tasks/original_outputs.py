"""Quality and loss against the original's own outputs: what there is to go by where samples have no labels.

Classifiers are scored by ``agreement`` (the share of decisions that are the original's), other outputs by ``cosine``
(mean cosine similarity) or, where an output is a single number, by ``relative_error`` (mean difference in units of
the standard deviation of the original's outputs). A network that ends in probabilities has no logits to train on:
its loss is their likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.metrics.metrics import Metric, get

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST = 1e-7


@dataclass(frozen=True)
class OutputPart:
    """One output of the original that counts, without its sample axis."""

    index: int
    name: str
    kind: str
    """``scores`` of classes (on the first axis), their ``probabilities``, ``decisions`` or ``numbers``."""
    shape: tuple[int, ...]

    @property
    def decides(self) -> bool:
        """Whether the output chooses a class: it has several numbers for each decision."""
        return self.kind != "numbers"

    @property
    def size(self) -> int:
        """How many numbers the output has for one example."""
        return int(np.prod(self.shape)) if self.shape else 1


@dataclass(frozen=True)
class Goal:
    """What a task without labels is scored and trained by."""

    labels: np.ndarray
    metric: str | Metric
    loss: Callable[[Any, Any], Any] | None
    parts: tuple[OutputPart, ...]

    @property
    def decides(self) -> bool:
        """Whether all that counts are classes."""
        return all(part.decides for part in self.parts)


def goal(outputs: Sequence[np.ndarray], names: Sequence[str], inputs: Sequence[np.ndarray]) -> Goal:
    """From the original's outputs on all samples. Whole numbers count only where there is nothing else."""
    parts = parts_of(outputs, names, inputs)
    if len(outputs) == 1:
        return _of_one(outputs[0], parts[0])
    flat = [outputs[part.index].reshape(len(outputs[0]), -1).astype(np.float32) for part in parts]
    return Goal(np.concatenate(flat, axis=1), _metric_of(parts), _Likeness(parts), parts)


def parts_of(
    outputs: Sequence[np.ndarray], names: Sequence[str], inputs: Sequence[np.ndarray]
) -> tuple[OutputPart, ...]:
    """The outputs that count, each with its kind."""
    floating = [i for i, x in enumerate(outputs) if np.issubdtype(x.dtype, np.floating)]
    chosen = floating or list(range(len(outputs)))
    return tuple(OutputPart(i, names[i], _kind(outputs[i], inputs), outputs[i].shape[1:]) for i in chosen)


def labelled(
    outputs: Sequence[np.ndarray], parts: tuple[OutputPart, ...], labels: np.ndarray | None = None
) -> tuple[str | Metric, Any]:
    """(metric, loss) where whole numbers are given as labels: accuracy of the first output that decides.

    ``labels`` (n, ...) of 0 and 1, one for each number that the only output holds, are answered yes or no one by one.
    """
    if labels is not None and len(outputs) == 1 and np.isin(labels, (0, 1)).all():
        sizes = [int(np.prod(x.shape[1:])) for x in (outputs[0], labels)]
        if sizes[0] == sizes[1] and np.issubdtype(outputs[0].dtype, np.floating):
            return "multilabel_accuracy", None
    part = next((part for part in parts if part.decides), parts[0])
    several, probabilities = len(outputs) > 1, part.kind == "probabilities"
    loss = _Likelihood(part.index, probabilities) if probabilities or several else None
    if not several:
        return "accuracy", loss
    base = get("accuracy")
    name = f"accuracy of {part.name}"
    return _averaged(name, _Picked(base.per_example, part.index), "cross_entropy", share=True), loss


def _kind(output: np.ndarray, inputs: Sequence[np.ndarray]) -> str:
    if not np.issubdtype(output.dtype, np.floating):
        return "decisions"
    # What looks like one of its inputs is a reconstruction or a forecast.
    if output.ndim < 2 or output.shape[1] < 2 or any(output.shape == x.shape for x in inputs):
        return "numbers"
    sums = output.sum(axis=1)
    if (output >= 0).all() and np.allclose(sums, 1.0, atol=1e-3):
        return "probabilities"
    return "scores" if output.ndim == 2 else "numbers"


def _of_one(output: np.ndarray, part: OutputPart) -> Goal:
    if part.kind == "decisions":
        return Goal(output, "agreement", None, (part,))
    if part.decides:
        loss = _Likelihood(0, True) if part.kind == "probabilities" else None
        return Goal(output.argmax(axis=1).astype(np.int64), "agreement", loss, (part,))
    return Goal(output, _metric_of((part,)), None, (part,))


def _metric_of(parts: tuple[OutputPart, ...]) -> Metric:
    kinds = [_measure(part) for part in parts]
    name = " and ".join(dict.fromkeys(kinds))
    if name == "relative_error":
        return _averaged(name, _Mean(parts), "mse", share=False)
    # Errors among likenesses are turned round, so that more is always better.
    return _averaged(name.replace("relative_error", "1 - relative_error"), _Mean(parts), "mse", share=True)


def _measure(part: OutputPart) -> str:
    return "agreement" if part.decides else "cosine" if part.size > 1 else "relative_error"


def _averaged(name: str, per_example: Any, loss: str, *, share: bool) -> Metric:
    def function(outputs: Any, labels: Any) -> float:
        return float(np.mean(per_example(outputs, labels)))

    return Metric(name, function, share, per_example, loss, bounded=True, nan_is_wrong=False)


@dataclass(frozen=True)
class _Picked:
    """A measure of one output of several."""

    per_example: Any
    index: int

    def __call__(self, outputs: Any, labels: Any) -> np.ndarray:
        found: np.ndarray = self.per_example(outputs[self.index] if isinstance(outputs, tuple) else outputs, labels)
        return found


@dataclass(frozen=True)
class _Mean:
    """The mean over parts of how like the original's they are (of a lone number: how far from it), per example."""

    parts: tuple[OutputPart, ...]

    def __call__(self, outputs: Any, labels: np.ndarray) -> np.ndarray:
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        flat = labels.reshape(len(labels), -1)
        start, values = 0, []
        for part in self.parts:
            wanted = flat[:, start : start + part.size]
            found = several[part.index].reshape(len(flat), -1)
            start += part.size
            values.append(_likeness(part, found, wanted))
        mean: np.ndarray = np.mean(values, axis=0)
        return 1.0 - mean if [_measure(part) for part in self.parts] == ["relative_error"] else mean


def _likeness(part: OutputPart, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """In [0, 1], (n,)."""
    if part.kind == "decisions":
        return np.asarray((found == wanted).mean(axis=1))
    if part.decides:
        shape = (len(found), *part.shape)
        same = found.reshape(shape).argmax(axis=1) == wanted.reshape(shape).argmax(axis=1)
        return np.asarray(same.reshape(len(found), -1).mean(axis=1))
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    if part.size > 1:
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        products = (found * wanted).sum(axis=1)
        both_zero = ~found.any(axis=1) & ~wanted.any(axis=1)
        return np.asarray(np.clip(np.where(both_zero, 1.0, products / np.maximum(lengths, 1e-30)), 0.0, 1.0))
    return np.asarray(1.0 - np.clip(np.abs(found - wanted)[:, 0] / (wanted.std() or 1.0), 0.0, 1.0))


@dataclass(frozen=True)
class _Likelihood:
    """Cross-entropy of output ``index`` with class numbers; probabilities have no logits to take it of."""

    index: int
    probabilities: bool

    def __call__(self, outputs: Any, labels: Tensor) -> Tensor:
        from torch.nn import functional as F

        from compress.networks.running import outputs_of

        found = outputs_of(outputs)[self.index].float()
        if self.probabilities:
            return F.nll_loss(found.clamp_min(_SMALLEST).log(), labels.long())
        return F.cross_entropy(found, labels.long())


@dataclass(frozen=True)
class _Likeness:
    """Distance from the original's outputs, side by side in the labels: cross-entropy for classes, else squares."""

    parts: tuple[OutputPart, ...]

    def __call__(self, outputs: Any, labels: Tensor) -> Tensor:
        import torch
        from torch.nn import functional as F

        from compress.networks.running import outputs_of

        several, start, terms = outputs_of(outputs), 0, []
        for part in self.parts:
            wanted = labels[:, start : start + part.size].reshape(-1, *part.shape)
            start += part.size
            found = several[part.index].float()
            if part.kind == "probabilities":
                terms.append(-(wanted * found.clamp_min(_SMALLEST).log()).sum(dim=1).mean())
            elif part.kind == "scores":
                terms.append(F.cross_entropy(found, wanted.softmax(dim=1)))
            elif part.kind == "numbers":
                scale = wanted.var(unbiased=False).clamp_min(1e-12)
                terms.append(F.mse_loss(found, wanted) / scale)
        return torch.stack(terms).mean()

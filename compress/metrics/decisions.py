"""Decisions read off a model's outputs: which class, which of several labels, which token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from targets.errors import TaskError

Arrays = np.ndarray | tuple[np.ndarray, ...]
"""One array (n, ...), or one for each output of the model."""
WRONG = -1
"""The class decided on where a score is NaN: no label's."""
IGNORED = -100
"""The token label that counts nowhere, as in torch's cross-entropy: padding."""


def class_axis(outputs: Sequence[int], labels: Sequence[int]) -> int:
    """The axis of the classes, from the shapes: 1 as torch has it, unless labels fit all axes but the last one only."""
    first, last = (*outputs[:1], *outputs[2:]), tuple(outputs[:-1])
    return len(outputs) - 1 if tuple(labels) == last != first else 1


def single(arrays: Arrays) -> np.ndarray:
    """The model's only output; raises TaskError if there are several."""
    if isinstance(arrays, tuple):
        if len(arrays) != 1:
            raise TaskError(f"the model has {len(arrays)} outputs, this metric takes one; bring a Metric of your own")
        return arrays[0]
    return arrays


def classes(outputs: Arrays) -> np.ndarray:
    """Class decisions (n, ...) of scores (n, classes, ...); -1 where a score is NaN. Integers (n,) are decisions.

    Raises TaskError if there is more than one output, or no axis of classes.
    """
    outputs = single(outputs)
    if outputs.ndim == 1 and np.issubdtype(outputs.dtype, np.integer):
        return outputs
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise TaskError(
            f"outputs of shape {outputs.shape} hold no scores of two or more classes on axis 1; "
            "bring a Metric of your own, for example with a threshold"
        )
    return _largest(outputs, 1)


def class_labels(labels: Arrays, shape: tuple[int, ...], least: int = 0) -> np.ndarray:
    """Labels as integers of ``shape``, that of the decisions; a trailing axis of 1 is forgiven.

    ``least``: the smallest number that is a class. Raises TaskError for other shapes and other numbers.
    """
    if isinstance(labels, tuple):
        raise TaskError(f"labels are {len(labels)} arrays, this metric takes one; bring a Metric of your own")
    if labels.shape != shape and labels.shape == (*shape, 1):
        labels = labels[..., 0]
    if labels.shape != shape:
        raise TaskError(
            f"labels of shape {labels.shape} do not fit class decisions of shape {shape}; give class numbers"
        )
    whole: np.ndarray = labels.astype(np.int64)
    if not np.array_equal(whole, labels) or (whole < least).any():
        raise TaskError("labels are not class numbers (0, 1, 2, ...)")
    return whole


def class_decisions(outputs: Arrays, labels: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """(class decisions, class numbers), integers of one shape; raises TaskError where outputs and labels do not fit."""
    decided = classes(outputs)
    return decided, class_labels(labels, decided.shape)


def token_decisions(outputs: Arrays, labels: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """(decided tokens, token numbers), (n, tokens) both; labels of -100 stay, to be left out of any count.

    Scores are (n, classes, tokens), or (n, tokens, classes) where only that fits the labels. Raises TaskError where
    they do not fit.
    """
    scores = single(outputs)
    if scores.ndim < 3 or isinstance(labels, tuple):
        raise TaskError(f"outputs of shape {scores.shape} are no scores for each token of a sequence")
    decided = _largest(scores, class_axis(scores.shape, labels.shape))
    if labels.shape != decided.shape:
        raise TaskError(f"labels of shape {labels.shape} do not fit outputs of shape {scores.shape}")
    kept = np.where(labels == IGNORED, 0, labels)
    return decided, np.where(labels == IGNORED, IGNORED, class_labels(kept, decided.shape))


def label_decisions(outputs: Arrays, labels: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """(decided, wanted) as 0 and 1, (n, labels) both: logits above 0 are a yes, and NaN is wrong either way.

    Raises TaskError where the shapes differ, or labels are not 0 or 1.
    """
    logits = single(outputs)
    wanted = single(labels)
    logits, wanted = logits.reshape(len(logits), -1), wanted.reshape(len(wanted), -1)
    if logits.shape != wanted.shape:
        raise TaskError(
            f"labels of shape {wanted.shape} do not fit outputs of shape {logits.shape}; give 0 or 1 for each label"
        )
    if not np.isin(wanted, (0, 1)).all():
        raise TaskError("labels are not 0 or 1 for each label")
    yes = wanted.astype(np.int64)
    return np.where(np.isnan(logits), 1 - yes, (logits > 0).astype(np.int64)), yes


def _largest(scores: np.ndarray, axis: int) -> np.ndarray:
    """Where the largest score is along ``axis``; WRONG where one of them is NaN."""
    decided: np.ndarray = np.argmax(scores, axis=axis)
    return np.where(np.isnan(scores).any(axis=axis), WRONG, decided)

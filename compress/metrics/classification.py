"""What is counted of decisions: accuracy, and precision, recall and F1 over all classes and of each.

A class that is labelled but never decided on has precision 0. Averages over classes leave out those that are neither
labelled nor decided on: a slice that lacks a class is not worse for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compress.metrics.decisions import IGNORED, WRONG, Arrays, class_decisions, class_labels, classes, label_decisions
from compress.values.candidates import ClassQuality
from targets.errors import TaskError


@dataclass(frozen=True)
class Counts:
    """For each class, how many examples are decided for it rightly, decided for it at all, and labelled with it.

    Arrays of shape (classes,) each.
    """

    right: np.ndarray
    decided: np.ndarray
    labelled: np.ndarray

    @property
    def there(self) -> np.ndarray:
        """(classes,) whether a class occurs at all: some example is labelled with it or decided for it."""
        found: np.ndarray = self.decided + self.labelled > 0
        return found

    @property
    def precision(self) -> np.ndarray:
        """(classes,) the share of the decisions for a class that are right; 0 where there are none."""
        return np.asarray(self.right / np.maximum(self.decided, 1))

    @property
    def recall(self) -> np.ndarray:
        """(classes,) the share of the examples of a class that are decided for it; 0 where it has no examples."""
        return np.asarray(self.right / np.maximum(self.labelled, 1))

    @property
    def f1(self) -> np.ndarray:
        """(classes,) F1, the harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN); 0 where that is 0 / 0."""
        return np.asarray(2 * self.right / np.maximum(self.decided + self.labelled, 1))


def count_classes(decided: np.ndarray, wanted: np.ndarray) -> Counts:
    """The counts of class decisions and class numbers, integers of one shape; a negative decision is for no class."""
    decided, wanted = decided.ravel(), wanted.ravel()
    number = int(max(decided.max(initial=0), wanted.max(initial=0))) + 1
    right = np.bincount(wanted[decided == wanted], minlength=number)
    return Counts(right, np.bincount(decided[decided >= 0], minlength=number), np.bincount(wanted, minlength=number))


def count_labels(decided: np.ndarray, wanted: np.ndarray) -> Counts:
    """The counts of labels of which several may hold: ``decided`` and ``wanted`` are 0 or 1, (n, labels) both."""
    return Counts((decided * wanted).sum(0), decided.sum(0), wanted.sum(0))


def per_class(outputs: Arrays, labels: Arrays) -> dict[str, ClassQuality]:
    """Class number -> its precision, recall, F1 and counts, for the classes that occur.

    ``outputs`` and ``labels`` as a metric of classes takes them; an empty dict where examples have not one class each.
    """
    try:
        decided, wanted = class_decisions(outputs, labels)
    except TaskError:
        return {}
    if decided.ndim != 1:
        return {}
    found = count_classes(decided, wanted)
    return {
        str(c): ClassQuality(
            float(found.precision[c]), float(found.recall[c]), float(found.f1[c]),
            int(found.labelled[c]), int(found.decided[c]),
        )
        for c in np.flatnonzero(found.there)
    }  # fmt: skip


def balanced_accuracy(decided: np.ndarray, wanted: np.ndarray) -> float:
    """The mean recall over the classes that are among the labels.

    >>> balanced_accuracy(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]))
    0.5
    """
    found = count_classes(decided, wanted)
    return float(np.mean(found.recall[found.labelled > 0]))


def macro_precision(decided: np.ndarray, wanted: np.ndarray) -> float:
    """The mean precision over the classes that are labelled or decided on."""
    found = count_classes(decided, wanted)
    return float(np.mean(found.precision[found.there]))


def macro_recall(decided: np.ndarray, wanted: np.ndarray) -> float:
    """The mean recall over the classes that are labelled or decided on."""
    found = count_classes(decided, wanted)
    return float(np.mean(found.recall[found.there]))


def macro_f1(decided: np.ndarray, wanted: np.ndarray) -> float:
    """The mean F1 over the classes that are labelled or decided on.

    >>> macro_f1(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    1.0
    """
    found = count_classes(decided, wanted)
    return float(np.mean(found.f1[found.there]))


def multilabel_macro_f1(decided: np.ndarray, wanted: np.ndarray) -> float:
    """The mean F1 over the labels that hold or are decided on for some example; NaN where none is."""
    found = count_labels(decided, wanted)
    return float(np.mean(found.f1[found.there])) if found.there.any() else float("nan")


def multilabel_micro_f1(decided: np.ndarray, wanted: np.ndarray) -> float:
    """F1 of all labels of all examples taken together; NaN where none holds or is decided on."""
    found = count_labels(decided, wanted)
    both = int(found.decided.sum() + found.labelled.sum())
    return 2 * int(found.right.sum()) / both if both else float("nan")


def token_accuracy(decided: np.ndarray, wanted: np.ndarray) -> float:
    """The share of the tokens that are right, those labelled -100 left out; NaN where all are.

    >>> token_accuracy(np.array([[3, 7, 0]]), np.array([[3, 1, -100]]))
    0.5
    """
    counted = wanted != IGNORED
    return float((decided == wanted)[counted].mean()) if counted.any() else float("nan")


def right(outputs: Arrays, labels: Arrays) -> np.ndarray:
    """(n,) whether each example's class is right; the share of right ones where an example has several (pixels).

    ``outputs``: scores (n, classes, ...), or class decisions (n,); ``labels``: class numbers (n, ...). The mean is the
    accuracy. Raises TaskError where they do not fit.

    >>> right(np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]), np.array([1, 0, 0])).tolist()
    [True, True, False]
    """
    decided, wanted = class_decisions(outputs, labels)
    return _mean_over_rest(decided == wanted)


def right_in_five(outputs: Arrays, labels: Arrays) -> np.ndarray:
    """(n,) whether each example's class is among the five with the largest scores.

    ``outputs``: scores (n, classes) of more than five classes; ``labels``: class numbers (n,). Raises TaskError where
    they do not fit.
    """
    scores = outputs[0] if isinstance(outputs, tuple) and len(outputs) == 1 else outputs
    if isinstance(scores, tuple) or scores.ndim != 2 or scores.shape[1] <= 5:
        shape = "several outputs" if isinstance(scores, tuple) else f"outputs of shape {scores.shape}"
        raise TaskError(f"top5 takes scores (n, classes) of more than five classes, not {shape}; use accuracy")
    wanted = class_labels(labels, (len(scores),))
    if wanted.size and wanted.max() >= scores.shape[1]:
        raise TaskError(f"label {wanted.max()} is not among the {scores.shape[1]} classes of the model")
    own = scores[np.arange(len(scores)), wanted][:, None]
    # Ties go to the lower class, as argmax does: a constant output must not be right everywhere.
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < wanted[:, None]))
    among: np.ndarray = before.sum(axis=1) < 5
    return among & ~np.isnan(scores).any(axis=1)


def agree(outputs: Arrays, labels: Arrays) -> np.ndarray:
    """(n,) whether each decision is the baseline's; the share of equal ones where an example has several (pixels).

    ``labels``: the baseline's class numbers, or its outputs. Raises TaskError where they do not fit.
    """
    decided = classes(outputs)
    same_form = isinstance(labels, tuple) or (labels.ndim > decided.ndim and labels.shape != (*decided.shape, 1))
    wanted = classes(labels) if same_form else class_labels(labels, decided.shape)
    if wanted.shape != decided.shape:
        raise TaskError(f"labels decide on {wanted.shape}, outputs on {decided.shape}; give the baseline's own outputs")
    return _mean_over_rest((decided == wanted) & (decided != WRONG))


def labels_right(outputs: Arrays, labels: Arrays) -> np.ndarray:
    """(n,) the share of each example's labels that are decided rightly; with one label, whether that is.

    ``outputs``: logits (n, labels), above 0 a yes; ``labels``: 0 or 1, of the same shape.
    """
    decided, wanted = label_decisions(outputs, labels)
    same: np.ndarray = decided == wanted
    return same[:, 0] if same.shape[1] == 1 else np.asarray(same.mean(axis=1))


def all_labels_right(outputs: Arrays, labels: Arrays) -> np.ndarray:
    """(n,) whether all of an example's labels are decided rightly; takes what ``labels_right`` takes."""
    decided, wanted = label_decisions(outputs, labels)
    same: np.ndarray = (decided == wanted).all(axis=1)
    return same


def _mean_over_rest(values: np.ndarray) -> np.ndarray:
    """(n,) stays as it is; of (n, ...), for example one decision a pixel, each example's mean."""
    return values if values.ndim == 1 else np.asarray(values.reshape(len(values), -1).mean(axis=1))

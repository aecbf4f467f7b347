"""Metrics: what quality is measured by, each value with its interval.

A metric is a function of a model's outputs and the labels, both numpy arrays, samples first. One whose value is a
mean over examples says so with ``per_example``: right or wrong gives a proportion, with Wilson's interval and
Tango's for paired drops; any other mean, and every other metric, is bootstrapped, in pairs for drops.

A resample never holds an example that was never seen, so a bootstrap that finds no variation at all says nothing
about the next example. For a metric in [0, 1] it is then widened to what the score interval of a proportion would
be: not a single difference among n examples still leaves room for z²/(n + z²).

Rows with NaN scores are wrong decisions, never right ones (numpy's argmax takes NaN for the largest).
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np

from compress.metrics import classification, regression
from compress.metrics.average_precision import MAP50, MAP50_95, matches
from compress.metrics.decisions import Arrays, class_decisions, label_decisions, token_decisions
from compress.metrics.intervals import bootstrap, tango, wilson
from compress.values.candidates import Drop, Quality
from compress.values.error_lines import one_line
from targets.errors import MeasurementError, TaskError

RESAMPLES = 1000
"""Enough for the ends of a 95 % interval to repeat within a few percent of its width."""
_FEWEST, _VALUES = 200, 200_000_000
"""Fewer resamples, but not fewer than 200, where more values than these would have to be copied for them."""


@dataclass(frozen=True)
class Prepared:
    """A metric made ready on some examples: what is dear is done once, and any of them can be asked for."""

    value: Callable[[np.ndarray], float]
    """(m,) rows, which may repeat -> the metric on these examples; NaN where it is not defined on them."""
    numbers: int
    """How many numbers are looked at for one value."""


@dataclass(frozen=True)
class Metric:
    """A named function of outputs and labels; the first three fields are all that a metric of one's own needs."""

    name: str
    function: Callable[[Any, Any], float]
    """(outputs, labels) -> one number; outputs (n, ...), or a tuple of such for a model with several outputs."""
    higher_is_better: bool = True
    per_example: Callable[[Any, Any], np.ndarray] | None = None
    """(outputs, labels) -> (n,) values whose mean is the metric; bool makes it a proportion."""
    loss: str | None = None
    """The usual loss to train for it: ``cross_entropy``, ``bce``, ``mse`` or ``l1``."""
    from_decisions: Callable[[np.ndarray, np.ndarray], float] | None = None
    """(class decisions, class numbers), of one shape -> the metric: cheaper to resample than scores are."""
    bounded: bool = False
    """Its values are within [0, 1]."""
    nan_is_wrong: bool = False
    """It takes outputs that are NaN, as wrong decisions; otherwise they are an error."""
    decide: Callable[[Any, Any], tuple[np.ndarray, np.ndarray]] = class_decisions
    """(outputs, labels) -> what ``from_decisions`` takes."""
    prepare: Callable[[Any, Any], Prepared] | None = None
    """(outputs, labels) -> the metric on any of these examples, for one that is dear to begin anew."""
    decoded: bool = False
    """It takes what a task's ``decode`` makes of the outputs: boxes, a dict for each example."""


def _average(name: str, per_example: Callable[[Any, Any], np.ndarray], loss: str, share: bool) -> Metric:
    def function(outputs: Arrays, labels: Arrays) -> float:
        return float(np.mean(per_example(outputs, labels)))

    return Metric(name, function, share, per_example, loss, bounded=share, nan_is_wrong=share)


def _of_decisions(
    name: str,
    from_decisions: Callable[[np.ndarray, np.ndarray], float],
    decide: Callable[[Any, Any], tuple[np.ndarray, np.ndarray]] = class_decisions,
    loss: str = "cross_entropy",
) -> Metric:
    def function(outputs: Arrays, labels: Arrays) -> float:
        return from_decisions(*decide(outputs, labels))

    return Metric(name, function, True, None, loss, from_decisions, bounded=True, nan_is_wrong=True, decide=decide)


def _of_boxes(name: str, thresholds: tuple[float, ...]) -> Metric:
    prepare = partial(_matched, thresholds)
    return Metric(name, partial(value_prepared, prepare), True, bounded=True, prepare=prepare, decoded=True)


def _matched(thresholds: tuple[float, ...], outputs: Any, labels: Any) -> Prepared:
    found = matches(outputs, labels, thresholds)
    return Prepared(found.mean_average_precision, found.right.size)


def value_prepared(prepare: Callable[[Any, Any], Prepared], outputs: Any, labels: Any) -> float:
    """The value on all examples of a metric that is made ready first."""
    return prepare(outputs, labels).value(np.arange(len(labels)))


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _average("accuracy", classification.right, "cross_entropy", share=True),
        _of_decisions("balanced_accuracy", classification.balanced_accuracy),
        _of_decisions("macro_precision", classification.macro_precision),
        _of_decisions("macro_recall", classification.macro_recall),
        _of_decisions("macro_f1", classification.macro_f1),
        _average("top5", classification.right_in_five, "cross_entropy", share=True),
        _average("agreement", classification.agree, "cross_entropy", share=True),
        _of_decisions("token_accuracy", classification.token_accuracy, token_decisions),
        _average("multilabel_accuracy", classification.labels_right, "bce", share=True),
        _average("multilabel_exact", classification.all_labels_right, "bce", share=True),
        _of_decisions("multilabel_micro_f1", classification.multilabel_micro_f1, label_decisions, "bce"),
        _of_decisions("multilabel_macro_f1", classification.multilabel_macro_f1, label_decisions, "bce"),
        _average("mae", regression.absolute, "l1", share=False),
        _average("mse", regression.squared, "mse", share=False),
        Metric("rmse", regression.rmse, False, None, "mse"),
        Metric("r2", regression.r2, True, None, "mse"),
        _of_boxes("map50", MAP50),
        _of_boxes("map50-95", MAP50_95),
    )
}
"""The metrics that have a name. ``agreement`` is accuracy with the baseline's own outputs (or classes) as labels;
``multilabel_...`` take logits, above 0 a yes, also one for each example; ``token_accuracy`` leaves out labels of -100;
``map50`` and ``map50-95`` take boxes, a dict for each example (see ``detections``).
"""


def get(metric: str | Metric) -> Metric:
    """The metric of that name, or ``metric`` itself if it is one.

    Raises TaskError, with the names that are known, for a name that is not.

    >>> get("accuracy").higher_is_better
    True
    """
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise TaskError(f"unknown metric {metric!r}; use one of {', '.join(METRICS)}, or a Metric(name, function)")
    return METRICS[metric]


def quality_of(metric: Metric, outputs: Arrays, labels: Arrays, seed: int = 0) -> Quality:
    """The metric's value on these examples, with its 95 % interval and the number of examples.

    ``outputs``: (n, ...), or a tuple of such arrays for a model with several outputs; ``labels``: (n, ...). ``seed`` is
    that of the bootstrap, where the metric has no interval of its own.

    Raises TaskError if the metric raises or does not fit the outputs, MeasurementError if outputs or value are not
    finite.

    >>> outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    >>> quality = quality_of(get("accuracy"), outputs, np.array([1, 0, 0, 0]))
    >>> print(f"{quality.value} ({quality.low:.2f} to {quality.high:.2f}) of {quality.n}")
    0.75 (0.30 to 0.95) of 4
    """
    n = _count(metric, outputs, labels)
    value = _value(metric, outputs, labels)
    each = _each(metric, outputs, labels, value)
    if each is not None and each.dtype == np.bool_:
        return Quality(metric.name, value, *wilson(int(each.sum()), n), n)
    prepared = _prepared(metric, outputs, labels, each)
    low, high = _resampled(metric, prepared.value, prepared.numbers, n, seed)
    if high == low and _is_share(metric, value):
        low, high = wilson(round(value * n), n)
    return Quality(metric.name, value, min(low, value), max(high, value), n)


def quality_drop(metric: Metric, baseline_outputs: Arrays, outputs: Arrays, labels: Arrays, seed: int = 0) -> Drop:
    """How much worse ``outputs`` are than the baseline's on the same examples, with its 95 % interval.

    Positive is worse, whichever way the metric is oriented. Given the baseline's very outputs (the same object) it is
    0 for certain.

    ``baseline_outputs``, ``outputs``: (n, ...) each, or tuples of such arrays; ``labels``: (n, ...). Raises as
    ``quality_of`` does.
    """
    if outputs is baseline_outputs:
        return Drop(0.0, 0.0, 0.0)
    n = _count(metric, outputs, labels)
    found = disagreements(metric, baseline_outputs, outputs, labels)
    if found is not None:
        lost, gained, _ = found
        return Drop((lost - gained) / n, *tango(lost, gained, n))
    sign = 1.0 if metric.higher_is_better else -1.0
    sides = baseline_outputs, outputs
    values = [_value(metric, side, labels) for side in sides]
    before, after = (
        _prepared(metric, side, labels, _each(metric, side, labels, known))
        for side, known in zip(sides, values, strict=True)
    )
    value = sign * (values[0] - values[1])
    numbers = max(before.numbers, after.numbers)
    low, high = _resampled(metric, lambda rows: sign * (before.value(rows) - after.value(rows)), numbers, n, seed)
    if high == low and all(_is_share(metric, known) for known in values):
        room = tango(0, 0, n)[1]
        low, high = low - room, high + room
    return Drop(value, min(low, value), max(high, value))


def disagreements(
    metric: Metric, baseline_outputs: Arrays, outputs: Arrays, labels: Arrays
) -> tuple[int, int, int] | None:
    """(lost, gained, n): how many examples only the baseline, only the candidate gets right, of how many.

    None unless the metric is a proportion. Raises as ``quality_of`` does.
    """
    n = _count(metric, outputs, labels)
    _count(metric, baseline_outputs, labels)
    if metric.per_example is None:
        return None
    before, after = (_each(metric, side, labels, _value(metric, side, labels)) for side in (baseline_outputs, outputs))
    if before is None or after is None or before.dtype != np.bool_ or after.dtype != np.bool_:
        return None
    if not metric.higher_is_better:
        before, after = ~before, ~after
    return int(np.sum(before & ~after)), int(np.sum(after & ~before)), n


def slice_qualities(
    metric: Metric, outputs: Arrays, labels: Arrays, slices: Mapping[str, Sequence[Any]], seed: int = 0
) -> dict[str, dict[str, Quality]]:
    """Quality on the examples of each value of each slice: name of the slice -> value -> quality.

    ``slices`` holds one value per example. Where the metric cannot be computed on a part alone (only one class
    there, say), that part is left out.

    Raises TaskError if a slice has not one value per example.
    """
    n = _count(metric, outputs, labels)
    found: dict[str, dict[str, Quality]] = {}
    for name, values in slices.items():
        if len(values) != n:
            raise TaskError(f"slice {name!r} has {len(values)} values for {n} examples; give one for each")
        written = np.array([str(value) for value in values])
        found[name] = {}
        for value in sorted(set(written.tolist())):
            rows = np.flatnonzero(written == value)
            try:
                found[name][value] = quality_of(metric, _take(outputs, rows), _take(labels, rows), seed)
            except (TaskError, MeasurementError):
                continue
    return found


def _count(metric: Metric, outputs: Arrays, labels: Arrays) -> int:
    """Number of examples; raises TaskError unless it is the same everywhere, and positive."""
    lengths = {len(array) for side in (outputs, labels) for array in (side if isinstance(side, tuple) else (side,))}
    if len(lengths) != 1 or 0 in lengths:
        raise TaskError(
            f"metric {metric.name!r}: outputs and labels hold {sorted(lengths)} examples; give as many of both"
        )
    return lengths.pop()


def _take(arrays: Arrays, rows: np.ndarray) -> Arrays:
    return tuple(array[rows] for array in arrays) if isinstance(arrays, tuple) else arrays[rows]


def _value(metric: Metric, outputs: Arrays, labels: Arrays) -> float:
    """The metric's value, checked."""
    if not metric.nan_is_wrong:
        for array in outputs if isinstance(outputs, tuple) else (outputs,):
            if np.issubdtype(array.dtype, np.inexact) and np.isnan(array).any():
                bad = int(np.isnan(array).reshape(len(array), -1).any(axis=1).sum())
                raise MeasurementError(f"outputs are not finite: NaN in {bad} of {len(array)} examples")
    try:
        value = float(metric.function(outputs, labels))
    except (Exception, SystemExit) as error:
        _blame(metric, error)
    if not np.isfinite(value):
        raise MeasurementError(
            f"metric {metric.name!r} is {value}: outputs are not finite, or it is not defined on them"
        )
    return value


def _each(metric: Metric, outputs: Arrays, labels: Arrays, value: float) -> np.ndarray | None:
    """The metric's values per example (n,), checked against ``value``; None if it has none."""
    if metric.per_example is None:
        return None
    try:
        each = np.asarray(metric.per_example(outputs, labels))
    except (Exception, SystemExit) as error:
        _blame(metric, error)
    n = len(labels[0]) if isinstance(labels, tuple) else len(labels)
    if each.shape != (n,) or not np.isclose(each.mean(), value, rtol=1e-5, atol=1e-8):
        raise TaskError(
            f"metric {metric.name!r}: per_example gives shape {each.shape} and mean {each.mean():.6g} for {n} examples "
            f"and a value of {value:.6g}; it must give one number an example, whose mean is the value"
        )
    return each


def _blame(metric: Metric, error: BaseException) -> NoReturn:
    """Raise TaskError for what a metric's function raised, with the line where it went wrong in that function."""
    if isinstance(error, TaskError):
        raise TaskError(f"metric {metric.name!r}: {error}") from error
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[1].filename}:{frames[1].lineno})" if len(frames) > 1 else ""
    raise TaskError(f"metric {metric.name!r} raised {one_line(error, kind=True)}{where}") from error


def _prepared(metric: Metric, outputs: Arrays, labels: Arrays, each: np.ndarray | None) -> Prepared:
    """The metric as a function of the rows (m,) it is computed on.

    Its ``numbers`` are 0 where no more of them are looked at than there are rows.
    """
    if each is not None:
        return Prepared(lambda rows: float(each[rows].mean()), 0)
    if metric.prepare is not None:
        return metric.prepare(outputs, labels)
    if metric.from_decisions is not None:
        function, (decided, wanted) = metric.from_decisions, metric.decide(outputs, labels)
        return Prepared(lambda rows: function(decided[rows], wanted[rows]), 0)

    def evaluate(rows: np.ndarray) -> float:
        try:
            return float(metric.function(_take(outputs, rows), _take(labels, rows)))
        except (Exception, SystemExit):
            # It worked on all examples: this resample lacks something it needs, a class for example.
            return float("nan")

    return Prepared(evaluate, sum(array.size for array in outputs) if isinstance(outputs, tuple) else outputs.size)


def _resampled(
    metric: Metric, statistic: Callable[[np.ndarray], float], numbers: int, n: int, seed: int
) -> tuple[float, float]:
    resamples = max(_FEWEST, min(RESAMPLES, _VALUES // numbers)) if numbers else RESAMPLES
    with warnings.catch_warnings():
        # What is not defined on a resample is left out; a thousand warnings would say no more.
        warnings.simplefilter("ignore")
        try:
            return bootstrap(statistic, n, seed=seed, resamples=resamples)
        except ValueError as error:
            raise TaskError(f"metric {metric.name!r} has no interval: {error}") from error


def _is_share(metric: Metric, value: float) -> bool:
    """Whether the metric is a share of something, as far as is known of one that was brought."""
    return metric.bounded or (metric.higher_is_better and 0 <= value <= 1)

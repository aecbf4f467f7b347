"""A run that goes on with another function for its metric: it must give what the run has, or the run is refused.

A function may be written anew (a mistake mended, a comment put in) and still be the same metric. So it is asked, about
the very outputs that the run's figures come from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np

from compress.baseline.contexts import Context
from compress.tasks.identities import metric_code
from compress.tasks.user_code import guarded
from compress.values.candidates import Candidate
from targets.errors import RunError
from targets.target import Target


def check_metric(context: Context, moved: Collection[str]) -> None:
    """Raise RunError where the metric's function is another one and gives other values; else remember it.

    Of targets that ``moved`` nothing is asked: there everything is measured again.
    """
    run, task, code = context.run, context.run.request.task, metric_code(context.metric)
    if task is None or task.metric_code == code:
        return
    for candidate in run.available():
        for target in context.targets.all:
            if target.name in candidate.measured and target.name not in moved:
                for which, known, value in _values(context, target, candidate):
                    if not np.isclose(value, known, rtol=1e-6, atol=1e-9):
                        raise RunError(
                            f"{str(run.folder)!r} is the run of another task (another function for the metric "
                            f"{task.metric!r}: for {candidate.id} on {which} it gives {value:.6g}, not {known:.6g}); "
                            "choose another --out"
                        )
    run.with_request(task=replace(task, metric_code=code))


def _values(context: Context, target: Target, candidate: Candidate) -> Iterator[tuple[str, float, float]]:
    """(split, value in the record, value now) for the splits that the candidate was scored on."""
    quality = candidate.measured[target.name].quality
    path = context.run.folder / (candidate.path or "")
    dynamic = candidate.config["precision"]["scheme"] == "int8-dynamic"
    metric = context.metric
    for which, known, split in (("val", quality.val, context.val), ("test", quality.test, context.test)):
        if known is None or split is None:
            continue
        outputs = context.instruments.scorer.outputs(target, path, split, which, dynamic=dynamic).outputs
        labels = split.labels.numpy()
        what = f"metric {metric.name!r}"
        yield which, known.value, guarded(what, lambda x=outputs, y=labels: float(metric.function(x, y)))  # type: ignore[misc]  # mypy does not infer a lambda's defaults

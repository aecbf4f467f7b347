"""The last step: finalists are timed again with nothing else running, and picks are read on test.

What fails here costs one candidate its confirmation, not the search its result: it is noted and stands in the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compress.baseline.contexts import Context, Say
from compress.measurement import latencies, scoring
from compress.metrics import metrics
from compress.metrics.classification import per_class
from compress.run_folder.facts import Unconfirmed
from compress.selection import picks, rankings
from compress.selection.questions import Question
from compress.stages import measuring
from compress.values.candidates import Candidate, ClassQuality, DropSplits, QualitySplits
from targets.errors import StageError
from targets.target import Protocol, Target

MOST_FINALISTS = 10


def confirm(context: Context, question: Question, protocol: Protocol, say: Say) -> None:
    """Remeasure the finalists on every target, then read the picks on test until each has its verdict."""
    record = context.run.record
    if record.state.facts.unconfirmed:
        record.note("unconfirmed", ())  # this call tries again
    say("confirm: latency")
    for target in context.targets.all:
        _remeasure(context, question, target, protocol)
    if context.test is None:
        return
    say("confirm: test")
    for target in context.targets.all:
        baseline = context.run.state.candidates[context.baseline.candidate.id]
        if baseline.measured[target.name].quality.test is None:
            # What every drop is measured from; reading it decides nothing.
            _read_test(context, target, baseline)
        for which in rankings.PICKS:
            _read_picks(context, question, target, which)


def _remeasure(context: Context, question: Question, target: Target, protocol: Protocol) -> None:
    """Several fresh processes for everything that could be picked; ratios there replace those of the search."""
    known = context.run.available()
    lines = {which: picks.reading_order(which, known, question, target.name) for which in rankings.PICKS}
    order: list[Candidate] = []
    for place in range(picks.MOST_READ):
        for which in rankings.PICKS:
            line = lines[which]
            if place < len(line) and line[place] not in order and line[place].id != question.baseline.id:
                order.append(line[place])
    finalists = order[:MOST_FINALISTS]
    if not finalists:
        return
    for candidate, info in _timed(context, target, finalists, protocol):
        measured = candidate.measured[target.name]
        memory = info.get("memory") or measured.memory
        updated = replace(measured, latency=latencies.latency_result(info), memory=memory)
        context.run.record.append("candidate", candidate=candidate.on(target.name, updated))


def _timed(
    context: Context, target: Target, finalists: Sequence[Candidate], protocol: Protocol
) -> list[tuple[Candidate, dict[str, Any]]]:
    """What was measured of each; all together, or one by one where one of them spoils it for the rest."""
    try:
        infos = measuring.measure_on(context.instruments, target, [context.run.path(c.id) for c in finalists], protocol)
        return list(zip(finalists, infos, strict=True))
    except StageError as error:
        if len(finalists) == 1:
            _note(context, finalists[0], f"{finalists[0].id} could not be timed again on {target.name}: {error}")
            return []
    return [entry for candidate in finalists for entry in _timed(context, target, [candidate], protocol)]


def _read_picks(context: Context, question: Question, target: Target, which: str) -> None:
    """Read the line of one pick on test until its verdict stands."""
    while True:
        asked = replace(question, disagreements=context.run.state.facts.disagreements)
        _, unread = picks.choose(which, context.run.available(), asked, target.name)
        if unread is None:
            return
        try:
            _read_test(context, target, unread)
        except StageError as error:
            _note(context, unread, f"{unread.id} could not be read on test on {target.name}: {error}")
            return


def _read_test(context: Context, target: Target, candidate: Candidate) -> None:
    """Score one candidate on test and write it down: it is read once and never comes back into the search."""
    test = context.test
    if test is None:
        return
    path = context.baseline.path if candidate.id == context.baseline.candidate.id else context.run.path(candidate.id)
    dynamic = candidate.config["precision"]["scheme"] == "int8-dynamic"
    quality, drop, found = measuring.score(context.instruments, target, path, test, "test", dynamic=dynamic)
    labels = test.labels.numpy()
    slices = {}
    if context.task.slices:
        slices = metrics.slice_qualities(context.metric, found.outputs, labels, context.task.slices)
    reference = context.instruments.scorer.outputs(target, context.baseline.path, test, "test", there=not found.on_host)
    counted = metrics.disagreements(context.metric, reference.outputs, found.outputs, labels)
    if counted is not None:
        context.run.record.note("disagreements", counted, target.name, candidate.id)
    current = context.run.state.candidates[candidate.id]
    measured = current.measured[target.name]
    updated = replace(
        measured,
        quality=QualitySplits(measured.quality.val, quality, slices, _classes(context, found.outputs, labels)),
        quality_drop=DropSplits(measured.quality_drop.val, drop),
        scored_on_host={**measured.scored_on_host, **({} if found.check is None else {"test": found.check})},
    )
    context.run.record.append("candidate", candidate=current.on(target.name, updated))


def _classes(context: Context, outputs: scoring.Outputs, labels: np.ndarray) -> dict[str, ClassQuality]:
    """Precision and recall of each class, of a task that decides on classes."""
    if context.metric.loss != "cross_entropy" or context.metric.name == "agreement":
        return {}
    return per_class(outputs, labels)


def _note(context: Context, candidate: Candidate, cause: str) -> None:
    """Keep a failure that is no trial's; the report lists it under the trial the candidate came from."""
    known = context.run.state.facts.unconfirmed
    context.run.record.note("unconfirmed", (*known, Unconfirmed(candidate.trial, cause)))

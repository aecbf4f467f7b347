"""The last step: finalists are timed again with nothing else running, and picks are read on test.

What fails here costs one candidate its confirmation, not the search its result: it is noted and stands in the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compress.baseline.contexts import Context, Say
from compress.measurement import latencies, scoring
from compress.metrics import metrics
from compress.metrics.classification import per_class
from compress.onnx_files.graphs import structure_hash
from compress.run_folder.facts import Unconfirmed
from compress.selection import picks, rankings
from compress.selection.questions import Question
from compress.stages import measuring
from compress.values.candidates import Candidate, ClassQuality, DropSplits, QualitySplits
from targets.errors import ModelError, StageError, TransientError
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
        _read_picks(context, question, target)


def _remeasure(context: Context, question: Question, target: Target, protocol: Protocol) -> None:
    """Several fresh processes for everything that could be picked; ratios there replace those of the search."""
    if target.counted and target.deterministic:
        return  # counted again, it would be the same
    known = context.run.available()
    lines = {which: picks.reading_order(which, known, question, target.name) for which in rankings.PICKS}
    order: list[Candidate] = []
    structures: set[str] = set()
    for place in range(picks.MOST_READ):
        for which in rankings.PICKS:
            line = lines[which]
            if place < len(line) and line[place].id != question.baseline.id:
                structure = structure_hash(context.run.path(line[place].id))
                if structure not in structures:
                    structures.add(structure)
                    order.append(line[place])
    finalists = order[:MOST_FINALISTS]
    if not finalists:
        return
    same = _by_structure(context, known)
    for candidate, info in _timed(context, target, finalists, protocol):
        # What a file costs does not depend on its weights: its like costs the same.
        for one in same[structure_hash(context.run.path(candidate.id))]:
            measured = one.measured.get(target.name)
            if measured is not None:
                memory = info.get("memory") or measured.memory
                updated = replace(measured, latency=latencies.latency_result(info), memory=memory)
                context.run.record.append("candidate", candidate=one.on(target.name, updated))


def _by_structure(context: Context, candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Hash of a graph -> the candidates that have it."""
    found: dict[str, list[Candidate]] = {}
    for one in candidates:
        if one.id != context.baseline.candidate.id:
            found.setdefault(structure_hash(context.run.path(one.id)), []).append(one)
    return found


def _timed(
    context: Context, target: Target, finalists: Sequence[Candidate], protocol: Protocol
) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """What was measured of each; all together, or one by one where one of them spoils it for the rest.

    Raises StageError where none of them can be measured, and at once where the target itself seems to be gone.
    """
    try:
        infos = measuring.measure_on(context.instruments, target, [context.run.path(c.id) for c in finalists], protocol)
    except (StageError, ModelError) as error:
        gone, last = isinstance(error, TransientError), str(error)
    else:
        yield from zip(finalists, infos, strict=True)
        return
    timed = 0
    for candidate in finalists:
        try:
            [info] = measuring.measure_on(context.instruments, target, [context.run.path(candidate.id)], protocol)
        except (StageError, ModelError) as error:
            last = str(error)
            if gone and isinstance(error, TransientError) and not timed:
                break
            _note(context, candidate, f"{candidate.id} could not be timed again on {target.name}: {error}")
            continue
        timed += 1
        yield candidate, info
    if not timed:
        raise StageError(f"no finalist could be timed again on {target.name}: {last}")


def _read_picks(context: Context, question: Question, target: Target) -> None:
    """Read the line of every pick on test until its verdict stands.

    Raises StageError where nothing that had to be read could be, and at once where the target itself seems to be gone.
    """
    read, unreadable = 0, dict[str, str]()
    for which in rankings.PICKS:
        while True:
            asked = replace(question, disagreements=context.run.state.facts.disagreements)
            _, unread = picks.choose(which, context.run.available(), asked, target.name)
            if unread is None or unread.id in unreadable:
                break
            try:
                _read_test(context, target, unread)
                read += 1
            except (StageError, ModelError) as error:
                if isinstance(error, TransientError) and not read and unreadable:
                    raise
                unreadable[unread.id] = str(error)
                _note(context, unread, f"{unread.id} could not be read on test on {target.name}: {error}")
                break
    if unreadable and not read:
        raise StageError(f"no pick could be read on test on {target.name}: {next(iter(unreadable.values()))}")


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

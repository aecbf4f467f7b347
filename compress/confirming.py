"""The last step: finalists are timed again with nothing else running, and picks are read on test."""

from __future__ import annotations

from dataclasses import replace

from compress import latencies, metrics, picking, scoring, selecting
from compress.contexts import Context, Say
from compress.picking import Question
from compress.results import Candidate, DropSplits, QualitySplits
from targets.target import Protocol, Target

MOST_FINALISTS = 10


def confirm(context: Context, question_of: picking.Question, protocol: Protocol, say: Say) -> None:
    """Remeasure the finalists on every target, then read the picks on test until each has its verdict."""
    say("confirm: latency")
    for target in context.targets:
        _remeasure(context, question_of, target, protocol)
    say("confirm: test")
    if context.test is None:
        return
    for target in context.targets:
        for which in selecting.PICKS:
            while True:
                question = replace(question_of, disagreements=disagreements(context))
                _, unread = picking.choose(which, list(context.run.state.candidates.values()), question, target.name)
                if unread is None:
                    break
                _read_test(context, target, unread)


def disagreements(context: Context) -> dict[tuple[str, str], tuple[int, int, int]]:
    """What the record knows of test examples that baseline and candidate disagree on."""
    return known_disagreements(context.run.state.facts)


def known_disagreements(facts: dict[str, object]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(target, id) -> (lost, gained, n) from a record's facts."""
    found: dict[tuple[str, str], tuple[int, int, int]] = {}
    for name, value in facts.items():
        if name.startswith("disagreements|") and isinstance(value, list):
            _, target, identifier = name.split("|")
            found[target, identifier] = (int(value[0]), int(value[1]), int(value[2]))
    return found


def _remeasure(context: Context, question: Question, target: Target, protocol: Protocol) -> None:
    """Several fresh processes for everything that could be picked; ratios there replace those of the search."""
    candidates = list(context.run.state.candidates.values())
    members = picking.front(candidates, question, target.name)
    order: list[Candidate] = []
    for place in range(picking.MOST_READ):
        for which in selecting.PICKS:
            line = selecting.ranked(which, members, target.name, higher_is_better=question.higher_is_better)
            if place < len(line) and line[place] not in order and line[place].id != question.baseline.id:
                order.append(line[place])
    finalists = order[:MOST_FINALISTS]
    if not finalists:
        return
    infos = latencies.measure_on(context, target, [context.run.path(c.id) for c in finalists], protocol)
    for candidate, info in zip(finalists, infos, strict=True):
        measured = candidate.measured[target.name]
        memory = info.get("memory") or measured.memory
        updated = replace(measured, latency=latencies.latency_result(info), memory=memory)
        context.run.record.append("candidate", candidate=candidate.on(target.name, updated))


def _read_test(context: Context, target: Target, candidate: Candidate) -> None:
    """Score one candidate on test and write it down: it is read once and never comes back into the search."""
    test = context.test
    if test is None:
        return
    path = context.baseline_path if candidate.id == context.baseline.id else context.run.path(candidate.id)
    dynamic = candidate.config["precision"]["scheme"] == "int8-dynamic"
    quality, drop, found = scoring.score(context, target, path, test, dynamic=dynamic)
    labels = test.labels.numpy()
    slices = metrics.slice_scores(context.metric, found, labels, context.task.slices) if context.task.slices else {}
    reference = scoring.outputs(
        context.cache, target, context.describe[target.name], context.baseline_path, test, context.names
    )
    counted = metrics.disagreements(context.metric, reference, found, labels)
    if counted is not None:
        context.run.record.append("fact", name=f"disagreements|{target.name}|{candidate.id}", value=list(counted))
    current = context.run.state.candidates[candidate.id]
    measured = current.measured[target.name]
    updated = replace(
        measured,
        quality=QualitySplits(measured.quality.val, quality, slices),
        quality_drop=DropSplits(measured.quality_drop.val, drop),
    )
    context.run.record.append("candidate", candidate=current.on(target.name, updated))

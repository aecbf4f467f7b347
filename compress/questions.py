"""What a run asks of its candidates, and of its sampler: read from its request and its record."""

from __future__ import annotations

from compress import picking
from compress.picking import Question
from compress.quantities import parse_constraint
from compress.runs import Run
from compress.sampling import Problem
from targets.errors import RunError


def question_of(run: Run) -> Question:
    """What the run's candidates are chosen by; raises RunError while there is not even a measured baseline."""
    baseline = run.state.candidates.get("baseline")
    if baseline is None or not targets_of(run):
        raise RunError(f"{str(run.folder)!r} has no measured baseline yet; let the search go on first")
    request = run.request
    return Question(
        baseline, request.objectives, tuple(parse_constraint(text) for text in request.constraints),
        request.higher_is_better, request.bounded, picking.known_disagreements(run.state.facts),
    )  # fmt: skip


def targets_of(run: Run) -> tuple[str, ...]:
    """The run's targets on which its baseline is measured: all of them, unless one was added just now."""
    baseline = run.state.candidates.get("baseline")
    return tuple(name for name in run.request.targets if baseline is not None and name in baseline.measured)


def problem_of(run: Run) -> Problem:
    """The run's search problem, as far as its record goes; raises RunError while there is no baseline."""
    request, baseline = run.request, question_of(run).baseline
    groups = tuple(run.state.facts.get("groups", ()))
    return Problem(
        request.space.dimensions(groups),
        request.objectives,
        tuple(parse_constraint(text) for text in request.constraints),
        targets_of(run),
        baseline,
        request.higher_is_better,
        {name: can["refuses"] for name, can in run.state.facts.get("abilities", {}).items()},
    )

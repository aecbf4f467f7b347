"""What a run asks of its candidates, and of its sampler: read from its request and its record."""

from __future__ import annotations

from dataclasses import replace

from compress import picking
from compress.configs import AUTO
from compress.picking import Question
from compress.precisions import refused, wanted
from compress.quantities import parse_constraint
from compress.runs import Run
from compress.sampling import Problem
from compress.spaces import Choice, Float, SearchSpace
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


def space_of(run: Run) -> SearchSpace:
    """The run's space, with the range of learning rates that was found where it asks for one."""
    space, found = run.request.space, run.state.facts.get("learning_rates")
    if space.lr != AUTO or not found:
        return space
    low, high = found
    return replace(space, lr=Float(low, high, log=True))


def problem_of(run: Run) -> Problem:
    """The run's search problem, as far as its record goes; raises RunError while there is no baseline."""
    request, baseline = run.request, question_of(run).baseline
    groups = tuple(run.state.facts.get("groups", ()))
    abilities = run.state.facts.get("abilities", {})
    dimensions = space_of(run).dimensions(groups, int(run.state.facts.get("blocks", 0)))
    schemes = wanted(request.space, [can["precisions"] for can in abilities.values()])
    if "precision" in dimensions or len(schemes) > 1:
        # Every candidate is told in its own precision.
        dimensions["precision"] = Choice(*schemes)
    return Problem(
        dimensions,
        request.objectives,
        tuple(parse_constraint(text) for text in request.constraints),
        targets_of(run),
        baseline,
        request.higher_is_better,
        {name: refused(can["refuses"], can["lacks"]) for name, can in abilities.items()},
    )

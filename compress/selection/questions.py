"""The question that a run asks of its candidates: by which objectives, within which limits, against which baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compress.run_folder.runs import Run
from compress.values.candidates import Candidate
from compress.values.constraints import Constraint, parse_constraint
from targets.errors import RunError


@dataclass(frozen=True)
class Question:
    """All that candidates are chosen by, besides their measurements."""

    baseline: Candidate
    """The candidate that every ratio and every drop is relative to."""
    objectives: tuple[str, ...]
    """What the front spans, as ``("quality", "latency")``."""
    constraints: tuple[Constraint, ...]
    higher_is_better: bool
    """Of the task's metric."""
    bounded: bool
    """Whether the metric's values lie in [0, 1]."""
    disagreements: Mapping[tuple[str, str], tuple[int, int, int]]
    """(target, id) -> (lost, gained, n) on test, where the metric is a proportion: of n examples, how many only the
    baseline has right and how many only the candidate."""
    certainties: Mapping[str, float] = field(default_factory=dict)
    """Candidate's id -> probability that it is within the limits on test too, where the search has learnt it."""


def question_of(run: Run) -> Question:
    """The question of ``run``, from its request and its record.

    Raises RunError while there is not even a measured baseline.
    """
    baseline = run.state.candidates.get("baseline")
    if baseline is None or not targets_of(run):
        raise RunError(f"{str(run.folder)!r} has no measured baseline yet; let the search go on first")
    request = run.request
    return Question(
        baseline, request.objectives, tuple(parse_constraint(text) for text in request.constraints),
        request.higher_is_better, request.bounded, run.state.facts.disagreements,
        run.state.facts.certainties,
    )  # fmt: skip


def targets_of(run: Run) -> tuple[str, ...]:
    """The run's targets on which its baseline is measured: all of them, unless one was added just now."""
    baseline = run.state.candidates.get("baseline")
    return tuple(name for name in run.request.targets if baseline is not None and name in baseline.measured)

"""The search problem as a sampler sees it: dimensions, objectives, constraints, and the baseline they relate to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compress.precision.schemes import refused, wanted
from compress.run_folder.runs import Run, space_of
from compress.selection.questions import question_of, targets_of
from compress.values import constraints as values_constraints
from compress.values.candidates import Candidate
from compress.values.constraints import parse_constraint
from compress.values.domains import Choice, Float, Int


@dataclass(frozen=True)
class Problem:
    """What the sampler is told about: dimensions, objectives, constraints, and the zero of every ratio."""

    dimensions: dict[str, Float | Int | Choice]
    objectives: tuple[str, ...]
    constraints: tuple[values_constraints.Constraint, ...]
    targets: tuple[str, ...]
    baseline: Candidate
    higher_is_better: bool
    refuses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Target -> precisions that do not run there."""

    def is_known_on(self, target: str, candidate: Candidate) -> bool:
        """Whether there is nothing more to find out about a candidate on ``target``."""
        return target in candidate.measured or candidate.config["precision"]["scheme"] in self.refuses.get(target, ())


def problem_of(run: Run) -> Problem:
    """The run's search problem, as far as its record goes; raises RunError while there is no baseline."""
    request, baseline = run.request, question_of(run).baseline
    facts = run.state.facts
    dimensions = space_of(run).dimensions(facts.groups, facts.blocks, len(facts.lossy_operators))
    schemes = wanted(request.space, [can.precisions for can in facts.abilities.values()])
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
        {name: refused(can.refuses, can.lacks) for name, can in facts.abilities.items()},
    )

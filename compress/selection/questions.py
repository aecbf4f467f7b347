"""What a run asks of its candidates, and of its sampler: read from its request and its record."""

from __future__ import annotations

from compress.run_folder.runs import Run
from compress.selection import picks, rankings, verdicts
from compress.selection.picks import Question
from compress.values.candidates import Pick
from compress.values.constraints import parse_constraint
from targets.errors import RunError


def question_of(run: Run) -> Question:
    """What the run's candidates are chosen by; raises RunError while there is not even a measured baseline."""
    baseline = run.state.candidates.get("baseline")
    if baseline is None or not targets_of(run):
        raise RunError(f"{str(run.folder)!r} has no measured baseline yet; let the search go on first")
    request = run.request
    return Question(
        baseline, request.objectives, tuple(parse_constraint(text) for text in request.constraints),
        request.higher_is_better, request.bounded, run.state.facts.disagreements,
    )  # fmt: skip


def targets_of(run: Run) -> tuple[str, ...]:
    """The run's targets on which its baseline is measured: all of them, unless one was added just now."""
    baseline = run.state.candidates.get("baseline")
    return tuple(name for name in run.request.targets if baseline is not None and name in baseline.measured)


def picks_of(run: Run, target: str) -> dict[str, Pick | None]:
    """Every pick on ``target``."""
    question, candidates = question_of(run), run.available()
    return {which: picks.choose(which, candidates, question, target)[0] for which in rankings.PICKS}


def satisfied(run: Run) -> bool:
    """Whether the run's main pick on its first target meets the constraints and is not refuted."""
    question = question_of(run)
    pick, _ = picks.choose(run.request.pick, run.available(), question, targets_of(run)[0])
    return pick is not None and pick.verdict != verdicts.REFUTED

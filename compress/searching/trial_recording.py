"""What came of a trial: written into the record before it counts, and told."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from typing import Any

from compress.executing.jobs import Done
from compress.executing.jobs import Failure as LostTrial
from compress.reports.formatting import cost_in_words
from compress.run_folder.facts import Skipped
from compress.run_folder.records import Trial
from compress.run_folder.runs import Run, link
from compress.sampling.problems import problem_of
from compress.searching.progress import Progress
from compress.selection import fronts, rankings
from compress.selection.questions import question_of
from compress.stages import trials as stages_trials
from compress.stages.latency_gate import Gated
from compress.values.candidates import Candidate, Failure
from compress.values.durations import format_duration

_PASSING = re.compile(r"\S*/\S*|[-+]?\d[\d.]*(e[-+]?\d+)?|\bnan\b|\binf\b")
"""What differs from trial to trial in the words of one failure: paths and numbers."""


class TrialRecorder:
    """Writes down what comes of the trials of a call."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.state, self.progress = run, run.state, progress
        self.problem = problem_of(run)
        self.fruitless = 0
        """Trials in a row of which no candidates came."""
        self.nothing_new = 0
        """Finished trials in a row that gave files which were there already, or none."""
        self.failures: list[Failure] = []
        """The trials of this call that failed in a row for one reason."""

    def ended(self, trial: Trial, outcome: Gated | stages_trials.Finished, done: Done) -> None:
        """A trial has ended, in candidates or at the gate."""
        record, seconds, train_seconds = self.run.record, done.seconds, done.train_seconds
        if isinstance(outcome, Gated):
            self.fruitless += 1
            record.append("gated", trial=trial.number, known=outcome.known, seconds=round(seconds, 3))
            ratio = next(iter(outcome.known.values())).get("ratio")
            best = "" if ratio is None else f" ({ratio:.2f}x at best)"
            self.progress.outcome(
                f"trial {trial.number}: not trained, since its speed or size cannot meet the constraints{best}"
            )
            return
        drop = {} if outcome.train_drop is None else {"train_drop": outcome.train_drop}
        took = {"train_seconds": round(train_seconds, 3)} if train_seconds else {}
        self._finished(trial, outcome, seconds, "finished", drop | took)

    def completed(self, trial: Trial, precisions: Sequence[str], done: Done) -> None:
        """More files of a finished trial's network were made; where that failed it is noted, the trial stays."""
        outcome = done.outcome
        if isinstance(outcome, LostTrial):
            new_ones = (Skipped(trial.number, name, outcome.cause) for name in precisions)
            self.run.record.note("skipped", (*self.state.facts.skipped, *new_ones))
        elif isinstance(outcome, stages_trials.Finished):
            seconds = trial.seconds + done.seconds
            self._finished(trial, outcome, seconds, "completed", {"precisions": list(precisions)})

    def _finished(
        self, trial: Trial, outcome: stages_trials.Finished, seconds: float, event: str, more: dict[str, Any]
    ) -> None:
        self.fruitless, self.failures = 0, []
        if outcome.skipped:
            new_ones = (Skipped(trial.number, scheme, cause) for scheme, cause in outcome.skipped)
            self.run.record.note("skipped", (*self.state.facts.skipped, *new_ones))
        new, same = self._told_apart(outcome.candidates)
        self.nothing_new = 0 if new else self.nothing_new + 1
        self.run.record.append(
            event, trial=trial.number, candidates=new, same=same, seconds=round(seconds, 3), **more
        )  # fmt: skip
        if outcome.candidates or event == "finished":
            for text in _summaries(trial.number, outcome.candidates, self.problem.targets[0], seconds):
                self.progress.outcome(text)

    def _told_apart(self, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
        """(candidates that are new, ids of earlier ones that are the very same file): none is listed or read twice."""
        known = {candidate.sha256: candidate.id for candidate in self.state.candidates.values()}
        new: list[Candidate] = []
        same: list[str] = []
        for candidate in candidates:
            if candidate.sha256 in known:
                same.append(known[candidate.sha256])
                self._restore(self.state.candidates.get(same[-1]), candidate)
                shutil.rmtree(self.run.candidate_folder(candidate.id), ignore_errors=True)
            else:
                known[candidate.sha256] = candidate.id
                new.append(candidate)
        return new, same

    def _restore(self, known: Candidate | None, made: Candidate) -> None:
        """Give a known candidate its file back, where ``--keep front`` had removed it or it was damaged."""
        if known is not None and known.id != "baseline" and not self.run.is_whole(known):
            for path in self.run.candidate_folder(made.id).glob("*.*"):
                if path.name != "candidate.json":
                    link(path, self.run.candidate_folder(known.id) / path.name)

    def failed(self, trial: Trial, lost: LostTrial, seconds: float) -> None:
        """Write down that a trial failed, in which stage and why, after so many ``seconds``."""
        self.fruitless += 1
        self.run.record.append(
            "failed", trial=trial.number, stage=lost.stage, cause=lost.cause, transient=lost.transient,
            seconds=round(seconds, 3),
        )  # fmt: skip
        failure = Failure(trial.number, lost.stage, lost.cause)
        self.failures = [one for one in self.failures if same_cause(one, failure)] + [failure]
        self.progress.outcome(f"trial {trial.number}: failed in {lost.stage}: {lost.cause}")


def same_cause(one: Failure, other: Failure) -> bool:
    """Whether two trials failed for one reason: in one stage, in the same words but for paths and numbers."""
    return one.stage == other.stage and _PASSING.sub("#", one.cause) == _PASSING.sub("#", other.cause)


def _summaries(number: int, candidates: Sequence[Candidate], target: str, seconds: float) -> list[str]:
    parts: list[str] = []
    for candidate in candidates:
        # The first target's figures; where that does not run it, another's.
        measured = candidate.measured.get(target) or next(iter(candidate.measured.values()))
        speed = f"{measured.latency.ratio:.2f}x" if measured.latency else cost_in_words(measured)
        # The metric is named once: the line is long enough.
        metric = "" if parts else f"{measured.quality.val.metric} "
        parts.append(f"{candidate.config['precision']['scheme']} {metric}{measured.quality.val.value:.4g} at {speed}")
    return [f"trial {number}: {'; '.join(parts)} ({format_duration(seconds)})"]


def best(run: Run) -> str:
    """The fastest candidate so far that meets the constraints, in words."""
    target = run.request.targets[0]
    question = question_of(run)
    members = fronts.front(list(run.state.candidates.values()), question, target)
    if not members:
        return ""
    first = rankings.ranked("fastest", members, target, higher_is_better=question.higher_is_better)[0]
    measured = first.measured[target]
    speed = f"{measured.latency.ratio:.3f}x of the baseline's time" if measured.latency else cost_in_words(measured)
    quality = measured.quality.val
    return f"{first.id}: {speed}, {quality.metric} {quality.value:.4g} (meets {', '.join(run.request.constraints)})"

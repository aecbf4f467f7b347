"""Trial after trial: ask, try, tell, until trials, time or patience end.

Everything that happens is in the run's record before it counts; the loop holds nothing that could be lost.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time as clock
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.baseline.contexts import Context
from compress.reports import reporting
from compress.run_folder.facts import Skipped
from compress.run_folder.records import Trial
from compress.run_folder.runs import Run, link
from compress.run_folder.storage_failures import is_storage_failure, name_storage_failure
from compress.sampling.first_configs import for_each_depth, halfway, is_worth, strong_params
from compress.sampling.problems import problem_of
from compress.sampling.samplers import grid_params
from compress.sampling.studies import GP_MOST, GP_SHARE, propose
from compress.searching.progress import Progress
from compress.selection import fronts, rankings
from compress.selection.feasibility import excesses
from compress.selection.questions import question_of
from compress.stages import trials as stages_trials
from compress.stages.latency_gate import Gated
from compress.tasks.user_code import describe
from compress.values.candidates import Candidate, Failure
from compress.values.domains import nearest
from compress.values.durations import format_duration
from targets.errors import CompressError, MeasurementError, ModelError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_FEWEST, _FLAT, _MOST = 20, 12, 200
"""Without a limit: at least 20 trials, then until 12 in a row brought no gain, at most 200."""
_GAIN = 0.005
_FRUITLESS = 100
"""Gated or failed configs in a row after which the search gives up."""
_REPEATED, _REPEATED_LATE = 5, 20
"""Trials in a row that fail for one reason after which the search ends: in the very same words or while none is
finished, and otherwise (trainings may diverge in a part of the space)."""
_PASSING = re.compile(r"\S*/\S*|[-+]?\d[\d.]*(e[-+]?\d+)?|\bnan\b|\binf\b")
"""What differs from trial to trial in the words of one failure: paths and numbers."""


@dataclass(frozen=True)
class Budget:
    """When to stop; ``deadline`` is when the last trial must have ended (monotonic seconds)."""

    trials: int | None
    deadline: float | None
    reserve: float


class OutOfTime(BaseException):
    """The time for trials is over. No failure (so no Exception): the next call finishes the trial under way."""


class Loop:
    """Trial after trial."""

    def __init__(
        self, context: Context, budget: Budget, sampler: str | BaseSampler, deterministic: bool, progress: Progress
    ) -> None:
        self.context, self.budget, self.sampler = context, budget, sampler
        self.deterministic, self.progress = deterministic, progress
        self.run_ = context.run
        self.state = context.run.state
        self.problem = problem_of(self.run_)
        self.constraints = self.problem.constraints
        space = context.space
        blocks = 0 if context.training is None else len(context.training.blocks.removable)
        self.strong = strong_params(space, self.problem.dimensions, len(context.profile.groups.prunable), blocks)
        self.grid = grid_params(self.problem.dimensions) if sampler == "grid" else None
        self.fruitless = 0
        self.failures: list[Failure] = []
        """The trials of this call that failed in a row for one reason."""
        self.repeated: str | None = None
        """The reason for which trials failed again and again, in words, where that ended the search."""
        self.ask_seconds: list[float] = []

    def run(self) -> None:
        """Make trials until the budget is spent, the grid is exhausted, or nothing more is gained."""
        if not self._done():
            self._retry_failed()
        while not self._done():
            try:
                trial = self._next()
                if trial is None:
                    self.progress.note("the grid is exhausted")
                    return
                self._try(trial)
            except OutOfTime:
                return
            with contextlib.suppress(OSError):  # the record has it; at the end it is said where it cannot be written
                reporting.write_report(self.run_)

    def _next(self) -> Trial | None:
        """An asked trial that was never finished, else the next config."""
        for trial in self.state.trials.values():
            if trial.state == "asked":
                return trial
        number = len(self.state.trials)
        self.progress.stage("ask")
        chosen = self._params(number)
        if chosen is None:
            return None
        params, attributes = chosen
        self.run_.record.append("asked", trial=number, params=params, system_attrs=attributes)
        return self.state.trials[number]

    def _params(self, number: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        if self.grid is not None:
            return (self.grid[number], {}) if number < len(self.grid) else None
        strong = self._strong(number)
        if strong is not None:
            return strong, {}
        sampler = self._sampler_now()
        start = clock.perf_counter()
        with self.context.cache.timed("sampler"):
            chosen = propose(
                self.problem, self.state.trials, self.state.candidates, number, self.run_.request.seed, sampler
            )
        self.ask_seconds.append(clock.perf_counter() - start)
        return chosen

    def _strong(self, number: int) -> dict[str, Any] | None:
        """A config to begin with that is not tried yet and worth it, then those halfway; None: ask the sampler."""
        tried = [trial.params for trial in self.state.trials.values()]
        for params in self.strong if number < len(self.strong) else ():
            worth = is_worth(float(params.get("prune_ratio", 0.0)), self._seen(params.get("depth")))
            if params not in tried and worth:
                return params
        for base in for_each_depth(self.strong):
            ratio = halfway(self._seen(base.get("depth")))
            if ratio is None:
                continue
            params = {**base, "prune_ratio": nearest(self.problem.dimensions["prune_ratio"], ratio)}
            if params not in tried:
                return params
        return None

    def _seen(self, depth: Any) -> list[tuple[float, float]]:
        """(pruning ratio, excess of quality over its limit) of what ``_strong`` has begun with at this depth."""
        target, zero = self.problem.targets[0], self.problem.baseline
        limits = tuple(c for c in self.constraints if c.quantity in ("quality", "quality_drop"))
        begun = [{**params, "prune_ratio": 0.0} for params in self.strong]
        found = []
        for trial in self.state.trials.values():
            ratio = float(trial.params.get("prune_ratio", 0.0))
            mine = {**trial.params, "prune_ratio": 0.0} in begun and trial.params.get("depth") == depth
            if trial.state != "finished" or not mine or not ratio or not limits:
                continue
            made = [self.state.candidates[name] for name in trial.candidates]
            beyond = [
                max(excesses(c, zero, target, limits, scaled=True).values()) for c in made if target in c.measured
            ]
            if beyond:
                found.append((ratio, min(beyond)))
        return found

    def _sampler_now(self) -> str | BaseSampler:
        """``auto``: the GP for as long as it is cheap beside training, then TPE."""
        if self.sampler != "auto":
            return self.sampler
        if not self.problem.dimensions:
            return "random"
        if self.deterministic:
            return "gp" if len(self.state.candidates) <= GP_MOST else "tpe"
        took = sorted(trial.seconds for trial in self.state.trials.values() if trial.state == "finished")
        recent = self.ask_seconds[-3:]
        if not took or len(recent) < 3:
            return "gp"
        return "tpe" if sorted(recent)[1] > GP_SHARE * took[len(took) // 2] else "gp"

    def _try(self, trial: Trial) -> None:
        done = self.state.count("finished")
        left = None if self.budget.deadline is None else self.budget.deadline - clock.monotonic()
        self.progress.trial(trial.number, done, self.budget.trials, left)
        start = clock.monotonic()
        stage = "prune"

        def say(name: str) -> None:
            nonlocal stage
            stage = name.split(",")[0]
            self.progress.stage(name)
            if self.budget.deadline is not None and clock.monotonic() > self.budget.deadline:
                raise OutOfTime

        try:
            config = self.context.space.config(trial.params)
            outcome = stages_trials.evaluate(self.context, trial.number, config, self.constraints, say)
        except (Exception, SystemExit) as error:
            self._failed(trial, stage, error, clock.monotonic() - start)
            return
        self._ended(trial, outcome, clock.monotonic() - start)

    def _ended(self, trial: Trial, outcome: Gated | stages_trials.Finished, seconds: float) -> None:
        record = self.run_.record
        if isinstance(outcome, Gated):
            self.fruitless += 1
            record.append("gated", trial=trial.number, known=outcome.known, seconds=round(seconds, 3))
            ratio = next(iter(outcome.known.values())).get("ratio")
            best = "" if ratio is None else f" ({ratio:.2f}x at best)"
            self.progress.outcome(
                f"trial {trial.number}: not trained, since its speed or size cannot meet the constraints{best}"
            )
            return
        self.fruitless, self.failures = 0, []
        if outcome.skipped:
            new_ones = (Skipped(trial.number, scheme, cause) for scheme, cause in outcome.skipped)
            record.note("skipped", (*self.state.facts.skipped, *new_ones))
        new, same = self._told_apart(outcome.candidates)
        record.append("finished", trial=trial.number, candidates=new, same=same, seconds=round(seconds, 3))
        for text in _summaries(trial.number, outcome.candidates, self.problem.targets[0], seconds):
            self.progress.outcome(text)
        self.progress.best(_best(self.run_))

    def _told_apart(self, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
        """(candidates that are new, ids of earlier ones that are the very same file): none is listed or read twice."""
        known = {candidate.sha256: candidate.id for candidate in self.state.candidates.values()}
        new: list[Candidate] = []
        same: list[str] = []
        for candidate in candidates:
            if candidate.sha256 in known:
                same.append(known[candidate.sha256])
                self._restore(self.state.candidates.get(same[-1]), candidate)
                shutil.rmtree(self.run_.candidate_folder(candidate.id), ignore_errors=True)
            else:
                known[candidate.sha256] = candidate.id
                new.append(candidate)
        return new, same

    def _restore(self, known: Candidate | None, made: Candidate) -> None:
        """Give a known candidate its file back, where ``--keep front`` had removed it or it was damaged."""
        if known is not None and known.id != "baseline" and not self.run_.is_whole(known):
            for path in self.run_.candidate_folder(made.id).glob("*.*"):
                if path.name != "candidate.json":
                    link(path, self.run_.candidate_folder(known.id) / path.name)

    def _failed(self, trial: Trial, stage: str, error: BaseException, seconds: float) -> None:
        cause = str(error) if isinstance(error, CompressError) else describe(error)
        # What a runtime, a device or a disk did once it need not do again; the stages before it are kept.
        transient = isinstance(error, (MeasurementError, ModelError, MemoryError)) or "out of memory" in cause.lower()
        if is_storage_failure(error):
            transient, cause = True, name_storage_failure(error)
        self.fruitless += 1
        self.run_.record.append(
            "failed", trial=trial.number, stage=stage, cause=cause, transient=transient, seconds=round(seconds, 3)
        )
        failure = Failure(trial.number, stage, cause)
        self.failures = [one for one in self.failures if _same_cause(one, failure)] + [failure]
        self.progress.outcome(f"trial {trial.number}: failed in {stage}: {cause}")

    def _retry_failed(self) -> None:
        """A failure of an earlier call gets another chance where it was transient, or one reason failed many."""
        failed = [trial for trial in self.state.trials.values() if trial.state == "failed"]
        for trial in failed:
            alike = [one for one in failed if one.failure and trial.failure and _same_cause(one.failure, trial.failure)]
            if trial.transient or len(alike) >= _REPEATED:
                self.run_.record.append("retry", trial=trial.number)

    def _done(self) -> bool:
        finished = self.state.count("finished")
        if self.budget.trials is not None and finished >= self.budget.trials:
            return True
        alike = len({failure.cause for failure in self.failures}) == 1
        if len(self.failures) >= (_REPEATED if alike or not finished else _REPEATED_LATE):
            last = self.failures[-1]
            self.repeated = f"{len(self.failures)} trials in a row failed in {last.stage} for one reason: {last.cause}"
            return True
        if self.fruitless >= _FRUITLESS:
            self._give_up()
            return True
        if self.budget.deadline is not None:
            return clock.monotonic() + self._expected() > self.budget.deadline
        return self.budget.trials is None and self._flat(finished)

    def _give_up(self) -> None:
        """Say why nothing came of the last configs; a limit is named only where limits turned some of them away."""
        recent = sorted(self.state.trials)[-self.fruitless :]
        failed = [one.failure for number in recent if (one := self.state.trials[number]).state == "failed"]
        gated = len(recent) - len(failed)
        parts = [f"{gated} were turned away before training"] if gated else []
        if failed and failed[-1] is not None:
            parts.append(f"{len(failed)} failed, the last one in {failed[-1].stage}: {failed[-1].cause}")
        advice = f"; loosen {', '.join(self.run_.request.constraints)}" if gated else ""
        self.progress.note(f"nothing came of {len(recent)} configs in a row: {'; '.join(parts)}{advice}")

    def _expected(self) -> float:
        """Seconds the next trial is likely to take; one that does not fit is not begun."""
        took = sorted(
            trial.seconds for trial in self.state.trials.values() if trial.state == "finished" and trial.seconds > 1
        )
        return took[len(took) // 2] if took else 0.0

    def _flat(self, finished: int) -> bool:
        if finished < _FEWEST:
            return False
        if finished >= _MOST:
            return True
        question = question_of(self.run_)
        everything = list(self.state.candidates.values())
        recent = sorted(t.number for t in self.state.trials.values() if t.state == "finished")[-_FLAT:]
        earlier = [c for c in everything if c.trial is None or c.trial < recent[0]]
        target = self.problem.targets[0]
        now, then = (fronts.front_hypervolume(some, question, target) for some in (everything, earlier))
        return now - then <= _GAIN * max(then, 1e-12)


def _same_cause(one: Failure, other: Failure) -> bool:
    """Whether two trials failed for one reason: in one stage, in the same words but for paths and numbers."""
    return one.stage == other.stage and _PASSING.sub("#", one.cause) == _PASSING.sub("#", other.cause)


def _summaries(number: int, candidates: Sequence[Candidate], target: str, seconds: float) -> list[str]:
    parts: list[str] = []
    for candidate in candidates:
        # The first target's figures; where that does not run it, another's.
        measured = candidate.measured.get(target) or next(iter(candidate.measured.values()))
        speed = f"{measured.latency.ratio:.2f}x" if measured.latency else f"{measured.instructions} instructions"
        # The metric is named once: the line is long enough.
        metric = "" if parts else f"{measured.quality.val.metric} "
        parts.append(f"{candidate.config['precision']['scheme']} {metric}{measured.quality.val.value:.4g} at {speed}")
    return [f"trial {number}: {'; '.join(parts)} ({format_duration(seconds)})"]


def _best(run: Run) -> str:
    """The fastest candidate so far that meets the constraints, in words."""
    target = run.request.targets[0]
    question = question_of(run)
    members = fronts.front(list(run.state.candidates.values()), question, target)
    if not members:
        return ""
    first = rankings.ranked("fastest", members, target, higher_is_better=question.higher_is_better)[0]
    measured = first.measured[target]
    speed = (
        f"{measured.latency.ratio:.3f}x of the baseline's time"
        if measured.latency
        else f"{measured.instructions} instructions"
    )
    quality = measured.quality.val
    return f"{first.id}: {speed}, {quality.metric} {quality.value:.4g} (meets {', '.join(run.request.constraints)})"

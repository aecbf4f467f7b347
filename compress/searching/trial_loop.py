"""Trial after trial: ask, try, tell, until trials, time or patience end.

Everything that happens is in the run's record before it counts; the loop holds nothing that could be lost.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import time as clock
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compress.baseline.contexts import Context
from compress.executing.jobs import Done, Executor, Job
from compress.executing.jobs import Failure as LostTrial
from compress.reports import reporting
from compress.reports.formatting import cost_in_words
from compress.run_folder.facts import Skipped
from compress.run_folder.records import Trial
from compress.run_folder.runs import Run, link
from compress.sampling.network_history import rungs_before
from compress.sampling.network_spaces import why_not_networks
from compress.sampling.problems import Problem, problem_of
from compress.searching.config_proposals import ConfigProposals
from compress.searching.network_knowledge import NetworkKnowledge, Time
from compress.searching.network_search import NetworkSearch
from compress.searching.progress import Progress
from compress.searching.proposals import Proposer, chooses_networks
from compress.selection import fronts, rankings
from compress.selection.questions import question_of
from compress.stages import trials as stages_trials
from compress.stages.latency_gate import Gated
from compress.values.candidates import Candidate, Failure
from compress.values.durations import format_duration
from compress.values.networks import network_of

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_FEWEST, _FLAT, _MOST = 20, 12, 200
"""Without a limit: at least 20 trials, then until 12 in a row brought no gain, at most 200."""
_GAIN = 0.005
_EARLY = 5.0
"""Seconds that a search must end before its time for that to be said."""
_REPORTS = 20.0
"""Times as long as the report took to write it is not written again."""
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


class Loop:
    """Asks for trials while there is room for them, and writes down what comes of each."""

    def __init__(
        self, context: Context, budget: Budget, sampler: str | BaseSampler, deterministic: bool, progress: Progress,
        executor: Executor,
    ) -> None:  # fmt: skip
        self.context, self.budget, self.progress = context, budget, progress
        self.run_ = context.run
        self.state = context.run.state
        self.problem = problem_of(self.run_)
        self.executor = executor
        self.proposer = _proposer(
            context, self.problem, sampler, budget, progress, deterministic=deterministic, workers=executor.workers
        )
        self.under_way: set[int] = set()
        """Numbers of the trials that are being carried out."""
        self.retried: set[int] = set()
        """Trials that were handed over once more in this call, since their worker was lost or its memory too small."""
        self._stages: dict[int, str] = {}
        """What each worker does."""
        self.fruitless = 0
        self.failures: list[Failure] = []
        """The trials of this call that failed in a row for one reason."""
        self.repeated: str | None = None
        """The reason for which trials failed again and again, in words, where that ended the search."""
        self._reported = (-math.inf, 0.0)
        """When the report was written last, and how long that took."""

    def run(self) -> None:
        """Make trials until the budget is spent, the grid is exhausted, or nothing more is gained."""
        if not self._done():
            self._retry_failed()
        is_over = False
        while True:
            is_exhausted = not is_over and self._fill()
            if not self.under_way:
                if is_exhausted:
                    self._say_ended_early()
                return
            for done in self.executor.wait(self._heard, self._left):
                is_over |= not self._take(done)
            self._report()

    def _fill(self) -> bool:
        """Hand over trials while there is room; whether nothing was left to hand over."""
        while self.executor.has_room and not self._done():
            with self.executor.beside():
                trial = self._next()
            if trial is None:
                return True
            self._submit(trial, smaller=False)
        return False

    def _submit(self, trial: Trial, *, smaller: bool) -> None:
        job = Job(trial.number, trial.params, self._plan(trial), self._left, smaller)
        self.under_way.add(trial.number)
        worker = self.executor.submit(job)
        self.run_.record.append("begun", trial=trial.number, worker=worker)
        self.progress.trial(trial.number, self.state.count("finished"), self.budget.trials, self._left)

    @property
    def _left(self) -> float | None:
        """Seconds that are left for trials; None: no limit."""
        return None if self.budget.deadline is None else self.budget.deadline - clock.monotonic()

    def _heard(self, worker: int, stage: str) -> None:
        """A worker says what it is doing."""
        if self.executor.workers == 1:
            self.progress.stage(stage)
            return
        self._stages[worker] = stage
        self.progress.stage(" | ".join(f"{number + 1}: {said}" for number, said in sorted(self._stages.items())))

    def _take(self, done: Done) -> bool:
        """Write down what came of a trial; False where the time was over before it ended."""
        self.under_way.discard(done.number)
        trial, outcome = self.state.trials[done.number], done.outcome
        if outcome is None:
            return False
        if isinstance(outcome, LostTrial):
            may_fit = outcome.lost or (outcome.out_of_memory and self.executor.workers > 1)
            if may_fit and trial.number not in self.retried:
                self._try_again(trial, outcome)
            else:
                self._failed(trial, outcome, done.seconds)
        else:
            self._ended(trial, outcome, done)
        return True

    def _try_again(self, trial: Trial, lost: LostTrial) -> None:
        """Hand a trial over once more; in smaller batches where memory was the cause."""
        self.retried.add(trial.number)
        how = ", in batches of half the size" if lost.out_of_memory else ""
        self.progress.outcome(f"trial {trial.number}: {lost.cause}; tried once more{how}")
        self._submit(trial, smaller=lost.out_of_memory)

    def _report(self) -> None:
        """Say what is best so far and write the report, unless that would take more than a twentieth of the time."""
        at, took = self._reported
        start = clock.monotonic()
        if start - at < _REPORTS * took:
            return
        self.progress.best(_best(self.run_))
        with contextlib.suppress(OSError):  # the record has it; at the end it is said where it cannot be written
            reporting.write_report(self.run_)
        self._reported = (clock.monotonic(), clock.monotonic() - start)

    def _say_ended_early(self) -> None:
        left = self._left
        if isinstance(self.proposer, NetworkSearch) and left is not None and left > _EARLY:
            self.progress.note(
                f"no training that is left is expected to improve on what is there: ended {format_duration(left)} early"
            )

    def note_learnt(self) -> None:
        """Write down what was learnt about networks, and how likely each candidate is to hold on test."""
        if not isinstance(self.proposer, NetworkSearch):
            return
        learnt, certainties = self.proposer.learnt(), self.proposer.certainties()
        if learnt is not None and learnt != self.state.facts.learnt:
            self.run_.record.note("learnt", learnt)
        if certainties and certainties != dict(self.state.facts.certainties):
            self.run_.record.note("certainties", certainties)

    def _next(self) -> Trial | None:
        """An asked trial that was never finished and is not under way, else the next config."""
        for trial in self.state.trials.values():
            if trial.state == "asked" and trial.number not in self.under_way:
                return trial
        number = len(self.state.trials)
        self.progress.stage("ask")
        chosen = self.proposer.propose(number)
        if chosen is None:
            return None
        more = {name: v for name in ("after", "precisions", "why") if (v := getattr(chosen, name)) not in (None, {})}
        self.run_.record.append(
            "asked", trial=number, params=chosen.params, system_attrs=chosen.system_attrs, **more
        )  # fmt: skip
        return self.state.trials[number]

    def _plan(self, trial: Trial) -> stages_trials.TrialPlan:
        """What the trial does beyond its config; where the weights it goes on from are gone, it begins anew."""
        reads_train = isinstance(self.proposer, NetworkSearch) and network_of(trial.params) is not None
        further = None
        if trial.after is not None and trial.after in self.state.trials:
            before = self.state.trials[trial.after]
            paths = [self.run_.candidate_folder(name) / "weights.pt" for name in before.candidates]
            kept = [path for path in paths if path.is_file()]
            if kept:
                further = stages_trials.Furthering(kept[0], rungs_before(trial, self.state.trials))
        return stages_trials.TrialPlan(further, trial.precisions, reads_train)

    def _ended(self, trial: Trial, outcome: Gated | stages_trials.Finished, done: Done) -> None:
        record, seconds, train_seconds = self.run_.record, done.seconds, done.train_seconds
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
        drop = {} if outcome.train_drop is None else {"train_drop": outcome.train_drop}
        took = {"train_seconds": round(train_seconds, 3)} if train_seconds else {}
        record.append(
            "finished", trial=trial.number, candidates=new, same=same, seconds=round(seconds, 3), **drop, **took
        )  # fmt: skip
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

    def _failed(self, trial: Trial, lost: LostTrial, seconds: float) -> None:
        self.fruitless += 1
        self.run_.record.append(
            "failed", trial=trial.number, stage=lost.stage, cause=lost.cause, transient=lost.transient,
            seconds=round(seconds, 3),
        )  # fmt: skip
        failure = Failure(trial.number, lost.stage, lost.cause)
        self.failures = [one for one in self.failures if _same_cause(one, failure)] + [failure]
        self.progress.outcome(f"trial {trial.number}: failed in {lost.stage}: {lost.cause}")

    def _retry_failed(self) -> None:
        """A failure of an earlier call gets another chance where it was transient, or one reason failed many."""
        failed = [trial for trial in self.state.trials.values() if trial.state == "failed"]
        for trial in failed:
            alike = [one for one in failed if one.failure and trial.failure and _same_cause(one.failure, trial.failure)]
            if trial.transient or len(alike) >= _REPEATED:
                self.run_.record.append("retry", trial=trial.number)

    def _done(self) -> bool:
        finished = self.state.count("finished")
        coming = sum(self.state.trials[number].after is None for number in self.under_way)
        if self.budget.trials is not None and finished + coming >= self.budget.trials:
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
            # Whoever chooses networks gives trainings the time that there is.
            expected = 0.0 if isinstance(self.proposer, NetworkSearch) else self._expected()
            return clock.monotonic() + expected > self.budget.deadline
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


def _proposer(
    context: Context, problem: Problem, sampler: str | BaseSampler, budget: Budget, progress: Progress, *,
    deterministic: bool, workers: int,
) -> Proposer:  # fmt: skip
    """Networks are chosen by their costs where that is asked for or nothing is, and the space leaves them open."""
    if chooses_networks(sampler, budget.trials) and context.training is not None:
        groups, space = len(context.profile.groups.prunable), context.run.request.space
        blocks = 0 if space.depth == 0.0 else len(context.training.blocks.removable)
        why_not = why_not_networks(space, groups, blocks)
        if why_not is None:
            known = NetworkKnowledge(
                context, context.training, problem, Time(clock.monotonic(), budget.deadline), progress
            )
            configs = ConfigProposals(context, problem, "auto", progress, deterministic=deterministic, workers=workers)
            return NetworkSearch(known, configs, budget.trials, workers)
        if sampler == "cost-aware":
            progress.note(f"networks cannot be chosen by their costs: {why_not}; the sampler is 'auto'")
    progress.stage("profile")
    if context.profile.groups.prunable:
        # Its configs lean by it: scanned now, so that no trial takes the time.
        _ = context.profile.robustness
    return ConfigProposals(
        context, problem, "auto" if sampler == "cost-aware" else sampler, progress, deterministic=deterministic,
        workers=workers,
    )  # fmt: skip


def _same_cause(one: Failure, other: Failure) -> bool:
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


def _best(run: Run) -> str:
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

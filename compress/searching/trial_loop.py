"""Trial after trial: ask, try, tell, until trials, time or patience end.

Everything that happens is in the run's record before it counts; the loop holds nothing that could be lost.
"""

from __future__ import annotations

import contextlib
import math
import time as clock
from typing import TYPE_CHECKING

from compress.baseline.contexts import Context
from compress.executing.jobs import Done, Executor, Job
from compress.executing.jobs import Failure as LostTrial
from compress.reports import reporting
from compress.run_folder.records import Trial
from compress.sampling.first_configs import is_untouched
from compress.sampling.network_history import rungs_before
from compress.sampling.network_spaces import why_not_networks
from compress.sampling.problems import Problem, problem_of
from compress.searching.budgets import Budget
from compress.searching.config_proposals import ConfigProposals
from compress.searching.first_candidates import best_untouched, complete
from compress.searching.network_knowledge import NetworkKnowledge, Time
from compress.searching.network_search import NetworkSearch
from compress.searching.progress import Progress
from compress.searching.proposals import Proposer, chooses_networks
from compress.searching.trial_recording import TrialRecorder, best, same_cause
from compress.selection import fronts
from compress.selection.questions import question_of
from compress.stages import trials as stages_trials
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
_NOTHING_NEW = 20
"""Finished trials in a row without a new file after which a search without a number of trials ends."""
_REPEATED, _REPEATED_LATE = 5, 20
"""Trials in a row that fail for one reason after which the search ends: in the very same words or while none is
finished, and otherwise (trainings may diverge in a part of the space)."""


class Loop:
    """Asks for trials while there is room for them, and writes down what comes of each."""

    def __init__(
        self, context: Context, budget: Budget, sampler: str | BaseSampler, deterministic: bool, progress: Progress,
        executor: Executor, recorder: TrialRecorder,
    ) -> None:  # fmt: skip
        """``recorder``: has written down what came of the first candidates."""
        self.context, self.budget, self.progress = context, budget, progress
        self.run_ = context.run
        self.state = context.run.state
        self.problem = problem_of(self.run_)
        self.executor, self.recorder = executor, recorder
        self.proposer = _proposer(
            context, self.problem, sampler, budget, progress, deterministic=deterministic, workers=executor.workers
        )
        self.under_way: set[int] = set()
        """Numbers of the trials that are being carried out."""
        self.retried: set[int] = set()
        """Trials that were handed over once more in this call, since their worker was lost or its memory too small."""
        self._stages: dict[int, str] = {}
        """What each worker does."""
        self.repeated: str | None = None
        """The reason for which trials failed again and again, in words, where that ended the search."""
        self._reported = (-math.inf, 0.0)
        """When the report was written last, and how long that took."""

    def run(self) -> None:
        """Make trials until the budget is spent, the grid is exhausted, or nothing more is gained."""
        if not self._complete_first():
            return
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

    def _complete_first(self) -> bool:
        """Make the files of the untouched network that had to wait until it was known which layers lose much.

        False where the time was over before.
        """
        first = self.state.trials.get(0)
        if first is None or first.state != "finished" or first.precisions is None or network_of(first.params):
            return True
        untouched = [one for one in self.state.trials.values() if is_untouched(one.params)]
        made = {name for one in untouched for name in one.precisions or ()}
        names = [one.name for one in self.context.targets.variants if one.name not in made]
        # In the way in which static int8 loses least.
        chosen = best_untouched(self.state, self.problem) or first
        return not names or complete(self.context, self.recorder, chosen, names, self._left)

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
                self.recorder.failed(trial, outcome, done.seconds)
        else:
            self.recorder.ended(trial, outcome, done)
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
        self.progress.best(best(self.run_))
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

    def _retry_failed(self) -> None:
        """A failure of an earlier call gets another chance where it was transient, or one reason failed many."""
        failed = [trial for trial in self.state.trials.values() if trial.state == "failed"]
        for trial in failed:
            alike = [one for one in failed if one.failure and trial.failure and same_cause(one.failure, trial.failure)]
            if trial.transient or len(alike) >= _REPEATED:
                self.run_.record.append("retry", trial=trial.number)

    def _done(self) -> bool:
        finished = self.state.count("finished")
        coming = sum(self.state.trials[number].after is None for number in self.under_way)
        if self.budget.trials is not None and finished + coming >= self.budget.trials:
            return True
        alike = len({failure.cause for failure in self.recorder.failures}) == 1
        if len(self.recorder.failures) >= (_REPEATED if alike or not finished else _REPEATED_LATE):
            last = self.recorder.failures[-1]
            count = len(self.recorder.failures)
            self.repeated = f"{count} trials in a row failed in {last.stage} for one reason: {last.cause}"
            return True
        if self.recorder.fruitless >= _FRUITLESS:
            self._give_up()
            return True
        if self.budget.trials is None and self.recorder.nothing_new >= _NOTHING_NEW:
            self.progress.note(
                f"the last {self.recorder.nothing_new} configs gave no file that was not there already: there is "
                "nothing else to try on this network"
            )
            return True
        if self.budget.deadline is not None:
            # Whoever chooses networks gives trainings the time that there is.
            expected = 0.0 if isinstance(self.proposer, NetworkSearch) else self._expected()
            return clock.monotonic() + expected > self.budget.deadline
        return self.budget.trials is None and self._flat(finished)

    def _give_up(self) -> None:
        """Say why nothing came of the last configs; a limit is named only where limits turned some of them away."""
        recent = sorted(self.state.trials)[-self.recorder.fruitless :]
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

"""The first candidates: the untouched network in what can be made of it before anything else is known of it.

They take the baseline's file alone. So they are there before a file is brought into torch, a network profiled or a
teacher asked, and a search that ends early, or never gets that far, has something to show. Where static int8 of all
operators loses too much, it is tried on fewer of them, with other ranges; where no time is given, that is left to the
trials that are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from compress.baseline.contexts import Context
from compress.executing.evaluating import evaluate_job
from compress.executing.jobs import Done, Failure, Job
from compress.run_folder.records import State, Trial
from compress.sampling.first_configs import is_untouched, strong_params
from compress.sampling.problems import Problem
from compress.searching.trial_recording import TrialRecorder, best
from compress.selection.feasibility import excesses
from compress.stages.trials import TrialPlan
from compress.values.configs import QAT
from compress.values.domains import Choice, nearest
from compress.values.time_limits import TimeLimit

_LATER = ("mixed", QAT)
"""What takes a profile, or training."""
_STATIC = "int8"
_QUALITIES = ("quality", "quality_drop")
QUANTIZING = ("int8_operators", "calibration")
"""What static int8 is tried with in more than one way, where it loses too much."""
_FEWER: tuple[dict[str, Any], ...] = (
    {"int8_operators": "products"},
    {"int8_operators": "products", "calibration": "percentile"},
)
"""What static int8 is tried with where it loses too much, one after the other."""


def make_first_candidates(context: Context, recorder: TrialRecorder, sampler: object, time: TimeLimit) -> None:
    """Make the trial of the untouched network, if the run has none yet and the search would begin with it."""
    state, record = context.run.state, context.run.record
    begun = state.trials.get(0)
    if sampler == "grid" or time.is_over or (begun is not None and begun.state != "asked"):
        return
    strong = strong_params(context.space, recorder.problem.dimensions, 0)
    variants = context.targets.variants
    names = [one.name for one in variants if one.scheme not in (*_LATER, "fp32")]
    static = [one.name for one in variants if one.scheme == _STATIC]
    if begun is None:
        if not strong or not is_untouched(strong[0]) or not names:
            return
        # Nobody knows yet what can be cut; nothing is. What usually is the fastest goes first.
        params = {**strong[0], "prune_ratio": 0.0}
        record.append("asked", trial=0, params=params, system_attrs={}, precisions=static or names)
    elif not is_untouched(begun.params) or begun.precisions is None:
        return
    first = state.trials[0]
    if not _make(context, recorder, first, time) or first.state != "finished":
        return
    others = [name for name in names if name not in (first.precisions or ())]
    if others and not complete(context, recorder, first, others, time.left):
        return
    for changes in _FEWER if time.end is not None else ():
        if _is_good(recorder) or not _is_offered(context, changes):
            return
        number = len(state.trials)
        # After the first one: the same network once more, which counts as one trial with it.
        record.append(
            "asked", trial=number, params={**first.params, **changes}, system_attrs={}, after=0, precisions=static
        )  # fmt: skip
        if not _make(context, recorder, state.trials[number], time):
            return


def best_untouched(state: State, problem: Problem) -> Trial | None:
    """Of the trials that leave the network as it is, the one whose static int8 loses least beyond the limits.

    The first one where none has such a file, or none loses less; None before there is one.
    """
    tried = [one for one in state.trials.values() if is_untouched(one.params) and one.state == "finished"]
    least = {one.number: beyond_limits(state, problem, one.candidates) for one in tried}
    return min(tried, key=lambda one: (least[one.number], one.number), default=None)


def complete(
    context: Context, recorder: TrialRecorder, trial: Trial, precisions: Sequence[str], seconds: float | None
) -> bool:
    """Make more files of a finished trial's network; False where the time, ``seconds``, was over before.

    One that fails is noted, and the trial stays what it is.
    """
    done = _evaluated(context, recorder, trial, precisions, seconds)
    recorder.completed(trial, precisions, done)
    return done.outcome is not None


def _make(context: Context, recorder: TrialRecorder, trial: Trial, time: TimeLimit) -> bool:
    """Carry out a trial of the untouched network; False where the time was over before."""
    state = context.run.state
    recorder.progress.trial(trial.number, state.count("finished"), None, time.left)
    context.run.record.append("begun", trial=trial.number, worker=0)
    done = _evaluated(context, recorder, trial, trial.precisions, time.left)
    if isinstance(done.outcome, Failure):
        recorder.failed(trial, done.outcome, done.seconds)
    elif done.outcome is not None:
        recorder.ended(trial, done.outcome, done)
        recorder.progress.best(best(context.run))
    return done.outcome is not None


def _evaluated(
    context: Context, recorder: TrialRecorder, trial: Trial, precisions: Sequence[str] | None, seconds: float | None
) -> Done:
    names = None if precisions is None else tuple(precisions)
    job = Job(trial.number, trial.params, TrialPlan(precisions=names), seconds)
    return evaluate_job(context, recorder.problem.constraints, job, recorder.progress.stage)


def _is_good(recorder: TrialRecorder) -> bool:
    """Whether some static int8 file is within the limits on quality, or there is none to be bettered."""
    found = recorder.state.candidates
    any_static = any(one.config["precision"]["scheme"] == _STATIC for one in found.values())
    return not any_static or beyond_limits(recorder.state, recorder.problem, list(found)) <= 0.0


def beyond_limits(state: State, problem: Problem, names: Sequence[str], scheme: str = _STATIC) -> float:
    """How far the best file of a scheme among these candidates is beyond the limits on quality; infinite without one.

    ``names``: ids of candidates. Zero and less is within the limits.
    """
    target, zero = problem.targets[0], problem.baseline
    limits = tuple(one for one in problem.constraints if one.quantity in _QUALITIES)
    made = [state.candidates[name] for name in names if name in state.candidates]
    found = [one for one in made if one.config["precision"]["scheme"] == scheme and target in one.measured]
    beyond = [max(excesses(one, zero, target, limits, scaled=True).values(), default=0.0) for one in found]
    return min(beyond, default=math.inf)


def _is_offered(context: Context, changes: dict[str, Any]) -> bool:
    """Whether the space searches the settings in ``changes``."""
    domains = context.space.domains()
    asked = [(domains[name], value) for name, value in changes.items()]
    return all(isinstance(domain, Choice) and nearest(domain, value) == value for domain, value in asked)

"""The search: ask, try, tell, until trials, time or patience end; then confirm, and report.

Everything that happens is in the run's record before it counts; this module holds no state that could be lost.
"""

from __future__ import annotations

import os
import time as clock
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import targets as targets_package
from compress import metrics, preparing, pruning, quantities, reporting, runs, selecting, trials
from compress.caching import Cache
from compress.confirming import confirm
from compress.contexts import Context
from compress.durations import format_duration, parse_duration
from compress.importances import problem_of
from compress.latencies import FINAL
from compress.loading import describe
from compress.picking import front as front_of
from compress.picking import hypervolume
from compress.progress import Progress, Silent
from compress.records import Record, Trial
from compress.results import Candidate
from compress.run_results import Result, removed_channels
from compress.runs import Request, Run
from compress.sampling import GP_MOST, GP_SHARE, check_sampler, grid_params, propose, strong_params
from compress.spaces import SearchSpace
from compress.tasks import Task
from targets import environment
from targets.errors import CompressError, RequestError, RunError, TransientError
from targets.target import Target

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_FEWEST, _FLAT, _MOST = 20, 12, 200
"""Without a limit: at least 20 trials, then until 12 in a row brought no gain, at most 200."""
_GAIN = 0.005
_FRUITLESS = 100
"""Gated or failed configs in a row after which the search gives up."""


@dataclass(frozen=True)
class Limits:
    """When to stop; ``deadline`` is when the last trial must have ended (monotonic seconds)."""

    trials: int | None
    deadline: float | None
    reserve: float
    keep: str = "all"


class _OutOfTime(Exception):
    """The time for trials is over; the one under way is finished by the call that continues."""


def search(
    task: Task,
    target: str | Target | Sequence[str | Target] | None = None,
    objectives: Sequence[str] | None = None,
    constraints: Sequence[str] | None = None,
    trials: int | None = None,
    time: str | float | None = None,
    seed: int | None = None,
    sampler: str | BaseSampler | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    *,
    space: SearchSpace | None = None,
    pick: str | None = None,
    keep: str = "all",
    workers: int = 1,
    progress: Progress | None = None,
    command: str | None = None,
) -> Result:
    """Search for smaller, faster versions of ``task``'s model, and confirm the best.

    ``target``: one or several (default ``ort-cpu``). ``objectives``: two or more of quality, latency, size, memory,
    instructions (default quality and latency). ``constraints``: default ``quality_drop<=0.01``. ``trials`` of the
    whole run, ``time`` of this call, whichever ends first; neither: until the gain has flattened. ``seed``: default
    0. ``sampler``: a name or an Optuna ``BaseSampler``. ``device``: where to fine-tune. ``out``: the run's folder
    (default ``runs/TASK-NAME``); a run that is there is continued, and what is not given stays as it was.
    ``pick``: what ``best/`` holds. ``keep``: ``all`` artifacts, or those of the ``front``.

    Raises RequestError (and nothing in ``out`` is touched) for what cannot be asked; failed trials do not raise.
    """
    start = clock.monotonic()
    folder = Path(out) if out is not None else Path("runs") / task.name
    places = _targets(target)
    wanted = _Wanted(task, objectives, constraints, seed, sampler, space, pick, keep, trials, time)
    before = runs.read_request(folder)
    request = _request(wanted, before, places, command)
    places = places or [targets_package.get(name) for name in request.targets]
    splits = preparing.read_splits(task)
    preparing.check_identity(
        before.task if before else None, preparing.identity(task, splits, metrics.get(task.metric)), folder
    )
    runs.check_writable(folder)
    record = Record(folder / "record.jsonl")
    try:
        known = record.state.facts.get("architecture")
        if known and preparing.architecture(task) not in ("", known):
            raise RunError(f"{str(folder)!r} is the run of another model than this {task.name!r}; choose another --out")
        run = Run(folder, record, request)
        return _search(run, task, places, splits, wanted, sampler, device, start, progress or Silent())
    finally:
        for place in places:
            place.close()
        record.close()


@dataclass(frozen=True)
class _Wanted:
    """The arguments of a call; None: not given."""

    task: Task
    objectives: Sequence[str] | None
    constraints: Sequence[str] | None
    seed: int | None
    sampler: str | BaseSampler | None
    space: SearchSpace | None
    pick: str | None
    keep: str
    trials: int | None
    time: str | float | None


def _targets(target: str | Target | Sequence[str | Target] | None) -> list[Target]:
    if target is None:
        return []
    several = [target] if isinstance(target, (str, Target)) else list(target)
    found = [targets_package.get(one) for one in several]
    names = [one.name for one in found]
    if len(set(names)) != len(names):
        raise RequestError(f"targets {names}: each may be given once")
    return found


def _request(wanted: _Wanted, before: Request | None, places: list[Target], command: str | None) -> Request:
    """What this call asks: what is given replaces, what is not given stays."""
    if before is not None and wanted.seed is not None and wanted.seed != before.seed:
        raise RunError(
            f"the run was begun with seed {before.seed}; continue it with that, or choose another --out for seed {wanted.seed}"
        )
    if wanted.keep not in ("all", "front"):
        raise RequestError(f"keep {wanted.keep!r}: use 'all' or 'front'")
    if wanted.trials is not None and wanted.trials < 1:
        raise RequestError(f"trials={wanted.trials}: at least 1 is needed")
    parse_duration(wanted.time)
    if wanted.pick is not None and wanted.pick not in selecting.PICKS:
        raise RequestError(f"pick {wanted.pick!r}: use one of {', '.join(selecting.PICKS)}")
    sampler = check_sampler(wanted.sampler) if wanted.sampler is not None or before is None else before.sampler
    default = Request(
        None, SearchSpace(), ("quality", "latency"), ("quality_drop<=0.01",), ("ort-cpu",), 0, "auto", "fastest", {}
    )
    old = before or default
    counted = bool(places) and places[0].counted and before is None and wanted.objectives is None
    objectives = (
        tuple(wanted.objectives) if wanted.objectives else (("quality", "instructions") if counted else old.objectives)
    )
    constraints = tuple(wanted.constraints) if wanted.constraints else old.constraints
    parsed = [quantities.parse_constraint(text) for text in constraints]
    names = tuple(place.name for place in places) or old.targets
    versions = environment.describe(("paretopress", "torch", "onnx", "onnxruntime", "optuna", "torch-pruning", "numpy"))
    metric = metrics.get(wanted.task.metric)
    return replace(
        old,
        space=wanted.space or old.space,
        objectives=quantities.parse_objectives(objectives),
        constraints=tuple(c.text for c in parsed),
        targets=names,
        seed=old.seed if wanted.seed is None else wanted.seed,
        sampler=sampler,
        pick=wanted.pick or old.pick,
        environment={**versions, "command": command or old.environment.get("command")},
        higher_is_better=metric.higher_is_better,
        bounded=metric.bounded,
    )


def _search(
    run: Run, task: Task, places: list[Target], splits: preparing.Splits, wanted: _Wanted,
    sampler: str | BaseSampler | None, device: str, start: float, progress: Progress,
) -> Result:  # fmt: skip
    run.write_request()
    run.record.append("call", pid=os.getpid(), at=clock.time())
    cache = Cache(
        run.folder / "cache",
        lambda name, cached, s: run.record.append("stage", stage=name, cached=cached, seconds=round(s, 5)),
    )
    cache.sweep()
    for text in splits.warnings:
        progress.note(f"warning: {text}")
    run.record.append("fact", name="warnings", value=list(splits.warnings))
    run.record.append("fact", name="targets", value={place.name: place.describe() for place in places})
    deterministic = all(place.deterministic for place in places)
    space = run.request.space
    context = preparing.prepare(task, run, cache, places, splits, space, device, progress.stage)
    run.record.append("fact", name="groups", value=[group.name for group in context.profile.groups.prunable])
    result = Result(run, _module_maker(context))
    _catch_up(context, progress)
    limits = _limits(wanted, start)
    used = sampler if sampler is not None and not isinstance(sampler, str) else run.request.sampler
    try:
        _Loop(context, limits, used, deterministic, progress).run()
        final = replace(FINAL, seconds=_final_seconds(limits, len(context.targets)))
        confirm(context, reporting.question_of(run), final, progress.stage)
    finally:
        # Also when interrupted: everything finished so far is in the report.
        report = reporting.write_report(run)
        progress.close()
    _finish(run, cache, report, wanted.keep, progress)
    return result


def _finish(run: Run, cache: Cache, report: dict[str, Any], keep: str, progress: Progress) -> None:
    progress.stage("report")
    with cache.timed("report"):
        reporting.write_best(run, report)
        if keep == "front":
            _keep_front(run, report)
    # Written last, so that the report's own time is in it, and the HTML agrees with it to the last digit.
    start = clock.perf_counter()
    reporting.write_html(run, report=report)
    run.record.append("stage", stage="report", cached=False, seconds=round(clock.perf_counter() - start, 5))
    reporting.write_report(run)


def _limits(wanted: _Wanted, start: float) -> Limits:
    seconds = parse_duration(wanted.time)
    if seconds is None:
        return Limits(wanted.trials, None, 0.0, wanted.keep)
    reserve = min(60.0, max(5.0, 0.12 * seconds))
    return Limits(wanted.trials, start + seconds - reserve, reserve, wanted.keep)


def _final_seconds(limits: Limits, count: int) -> float:
    """Seconds a process of the confirmation may measure, so that all of them fit into what is kept for it."""
    if limits.deadline is None:
        return FINAL.seconds
    return max(1.0, min(FINAL.seconds, 0.6 * limits.reserve / FINAL.processes / count))


class _Loop:
    """Trial after trial."""

    def __init__(
        self, context: Context, limits: Limits, sampler: str | BaseSampler, deterministic: bool, progress: Progress
    ) -> None:
        self.context, self.limits, self.sampler = context, limits, sampler
        self.deterministic, self.progress = deterministic, progress
        self.run_ = context.run
        self.state = context.run.state
        self.problem = problem_of(self.run_)
        self.constraints = self.problem.constraints
        space = context.space
        self.strong = strong_params(space, self.problem.dimensions, len(context.profile.groups.prunable))
        self.grid = grid_params(self.problem.dimensions) if sampler == "grid" else None
        self.fruitless = 0
        self.ask_seconds: list[float] = []

    def run(self) -> None:
        """Until a limit is reached."""
        self._retry_failed()
        while not self._done():
            try:
                trial = self._next()
                if trial is None:
                    self.progress.note("the grid is exhausted")
                    return
                self._try(trial)
            except _OutOfTime:
                return
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
        tried = [trial.params for trial in self.state.trials.values()]
        for params in self.strong:
            if params not in tried and number < len(self.strong):
                return params, {}
        sampler = self._sampler_now()
        start = clock.perf_counter()
        with self.context.cache.timed("sampler"):
            chosen = propose(self.problem, self.state.trials, self.state.candidates, number, self.context.seed, sampler)
        self.ask_seconds.append(clock.perf_counter() - start)
        return chosen

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
        left = None if self.limits.deadline is None else self.limits.deadline - clock.monotonic()
        self.progress.trial(trial.number, done, self.limits.trials, left)
        start = clock.monotonic()
        stage = "prune"

        def say(name: str) -> None:
            nonlocal stage
            stage = name.split(",")[0]
            self.progress.stage(name)
            if self.limits.deadline is not None and clock.monotonic() > self.limits.deadline:
                raise _OutOfTime

        try:
            config = self.context.space.config(trial.params)
            outcome = trials.evaluate(self.context, trial.number, config, self.constraints, say)
        except (_OutOfTime, KeyboardInterrupt):
            raise
        except Exception as error:
            self._failed(trial, stage, error, clock.monotonic() - start)
            return
        self._ended(trial, outcome, clock.monotonic() - start)

    def _ended(self, trial: Trial, outcome: trials.Gated | trials.Finished, seconds: float) -> None:
        record = self.run_.record
        if isinstance(outcome, trials.Gated):
            self.fruitless += 1
            record.append("gated", trial=trial.number, known=outcome.known, seconds=round(seconds, 3))
            ratio = next(iter(outcome.known.values())).get("ratio")
            self.progress.outcome(
                f"trial {trial.number}: gated before training{'' if ratio is None else f', {ratio:.2f}x at best'}"
            )
            return
        self.fruitless = 0
        if outcome.skipped:
            known = list(self.state.facts.get("skipped", []))
            record.append("fact", name="skipped", value=known + [[trial.number, s, c] for s, c in outcome.skipped])
        record.append("finished", trial=trial.number, candidates=list(outcome.candidates), seconds=round(seconds, 3))
        for text in _summaries(trial.number, outcome.candidates, self.problem.targets[0], seconds):
            self.progress.outcome(text)
        self.progress.best(_best(self.run_))

    def _failed(self, trial: Trial, stage: str, error: Exception, seconds: float) -> None:
        cause = str(error) if isinstance(error, CompressError) else describe(error)
        transient = isinstance(error, (TransientError, MemoryError)) or "out of memory" in cause.lower()
        self.fruitless += 1
        self.run_.record.append(
            "failed", trial=trial.number, stage=stage, cause=cause, transient=transient, seconds=round(seconds, 3)
        )
        self.progress.outcome(f"trial {trial.number}: failed in {stage}: {cause}")

    def _retry_failed(self) -> None:
        """A transient failure of an earlier call gets another chance."""
        for trial in self.state.trials.values():
            if trial.state == "failed" and trial.transient:
                self.run_.record.append("retry", trial=trial.number)

    def _done(self) -> bool:
        finished = self.state.count("finished")
        if self.limits.trials is not None and finished >= self.limits.trials:
            return True
        if self.fruitless >= _FRUITLESS:
            self.progress.note(
                f"{_FRUITLESS} configs in a row were gated or failed; loosen {', '.join(self.run_.request.constraints)}"
            )
            return True
        if self.limits.deadline is not None:
            return clock.monotonic() + self._expected() > self.limits.deadline
        return self.limits.trials is None and self._flat(finished)

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
        question = reporting.question_of(self.run_)
        everything = list(self.state.candidates.values())
        recent = sorted(t.number for t in self.state.trials.values() if t.state == "finished")[-_FLAT:]
        earlier = [c for c in everything if c.trial is None or c.trial < recent[0]]
        target = self.problem.targets[0]
        now, then = (hypervolume(some, question, target) for some in (everything, earlier))
        return now - then <= _GAIN * max(then, 1e-12)


def _catch_up(context: Context, progress: Progress) -> None:
    """Measure what the record has on targets that came later."""
    run = context.run
    for trial in list(run.state.trials.values()):
        missing = [
            t for t in context.targets
            if any(t.name not in run.state.candidates[c].measured for c in trial.candidates)
        ]  # fmt: skip
        if trial.state != "finished" or not missing:
            continue
        progress.stage(f"measure trial {trial.number} on {', '.join(t.name for t in missing)}")
        config = context.space.config(trial.params)
        outcome = trials.evaluate(context, trial.number, config, (), progress.stage)
        if isinstance(outcome, trials.Finished):
            for candidate in outcome.candidates:
                old = run.state.candidates.get(candidate.id)
                if old is not None:
                    # What was confirmed before stays; only the new targets are added.
                    run.record.append(
                        "candidate", candidate=replace(old, measured={**candidate.measured, **old.measured})
                    )


def _module_maker(context: Context) -> Any:
    """Candidate -> torch module, for ``RunCandidate.module``."""
    training = context.training
    if training is None:
        return None

    def make(candidate: Candidate) -> Any:
        import copy

        import torch

        removed = removed_channels(context.run, candidate)
        module = copy.deepcopy(training.module)
        if removed:
            module = pruning.prune(
                training.module, training.example, removed=removed, groups=context.profile.groups
            ).module
        weights = context.run.candidate_folder(candidate.id) / "weights.pt"
        if weights.exists():
            module.load_state_dict(torch.load(weights, weights_only=True))
        return module.eval()

    return make


def _summaries(number: int, candidates: Sequence[Candidate], target: str, seconds: float) -> list[str]:
    parts = []
    for candidate in candidates:
        measured = candidate.measured[target]
        speed = f"{measured.latency.ratio:.2f}x" if measured.latency else f"{measured.instructions} instructions"
        parts.append(f"{candidate.config['precision']['scheme']} {measured.quality.val.value:.4g} at {speed}")
    return [f"trial {number}: {'; '.join(parts)} ({format_duration(seconds)})"]


def _best(run: Run) -> str:
    """The fastest candidate so far that meets the constraints, in words."""
    target = run.request.targets[0]
    question = reporting.question_of(run)
    members = front_of(list(run.state.candidates.values()), question, target)
    if not members:
        return ""
    first = selecting.ranked("fastest", members, target, higher_is_better=question.higher_is_better)[0]
    measured = first.measured[target]
    speed = f"{measured.latency.ratio:.3f}x" if measured.latency else f"{measured.instructions} instructions"
    return f"{first.id}: {speed}, {measured.quality.val.metric} {measured.quality.val.value:.4g} ({', '.join(run.request.constraints)})"


def _keep_front(run: Run, report: dict[str, Any]) -> None:
    """Remove the files of candidates that are on no front and no pick, and the trained networks behind them."""
    import shutil

    kept = {"baseline", *(i for ids in report["front"].values() for i in ids)}
    for picks in report["picks"].values():
        for pick in picks.values():
            if pick is not None:
                kept |= {pick["id"], *pick["refuted"]}
    for identifier in run.state.candidates:
        if identifier not in kept:
            for name in ("model.onnx", "weights.pt"):
                (run.candidate_folder(identifier) / name).unlink(missing_ok=True)
    for stage in ("finetune", "quantize", "export", "gate", "score"):
        shutil.rmtree(run.folder / "cache" / stage, ignore_errors=True)

"""The search as a whole: what is asked is checked, the run opened, trials made, picks confirmed, the report written."""

from __future__ import annotations

import contextlib
import os
import shutil
import time as clock
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.baseline import preparing
from compress.baseline.baselines import warn
from compress.baseline.contexts import Context
from compress.executing.crews import crew_of
from compress.executing.worker_counts import Cluster
from compress.measurement.latencies import QUICK, SEARCHING
from compress.onnx_files.isolation import kept_worker
from compress.precision.fidelity import close_checker
from compress.precision.schemes import steps_in_words
from compress.reports import reporting
from compress.reports.formatting import cost_in_words
from compress.results import Result
from compress.run_folder import runs
from compress.run_folder.caching import Cache
from compress.run_folder.facts import Unconfirmed
from compress.run_folder.records import Record
from compress.run_folder.restoring import restore_files
from compress.run_folder.runs import Request, Run
from compress.run_folder.storage_failures import is_storage_failure, name_storage_failure, naming_storage_failures
from compress.searching.budgets import Budget, budget_of, final_protocol, seconds_of_a_reading, too_short
from compress.searching.first_candidates import make_first_candidates
from compress.searching.progress import Progress, Silent
from compress.searching.proposals import chooses_networks
from compress.searching.requests import Asked, Resolved, resolved
from compress.searching.trial_loop import Loop
from compress.searching.trial_recording import TrialRecorder
from compress.selection.questions import question_of
from compress.stages.added_targets import catch_up
from compress.stages.changed_metrics import check_metric
from compress.stages.changed_trainings import train_anew
from compress.stages.confirming import confirm
from compress.stages.moved_targets import measure_moved, moved_targets
from compress.stages.rebuilding import module_maker
from compress.tasks.tasks import Task
from compress.tasks.user_code import describe, naming_exits
from compress.values.constraints import parse_bytes
from compress.values.domains import Choice, Float, Int
from compress.values.durations import parse_duration
from compress.values.search_spaces import SearchSpace
from compress.values.serialization import to_json
from compress.values.stack_traces import save_trace
from compress.values.time_limits import OutOfTime, TimeLimit, interrupted
from targets.errors import CompressError, RequestError, RunError, StageError
from targets.machine import memory
from targets.target import Protocol, Target

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


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
    workers: int | str | None = None,
    cluster: str | None = None,
    worker_cpus: int = 1,
    worker_gpus: float = 0.0,
    memory: str | int | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> Result:
    """Search for smaller, faster versions of ``task``'s model, and confirm the best.

    ``target``: one or several (default ``ort-cpu``). ``objectives``: two or more of quality, latency, size, memory,
    instructions, cycles (default quality and latency). ``constraints``: default ``quality_drop<=0.01``. ``trials`` of
    the whole run, ``time`` of this call, whichever ends first; neither: until the gain has flattened. ``seed``: default
    0. ``sampler``: a name or an Optuna ``BaseSampler``. ``device``: where to fine-tune. ``out``: the run's folder
    (default ``runs/TASK-NAME``); a run that is there is continued, and what is not given stays as it was.
    ``pick``: what ``best/`` holds. ``keep``: ``all`` artifacts, or those of the ``front``. ``workers``: how many
    networks are trained at once, each in a process of its own from two on (default: one); ``auto``: one for each core,
    or for each GPU where ``device`` is one. ``cluster``: the address of a Ray cluster to train on, or ``auto``, by
    default with as many workers as it has room for; each takes ``worker_cpus`` and ``worker_gpus`` of it.
    ``memory``: bytes (or ``2GB``) that what is done with samples may take, default half of what is free.

    Raises RequestError (and nothing in ``out`` is touched) for what cannot be asked. Failed trials do not raise, unless
    one cause fails them again and again: then, or where the picks cannot be confirmed or the report not be written,
    it is a StageError, everything finished is kept, and the same call goes on from there.
    """
    asked = Asked(
        task, target, objectives, constraints, trials, time, seed, sampler, device, out, space, pick, keep, workers,
        command, memory,
        cluster=None if cluster is None else Cluster(cluster, worker_cpus, worker_gpus),
    )  # fmt: skip
    return run_search(asked, progress or Silent())


def run_search(asked: Asked, progress: Progress) -> Result:
    """``search`` of what was asked; what is going on is told to ``progress``."""
    start, folder = clock.monotonic(), asked.folder
    with contextlib.ExitStack() as opened:
        opened.enter_context(naming_storage_failures(folder))
        opened.enter_context(naming_exits())
        opened.enter_context(kept_worker())
        wanted = opened.enter_context(resolved(asked))
        opened.enter_context(memory.bounded(parse_bytes(asked.memory)))
        writing = opened.enter_context(_writing(folder, wanted.before))
        return _search(Run(folder, writing.record, wanted.request), wanted, start, progress, writing)


@dataclass
class _Writing:
    """A record that is written to."""

    record: Record
    ready: bool = False
    """Whether everything that is asked has been found to be possible: from then on nothing is taken back."""


@contextlib.contextmanager
def _writing(folder: Path, before: Request | None) -> Iterator[_Writing]:
    """The record, open and locked; what a refused request has written is taken back, unless trials came of it.

    Raises RunError where another search has written to the folder since ``before`` was read: its files stay.
    """
    existed, begun = folder.exists(), (folder / "record.jsonl").exists()
    runs.check_writable(folder)
    record = Record(folder / "record.jsonl")
    try:
        _check_unchanged(folder, before, record, begun)
        trials, writing = len(record.state.trials), _Writing(record)
        try:
            yield writing
        except (RequestError, SystemExit):
            if len(record.state.trials) > trials and (writing.ready or before is not None):
                raise  # nothing that was finished is taken back
            if before is None:
                # What was asked could not be done: leave no run behind that the corrected request would not fit.
                _forget(folder, existed)
            else:
                Run(folder, record, before).write_request()  # what was asked before still stands
            raise
    finally:
        record.close()


def _check_unchanged(folder: Path, before: Request | None, record: Record, begun: bool) -> None:
    """Raise RunError unless the folder, locked now, is what it was when the request was resolved.

    ``begun``: whether the record was there before this call, which otherwise removes it again.
    """
    try:
        if runs.read_request(folder) == before:
            return
    except RunError:
        if not begun and not record.state.calls:
            record.path.unlink(missing_ok=True)
        raise
    raise RunError(
        f"{str(folder)!r} was written to by another search since this one began; give the same command again to "
        "continue it, or choose another --out"
    )


def _search(run: Run, wanted: Resolved, start: float, progress: Progress, opened: _Writing) -> Result:
    asked, splits, places = wanted.asked, wanted.splits, wanted.targets
    run.write_request()
    run.record.append("call", pid=os.getpid(), at=clock.time())
    cache = Cache(
        run.folder / "cache",
        lambda name, cached, s: run.record.append("stage", stage=name, cached=cached, seconds=round(s, 5)),
    )
    cache.sweep()
    run.sweep()
    for text in splits.warnings:
        progress.note(f"warning: {text}")
    run.record.note("warnings", splits.warnings)
    described = {place.name: {**place.describe(), "now": place.moment()} for place in places}
    moved = moved_targets(run, described)
    # Of a target that moved, once everything is measured again on it.
    _note_targets(run, {name: said for name, said in described.items() if name not in moved})
    deterministic = all(place.deterministic for place in places)
    protocol = QUICK if chooses_networks(wanted.sampler, asked.trials) else SEARCHING
    crew = crew_of(asked.task, run.folder, places, asked.device, protocol, asked.workers, asked.trials, asked.cluster)
    prepared = preparing.prepare_baseline(asked.task, run, cache, places, splits, progress.stage, moved, protocol)
    context, loop = prepared.context, None
    budget, baseline_took = _budget(asked, start, context), clock.monotonic() - start
    limit = TimeLimit(start, budget.deadline)
    recorder = TrialRecorder(run, progress)
    told = _told_warnings(run, progress, len(splits.warnings))
    progress.note(_opening(context))
    try:
        with _ending_in_time(limit, progress):
            if not moved:
                make_first_candidates(context, recorder, wanted.sampler, limit)
            context = preparing.prepare_network(
                prepared, asked.device, progress.stage, limit, threads=crew.threads
            )  # fmt: skip
        opened.ready = True
        _told_warnings(run, progress, told)
        _note_profile(context)
        check_metric(context, moved)
        for text in _caught_up(context, moved, progress):
            progress.note(f"warning: {text}")
        _note_targets(run, described)
        executor = crew.executor(context, recorder.problem.constraints, lambda event: _taken(run, event))
        with _ending_in_time(limit, progress), contextlib.closing(executor):
            loop = Loop(context, budget, wanted.sampler, deterministic, progress, executor, recorder)
            loop.run()
        # From here on nothing else runs: finalists are measured on a machine that is as quiet as it can be.
        if loop is not None:
            loop.note_learnt()
        progress.trial(-1, 0, None, None)
        if limit.is_over and len(run.state.candidates) == 1:
            progress.note(f"warning: {too_short(clock.monotonic() - start, baseline_took)}")
        _confirm(context, final_protocol(budget, len(context.targets.all)), progress)
    except BaseException:
        # Also when interrupted: everything finished so far is in the report, as far as that can be written.
        with contextlib.suppress(Exception):
            reporting.write_report(run)
        raise
    finally:
        context.instruments.scorer.close()
        close_checker()
        progress.close()
    result = Result(run, module_maker(context))
    with _failing_after_the_trials(run, "the report could not be written"):
        _finish(run, cache, reporting.write_report(run), asked.keep, progress)
    if loop is not None and loop.repeated is not None:
        raise StageError(f"{loop.repeated}. {_kept(run)}")
    return result


def _taken(run: Run, event: dict[str, Any]) -> None:
    """Write down what a worker has noted: the times of its stages, and warnings."""
    if event["event"] == "stage":
        run.record.append("stage", stage=event["stage"], cached=event["cached"], seconds=event["seconds"])
    elif event["event"] == "fact" and event["name"] == "warnings":
        for text in event["value"]:
            warn(run, text)


@contextlib.contextmanager
def _ending_in_time(limit: TimeLimit, progress: Progress) -> Iterator[None]:
    """What is inside ends where it is when the time for trials is over; another call goes on from there."""
    try:
        with interrupted(limit):
            yield
    except OutOfTime:
        progress.stage("confirm")


def _told_warnings(run: Run, progress: Progress, told: int) -> int:
    """Tell the warnings of the run beyond the first ``told``, and give how many there are."""
    for text in run.state.facts.warnings[told:]:
        progress.note(f"warning: {text}")
    return len(run.state.facts.warnings)


def _note_profile(context: Context) -> None:
    """Write down what was found out about the network; what there was no time for stays as an earlier call found it."""
    run, profile = context.run, context.profile
    if context.training is not None or not run.state.facts.groups:
        run.record.note("groups", [group.name for group in profile.groups.prunable])
    if profile.int8_damage or not run.state.facts.int8_damage:
        run.record.note("int8_damage", to_json(profile.int8_damage))
        run.record.note("lossy_operators", list(profile.lossy_operators))
    if isinstance(context.space.depth, (Float, Int, Choice)) and context.training is not None:
        run.record.note("blocks", len(context.training.blocks.removable))


def _note_targets(run: Run, described: dict[str, Any]) -> None:
    """What is known of the devices; one that takes no part in this call is not forgotten."""
    if described:
        run.record.note("targets", {**run.state.facts.targets, **described})


def _caught_up(context: Context, moved: dict[str, str], progress: Progress) -> Iterator[str]:
    """Make what the run has fit to what is asked now; gives a line for each thing that the user should know."""
    yield from restore_files(context.run)
    yield from measure_moved(context, moved, progress.stage)
    changed = train_anew(context)
    if changed is not None:
        yield changed
    yield from catch_up(context, progress.stage)
    for place in context.targets.all:
        for remark in place.remarks():
            warn(context.run, remark)
            yield remark


def _confirm(context: Context, protocol: Protocol, progress: Progress) -> None:
    """Confirm the picks; what prevents that stands in the record and ends the call, not what was found."""
    run = context.run
    try:
        with _failing_after_the_trials(run, "the picks could not be confirmed"):
            confirm(context, question_of(run), protocol, progress.stage)
    except StageError as error:
        cause = Unconfirmed(None, str(error))
        with contextlib.suppress(OSError):
            run.record.note("unconfirmed", (*run.state.facts.unconfirmed, cause))
        with contextlib.suppress(Exception):
            reporting.write_html(run)
        raise


@contextlib.contextmanager
def _failing_after_the_trials(run: Run, what: str) -> Iterator[None]:
    """Whatever is raised inside, but an interrupt, becomes a StageError in one line: the trials are kept."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if is_storage_failure(error):
            cause = f"{name_storage_failure(error)}; make room"
        elif isinstance(error, CompressError):
            cause = str(error)
        else:
            cause = f"{describe(error)}; stack trace: {save_trace()}"
        raise StageError(f"{what}: {cause}. {_kept(run)}") from error


def _kept(run: Run) -> str:
    return f"Everything found so far is kept in {run.folder}; the same command goes on from there"


def _opening(context: Context) -> str:
    """One line on what is searched from: the baseline, the limits, what is held out."""
    parts = []
    for name, measured in context.baseline.candidate.measured.items():
        if name not in context.targets.describe:
            continue
        speed = cost_in_words(measured)
        if measured.latency is not None:
            speed = f"{measured.latency.p50 * 1e6:.4g} us"
        quality = measured.quality.val
        parts.append(f"{quality.metric} {quality.value:.4g} on val (n = {quality.n}), {speed} on {name}")
    held_out = f"test n = {len(context.test)}" if context.test is not None else "no test split"
    limits = ", ".join(context.run.request.constraints)
    steps = steps_in_words([variant.scheme for variant in context.targets.variants], context.targets.abilities)
    return (
        f"baseline: {'; '.join(parts)}, {context.baseline.candidate.size} B; {held_out}; {steps}; constraints: {limits}"
    )


def _forget(folder: Path, existed: bool) -> None:
    """Remove what a refused first call has written."""
    for name in ("baseline", "cache", "candidates"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("run.json", "record.jsonl", "report.json"):
        (folder / name).unlink(missing_ok=True)
    if not existed:
        with contextlib.suppress(OSError):  # something of somebody else's is in it
            folder.rmdir()


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


def _budget(asked: Asked, start: float, context: Context) -> Budget:
    """What the call may take, now that it is known how long a reading of the baseline takes."""
    reading = 0.0
    if context.test is not None:
        examples = len(context.targets.all) * len(context.test)
        reading = seconds_of_a_reading(context.run.state.stages, examples, len(context.val))
    return budget_of(asked.trials, parse_duration(asked.time), start, len(context.targets.all), reading)


def _keep_front(run: Run, report: dict[str, Any]) -> None:
    """Remove the files of candidates that are on no front and no pick, and the trained networks behind them."""
    kept = {"baseline", *(i for ids in report["front"].values() for i in ids)}
    for picks in report["picks"].values():
        for pick in picks.values():
            if pick is not None:
                kept |= {pick["id"], *pick["refuted"]}
    for identifier in run.state.candidates:
        if identifier not in kept:
            for name in ("model.onnx", "model.tflite", "weights.pt", "weights.onnx"):
                (run.candidate_folder(identifier) / name).unlink(missing_ok=True)
    for stage in ("finetune", "qat", "quantize", "convert", "export", "gate", "score"):
        shutil.rmtree(run.folder / "cache" / stage, ignore_errors=True)

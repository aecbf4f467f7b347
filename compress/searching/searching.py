"""The search as a whole: what is asked is checked, the run opened, trials made, picks confirmed, the report written."""

from __future__ import annotations

import contextlib
import os
import shutil
import time as clock
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.baseline import preparing
from compress.baseline.contexts import Context
from compress.measurement.latencies import FINAL
from compress.onnx_files.isolation import kept_worker
from compress.precision.schemes import steps_in_words
from compress.reports import reporting
from compress.results import Result
from compress.run_folder import runs
from compress.run_folder.caching import Cache
from compress.run_folder.records import Record
from compress.run_folder.runs import Request, Run
from compress.searching.progress import Progress, Silent
from compress.searching.requests import Asked, Resolved, resolved
from compress.searching.trial_loop import Budget, Loop
from compress.selection.questions import question_of
from compress.stages.added_targets import catch_up
from compress.stages.confirming import confirm
from compress.stages.rebuilding import module_maker
from compress.tasks.tasks import Task
from compress.values.configs import SearchSpace
from compress.values.domains import Choice, Float, Int
from compress.values.durations import parse_duration
from targets.errors import RequestError
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
    asked = Asked(
        task, target, objectives, constraints, trials, time, seed, sampler, device, out, space, pick, keep, workers,
        command,
    )  # fmt: skip
    return run_search(asked, progress or Silent())


def run_search(asked: Asked, progress: Progress) -> Result:
    """``search`` of what was asked; what is going on is told to ``progress``."""
    start = clock.monotonic()
    with kept_worker(), resolved(asked) as wanted, _writing(asked.folder, wanted.before) as record:
        return _search(Run(asked.folder, record, wanted.request), wanted, start, progress)


@contextlib.contextmanager
def _writing(folder: Path, before: Request | None) -> Iterator[Record]:
    """The record, open and locked; what a refused request has written is taken back."""
    existed = folder.exists()
    runs.check_writable(folder)
    record = Record(folder / "record.jsonl")
    try:
        yield record
    except RequestError:
        if before is None:
            # What was asked could not be done: leave no run behind that the corrected request would not fit.
            _forget(folder, existed)
        else:
            Run(folder, record, before).write_request()  # what was asked before still stands
        raise
    finally:
        record.close()


def _search(run: Run, wanted: Resolved, start: float, progress: Progress) -> Result:
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
    run.record.note("targets", {place.name: {**place.describe(), "now": place.moment()} for place in places})
    deterministic = all(place.deterministic for place in places)
    context = preparing.prepare(asked.task, run, cache, places, splits, asked.device, progress.stage)
    run.record.note("groups", [group.name for group in context.profile.groups.prunable])
    if isinstance(context.space.depth, (Float, Int, Choice)) and context.training is not None:
        run.record.note("blocks", len(context.training.blocks.removable))
    result = Result(run, module_maker(context))
    for text in run.state.facts.warnings[len(splits.warnings) :]:
        progress.note(f"warning: {text}")
    progress.note(_opening(context))
    for text in catch_up(context, progress.stage):
        progress.note(f"warning: {text}")
    budget = _budget(asked, start, len(places))
    try:
        Loop(context, budget, wanted.sampler, deterministic, progress).run()
        progress.trial(-1, 0, None, None)
        final = _final_protocol(budget, len(context.targets.all))
        confirm(context, question_of(run), final, progress.stage)
    finally:
        # Also when interrupted: everything finished so far is in the report.
        report = reporting.write_report(run)
        context.instruments.scorer.close()
        progress.close()
    _finish(run, cache, report, asked.keep, progress)
    return result


def _opening(context: Context) -> str:
    """One line on what is searched from: the baseline, the limits, what is held out."""
    parts = []
    for name, measured in context.baseline.candidate.measured.items():
        if name not in context.targets.describe:
            continue
        speed = f"{measured.instructions} instructions"
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


def _budget(asked: Asked, start: float, count: int) -> Budget:
    """What is kept for the confirmation grows with the targets it is made on."""
    seconds = parse_duration(asked.time)
    if seconds is None:
        return Budget(asked.trials, None, 0.0)
    reserve = min(60.0 * count, max(5.0, 0.12 * seconds * count), 0.4 * seconds)
    return Budget(asked.trials, start + seconds - reserve, reserve)


def _final_protocol(budget: Budget, count: int) -> Protocol:
    """How finalists are timed on each target, so that all of it fits into what is kept for it."""
    if budget.deadline is None:
        return FINAL
    each = 0.8 * budget.reserve / count
    return replace(FINAL, seconds=max(1.0, min(FINAL.seconds, 0.7 * each / FINAL.processes)), total=each)


def _keep_front(run: Run, report: dict[str, Any]) -> None:
    """Remove the files of candidates that are on no front and no pick, and the trained networks behind them."""
    kept = {"baseline", *(i for ids in report["front"].values() for i in ids)}
    for picks in report["picks"].values():
        for pick in picks.values():
            if pick is not None:
                kept |= {pick["id"], *pick["refuted"]}
    for identifier in run.state.candidates:
        if identifier not in kept:
            for name in ("model.onnx", "weights.pt", "weights.onnx"):
                (run.candidate_folder(identifier) / name).unlink(missing_ok=True)
    for stage in ("finetune", "qat", "quantize", "export", "gate", "score"):
        shutil.rmtree(run.folder / "cache" / stage, ignore_errors=True)

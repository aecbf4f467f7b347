"""``report.json``, the run as one document, and the files made from it: the page, ``best/`` and copies of picks.

Every number in the document comes from the run's record.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.reports import pages
from compress.reports.importances import importances
from compress.run_folder.runs import Run
from compress.selection.fronts import front, front_hypervolume, with_feasibility
from compress.selection.nearest_misses import nearest_miss
from compress.selection.picks import picks_of, satisfied
from compress.selection.questions import Question, question_of, targets_of
from compress.values.candidates import Candidate
from compress.values.serialization import to_json, write_json
from targets.documents import file_hash, finite
from targets.errors import RequestError

SCHEMA = 1


def make_report(run: Run) -> dict[str, Any]:
    """The document; every number in it comes from the record. Raises RunError while there is no baseline."""
    question = question_of(run)
    state, request = run.state, run.request
    names, there = targets_of(run), run.available()
    described = state.facts.targets
    report = {
        "schema": SCHEMA,
        "task": request.task.name if request.task else "",
        "seed": request.seed,
        "wall_s": round(state.wall, 3),
        "environment": _environment(run),
        "objectives": list(request.objectives),
        "constraints": list(request.constraints),
        "satisfied": satisfied(run),
        "targets": {
            target: {**described.get(target, {}), "hypervolume": front_hypervolume(there, question, target)}
            for target in names
        },
        "baseline": question.baseline.id,
        "candidates": [candidate_json(run, candidate, question) for candidate in state.candidates.values()],
        "front": {target: [c.id for c in front(there, question, target)] for target in names},
        "picks": {t: {which: to_json(pick) for which, pick in picks_of(run, t).items()} for t in names},
        "nearest_miss": {t: to_json(nearest_miss(there, question, t)) for t in names},
        "trials": {
            "asked": state.asked, "finished": state.count("finished"),
            "gated": state.count("gated"), "failed": state.count("failed"),
        },
        "failures": _failures(run),
        "stages": {
            name: {"count": int(row["count"]), "cached": int(row["cached"]), "seconds": round(row["seconds"], 3)}
            for name, row in state.stages.items()
        },
    }  # fmt: skip
    return dict(finite(report))


def _environment(run: Run) -> dict[str, Any]:
    facts = run.state.facts
    return {
        **run.request.environment, "warnings": list(facts.warnings), "training": facts.mode,
        "higher_is_better": run.request.higher_is_better, "int8_damage": to_json(facts.int8_damage),
        "learnt": to_json(facts.learnt), "beside": _beside(run), "workers": _workers(run),
    }  # fmt: skip


def _workers(run: Run) -> list[dict[str, Any]]:
    """Who carried out which trial and when, in seconds since the call began; empty where there was one worker."""
    spans = [
        # What an earlier span has trained was lost with its worker.
        {"trial": trial.number, "state": trial.state, **to_json(span), "train_seconds": trial.train_seconds * is_last}
        for trial in run.state.trials.values()
        for span, is_last in zip(trial.spans, [*[False] * (len(trial.spans) - 1), True], strict=False)
    ]
    return spans if any(span["worker"] for span in spans) else []


def _beside(run: Run) -> dict[str, list[float]]:
    """Target -> the least and the largest of the baseline's own best times, in seconds, beside the candidates there."""
    times: dict[str, list[float]] = {}
    for candidate in run.state.candidates.values():
        for target, measured in candidate.measured.items():
            if measured.latency is not None and measured.latency.baseline is not None:
                times.setdefault(target, []).append(measured.latency.baseline)
    return {target: [min(found), max(found)] for target, found in times.items()}


def _failures(run: Run) -> list[dict[str, Any]]:
    """Failed trials, precisions that could not be made, and what could not be confirmed, each with its cause."""
    state = run.state
    failed = [to_json(t.failure) for t in state.trials.values() if t.failure is not None and t.state == "failed"]
    skipped = [
        {"trial": one.trial, "stage": "quantize", "cause": f"{one.scheme}: {one.cause}"} for one in state.facts.skipped
    ]
    unconfirmed = [{"trial": one.trial, "stage": "confirm", "cause": one.cause} for one in state.facts.unconfirmed]
    return [*failed, *skipped, *unconfirmed]


def candidate_json(run: Run, candidate: Candidate, question: Question) -> dict[str, Any]:
    """The entry of one candidate in the report, feasible or not as the run's constraints say now."""
    names = targets_of(run)
    for target in names:
        candidate = next(iter(with_feasibility([candidate], question, target)), candidate)
    data = to_json(candidate)
    data["path"] = candidate.path if run.is_whole(candidate) else None
    data["measured"] = {t: m for t, m in data["measured"].items() if t in names}
    for measured in data["measured"].values():
        if measured["latency"]:
            # By it the machine's state is told (``beside``); the entry's own keys are a contract.
            measured["latency"].pop("baseline", None)
        # Only a target that knows what code a file needs has the one, only one that models cycles the other.
        for name in ("flash", "cycles"):
            if measured[name] is None:
                del measured[name]
        if not measured["stand_in"]:
            del measured["stand_in"]
        if measured["integer"] and not measured["integer"]["on_npu"]:
            del measured["integer"]["on_npu"]
    # How near a quantized file is to its float source belongs to its precision; the entry's own keys are a contract.
    files = data.pop("files")
    if files:
        data["config"] = {**data["config"], "files": files}
    fidelity = {name: data.pop(name) for name in ("sqnr", "lost_in")}
    if fidelity["sqnr"]:
        data["config"] = {**data["config"], "fidelity": fidelity}
    return dict(data)


def write_report(run: Run) -> dict[str, Any]:
    """Write ``report.json`` into the run's folder, in one step, and return the document."""
    report = make_report(run)
    write_json(run.folder / "report.json", report)
    return report


def write_html(run: Run, path: Path | None = None, report: dict[str, Any] | None = None) -> Path:
    """Write the HTML report to ``path`` (by default ``report.html`` in the run's folder) and return the path.

    Raises OSError where it cannot be written.
    """

    report = make_report(run) if report is None else report
    path = run.folder / "report.html" if path is None else path
    pages.write_page(path, report, importances=importances(run), notes=list(run.state.facts.warnings))
    return path


def write_best(run: Run, report: dict[str, Any]) -> Path | None:
    """Copy the main pick and its manifest to ``best/``, or remove that folder where the run is not satisfied."""
    folder = run.folder / "best"
    target = run.request.targets[0]
    pick = report["picks"][target][run.request.pick]
    if not report["satisfied"] or pick is None:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return write_pick(run, pick["id"], target, folder, pick)


def write_pick(run: Run, identifier: str, target: str, folder: Path, pick: dict[str, Any] | None) -> Path:
    """Copy a candidate's file out, with a manifest that says what it is and how it was measured.

    Raises RequestError where ``--keep front`` has removed the file or it is not what was measured, OSError where
    ``folder`` cannot be written.
    """
    candidate = run.state.candidates[identifier]
    source = run.folder / (candidate.path or "")
    if not source.is_file():
        raise RequestError(f"the file of {identifier} was removed (--keep front); choose one of the front")
    if not run.is_whole(candidate):
        raise RequestError(
            f"the file of {identifier} is damaged: its SHA-256 is not that of what was measured; continue the search, "
            "which restores it where it can, or choose another candidate"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / source.name
    # Copies of its own: what its owner does to them must not reach into the run.
    for name, sha256 in {source.name: candidate.sha256, **candidate.files}.items():
        _copy(source.with_name(name), folder / name, sha256, identifier)
    for name in {"model.onnx", "model.tflite"} - {*candidate.files, source.name}:
        (folder / name).unlink(missing_ok=True)  # of the pick that lay here before
    write_json(folder / "manifest.json", _manifest(run, candidate, target, file_hash(path), pick))
    return path


def _copy(source: Path, path: Path, sha256: str, identifier: str) -> None:
    """Copy a file of a candidate, whole or not at all; raises RequestError where it is not what was measured."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, temporary)
        if sha256 not in ("", file_hash(temporary)):
            raise RequestError(
                f"the file of {identifier} changed while it was copied; nothing was put into {path.parent}"
            )
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _manifest(run: Run, candidate: Candidate, target: str, sha256: str, pick: dict[str, Any] | None) -> dict[str, Any]:
    request = run.request
    environment = {key: value for key, value in request.environment.items() if key != "command"}
    return {
        "sha256": sha256,
        **({"files": {**candidate.files, Path(candidate.path or "").name: sha256}} if candidate.files else {}),
        "id": candidate.id,
        "task": request.task.name if request.task else "",
        "target": target,
        "pick": pick,
        "config": candidate.config,
        "measurements": candidate_json(run, replace(candidate, config={}), question_of(run)),
        "environment": environment,
        "reproduce": {
            "command": request.environment.get("command"), "seed": request.seed,
            "objectives": list(request.objectives), "constraints": list(request.constraints),
        },
    }  # fmt: skip

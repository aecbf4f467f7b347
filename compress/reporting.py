"""`report.json`: the run as one document, made from the record alone (design: "report.json")."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress import picking, selecting
from compress.confirming import known_disagreements
from compress.picking import Question
from compress.quantities import parse_constraint
from compress.results import Candidate, Pick
from compress.runs import Run, link
from compress.serialization import file_hash, finite, to_json, write_json
from targets.errors import NoFeasibleCandidate

SCHEMA = 1


def question_of(run: Run) -> Question:
    """What the run's candidates are chosen by; raises NoFeasibleCandidate while there is not even a baseline."""
    baseline = run.state.candidates.get("baseline")
    if baseline is None:
        raise NoFeasibleCandidate(f"{str(run.folder)!r} has no measured baseline yet; let the search go on first")
    request = run.request
    return Question(
        baseline, request.objectives, tuple(parse_constraint(text) for text in request.constraints),
        request.higher_is_better, request.bounded, known_disagreements(run.state.facts),
    )  # fmt: skip


def picks_of(run: Run, target: str) -> dict[str, Pick | None]:
    """Every pick on ``target``."""
    question = question_of(run)
    candidates = list(run.state.candidates.values())
    return {which: picking.choose(which, candidates, question, target)[0] for which in selecting.PICKS}


def satisfied(run: Run) -> bool:
    """Whether the run's main pick on its first target meets the constraints and is not refuted."""
    pick = picks_of(run, run.request.targets[0])[run.request.pick]
    return pick is not None and pick.verdict != selecting.REFUTED


def make_report(run: Run) -> dict[str, Any]:
    """The document; every number in it comes from the record."""
    question = question_of(run)
    state, request = run.state, run.request
    candidates = list(state.candidates.values())
    names = request.targets
    picks = {target: picks_of(run, target) for target in names}
    described = state.facts.get("targets", {})
    report = {
        "schema": SCHEMA,
        "task": request.task.name if request.task else "",
        "seed": request.seed,
        "wall_s": round(state.wall, 3),
        "environment": {
            **request.environment, "warnings": state.facts.get("warnings", []),
            "training": state.facts.get("mode"), "higher_is_better": request.higher_is_better,
        },
        "objectives": list(request.objectives),
        "constraints": list(request.constraints),
        "satisfied": satisfied(run),
        "targets": {
            target: {**described.get(target, {}), "hypervolume": picking.hypervolume(candidates, question, target)}
            for target in names
        },
        "baseline": question.baseline.id,
        "candidates": [candidate_json(run, candidate, question) for candidate in candidates],
        "front": {target: [c.id for c in picking.front(candidates, question, target)] for target in names},
        "picks": {t: {which: to_json(pick) for which, pick in found.items()} for t, found in picks.items()},
        "nearest_miss": {t: to_json(picking.nearest_miss(candidates, question, t)) for t in names},
        "trials": {
            "asked": len(state.trials), "finished": state.count("finished"),
            "gated": state.count("gated"), "failed": state.count("failed"),
        },
        "failures": [to_json(t.failure) for t in state.trials.values() if t.failure is not None and t.state == "failed"]
        + [{"trial": int(n), "stage": "quantize", "cause": f"{s}: {c}"} for n, s, c in state.facts.get("skipped", [])],
        "stages": {
            name: {"count": int(row["count"]), "cached": int(row["cached"]), "seconds": round(row["seconds"], 3)}
            for name, row in state.stages.items()
        },
    }  # fmt: skip
    return dict(finite(report))


def candidate_json(run: Run, candidate: Candidate, question: Question) -> dict[str, Any]:
    """One candidate with today's feasibility on every target it was measured on."""
    for target in list(candidate.measured):
        candidate = picking.judged([candidate], question, target)[0]
    path = run.folder / (candidate.path or "")
    data = to_json(candidate)
    data["path"] = candidate.path if candidate.path and path.exists() else None
    data["measured"] = {t: m for t, m in data["measured"].items() if t in run.request.targets}
    return dict(data)


def write_report(run: Run) -> dict[str, Any]:
    """Put ``report.json`` in place, whole."""
    report = make_report(run)
    write_json(run.folder / "report.json", report)
    return report


def write_html(run: Run, path: Path | None = None, report: dict[str, Any] | None = None) -> Path:
    """Put the HTML report in place."""
    from compress import pages
    from compress.importances import importances

    report = make_report(run) if report is None else report
    path = run.folder / "report.html" if path is None else path
    pages.write(path, report, importances=importances(run), notes=list(run.state.facts.get("warnings", [])))
    return path


def write_best(run: Run, report: dict[str, Any]) -> Path | None:
    """``best/``: the main pick's file and its manifest; absent where the run is not satisfied."""
    folder = run.folder / "best"
    target = run.request.targets[0]
    pick = report["picks"][target][run.request.pick]
    if not report["satisfied"] or pick is None:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return write_pick(run, pick["id"], target, folder, pick)


def write_pick(run: Run, identifier: str, target: str, folder: Path, pick: dict[str, Any] | None) -> Path:
    """Copy a candidate's file out, with a manifest that says what it is and how it was measured."""
    candidate = run.state.candidates[identifier]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    link(run.folder / (candidate.path or ""), path)
    request = run.request
    manifest = {
        "sha256": file_hash(path),
        "id": identifier,
        "task": request.task.name if request.task else "",
        "target": target,
        "pick": pick,
        "config": candidate.config,
        "measurements": to_json(replace(candidate, config={})),
        "environment": request.environment,
        "reproduce": {
            "command": request.environment.get("command"), "seed": request.seed,
            "objectives": list(request.objectives), "constraints": list(request.constraints),
        },
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    return path

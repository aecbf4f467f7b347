"""The report, best/ and what is copied out, made from a record alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.reports import reporting
from compress.results import Result
from compress.run_folder.records import Record
from compress.run_folder.runs import Request, Run
from compress.selection import picks
from compress.tasks.tasks import TaskIdentity
from compress.values.candidates import Candidate, Failure
from compress.values.search_spaces import SearchSpace
from targets.errors import NoFeasibleCandidate, RequestError

Make = Callable[..., Candidate]
REQUEST = Request(
    TaskIdentity("tiny", "accuracy", "g", "v", "t"), SearchSpace(), ("quality", "latency"), ("quality_drop<=0.01",),
    ("fake",), 0, "auto", "fastest", {"python": "3.11", "command": "paretopress search tiny"},
)  # fmt: skip


def made(folder: Path, candidates: list[Candidate], **changes: Any) -> Run:
    """A run of the given candidates, each of a trial of its own, with a file of its size."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, Record(folder / "record.jsonl"), replace(REQUEST, **changes))
    run.write_request()
    for candidate in candidates:
        path = folder / str(candidate.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(candidate.id.encode().ljust(candidate.size, b"."))
        if candidate.trial is None:
            run.record.append("candidate", candidate=candidate)
        else:
            run.record.append("asked", trial=candidate.trial, params={})
            run.record.append("finished", trial=candidate.trial, candidates=[candidate], seconds=1.0)
    return run


def test_a_confirmed_pick_is_put_into_best(tmp_path: Path, candidate: Make) -> None:
    fast = candidate("0001-int8", 0.001, 0.4, 300, test=0.002)
    run = made(tmp_path / "run", [candidate("baseline", test=0.0), fast])
    report = reporting.write_report(run)
    assert report["satisfied"]
    assert report["picks"]["fake"]["fastest"]["verdict"] == "confirmed"
    path = reporting.write_best(run, report)
    assert path == tmp_path / "run" / "best" / "model.onnx"
    assert path.read_bytes() == run.path("0001-int8").read_bytes()
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert manifest["pick"]["id"] == manifest["id"] == "0001-int8"
    assert manifest["environment"] == {"python": "3.11"}
    assert manifest["reproduce"] == {
        "command": "paretopress search tiny", "seed": 0, "objectives": ["quality", "latency"],
        "constraints": ["quality_drop<=0.01"],
    }  # fmt: skip
    path.write_bytes(b"changed by its owner")
    assert run.path("0001-int8").read_bytes().startswith(b"0001-int8")


def test_where_everything_was_refuted_there_is_no_best(tmp_path: Path, candidate: Make) -> None:
    line = [candidate(f"{i:04d}-x", 0.009 - 0.001 * i, 0.4 + 0.1 * i, test=0.05) for i in range(3)]
    run = made(tmp_path / "run", [candidate("baseline", size=5000, test=0.0), *line])
    (tmp_path / "run" / "best").mkdir()
    report = reporting.write_report(run)
    assert not report["satisfied"]
    pick = report["picks"]["fake"]["fastest"]
    assert (pick["id"], pick["verdict"], pick["read"]) == ("0002-x", "refuted", 3)
    assert pick["refuted"] == ["0000-x", "0001-x"]
    assert reporting.write_best(run, report) is None
    assert not (tmp_path / "run" / "best").exists()


def test_another_pick_can_be_the_one_that_counts(tmp_path: Path, candidate: Make) -> None:
    refuted = [candidate(f"{i:04d}-x", 0.009 - 0.001 * i, 0.4 + 0.1 * i, 2000, test=0.05) for i in range(3)]
    small = candidate("0007-int8", 0.004, 1.05, 100, test=0.001)
    objectives = ("quality", "latency", "size")
    run = made(tmp_path / "run", [candidate("baseline", test=0.0), *refuted, small], objectives=objectives)
    assert not picks.satisfied(run)
    run.with_request(pick="smallest")
    report = reporting.write_report(run)
    assert report["satisfied"]
    assert reporting.write_best(run, report) is not None
    assert json.loads((tmp_path / "run" / "best" / "manifest.json").read_text())["id"] == "0007-int8"


def test_every_kind_of_failure_is_listed_with_its_cause(tmp_path: Path, candidate: Make) -> None:
    run = made(tmp_path / "run", [candidate("baseline")])
    run.record.append("asked", trial=4, params={})
    run.record.append("failed", trial=4, stage="finetune", cause="NaN in epoch 1")
    run.record.append("asked", trial=5, params={})
    run.record.append("failed", trial=5, stage="measure", cause="gone", transient=True)
    run.record.append("retry", trial=5)
    run.record.append("fact", name="skipped", value=[[1, "int8", "no layer"]])
    run.record.append("fact", name="unconfirmed", value=[[2, "0002-fp32 could not be timed again"]])
    report = reporting.make_report(run)
    assert report["failures"] == [
        {"trial": 4, "stage": "finetune", "cause": "NaN in epoch 1"},
        {"trial": 1, "stage": "quantize", "cause": "int8: no layer"},
        {"trial": 2, "stage": "confirm", "cause": "0002-fp32 could not be timed again"},
    ]
    assert report["trials"] == {"asked": 2, "finished": 0, "gated": 0, "failed": 1}
    assert run.state.trials[5].failure == Failure(5, "measure", "gone")


def test_the_report_is_json_whatever_the_numbers(tmp_path: Path, candidate: Make) -> None:
    odd = candidate("0001-fp32", math.nan, math.inf)
    run = made(tmp_path / "run", [candidate("baseline"), odd])
    reporting.write_report(run)
    text = (tmp_path / "run" / "report.json").read_text()
    report = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    values = next(c for c in report["candidates"] if c["id"] == "0001-fp32")["measured"]["fake"]
    assert values["latency"]["ratio"] is None
    assert not values["feasible"]
    assert report["front"]["fake"] == ["baseline"]
    assert reporting.write_html(run).stat().st_size > 10_000


def test_a_target_that_is_not_measured_yet_is_left_out(tmp_path: Path, candidate: Make) -> None:
    run = made(tmp_path / "run", [candidate("baseline"), candidate("0001-int8")], targets=("fake", "new"))
    report = reporting.make_report(run)
    assert list(report["targets"]) == list(report["front"]) == list(report["picks"]) == ["fake"]
    later = run.state.candidates["baseline"]
    run.record.append("candidate", candidate=later.on("new", later.measured["fake"]))
    report = reporting.make_report(run)
    assert report["front"]["new"] == ["baseline"]
    assert set(report["candidates"][1]["measured"]) == {"fake"}
    assert reporting.write_html(run).exists()
    result = Result(run)
    assert [c.id for c in result.front("new")] == ["baseline"]


def test_a_candidate_whose_file_was_removed_is_listed_but_not_picked(tmp_path: Path, candidate: Make) -> None:
    fast, slow = candidate("0001-int8", 0.0, 0.4), candidate("0002-int8", 0.0, 0.6)
    run = made(tmp_path / "run", [candidate("baseline"), fast, slow])
    run.path("0001-int8").unlink()
    report = reporting.make_report(run)
    assert {c["id"]: c["path"] for c in report["candidates"]}["0001-int8"] is None
    assert report["picks"]["fake"]["fastest"]["id"] == "0002-int8"
    with pytest.raises(RequestError, match=r"the file of 0001-int8 was removed \(--keep front\)"):
        reporting.write_pick(run, "0001-int8", "fake", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_no_pick_says_what_was_nearest(tmp_path: Path, candidate: Make) -> None:
    run = made(tmp_path / "run", [candidate("baseline"), candidate("0001-int8", 0.05)], constraints=("size<=900B",))
    with pytest.raises(NoFeasibleCandidate) as caught:
        Result(run).pick("fastest")
    assert str(caught.value) == (
        "no candidate meets size<=900B on fake; the nearest miss is 0001-int8, beyond size<=900B by 100"
    )


def test_the_page_can_be_written_elsewhere(finished: Result, tmp_path: Path) -> None:
    run = finished._run
    path = reporting.write_html(run, tmp_path / "page.html")
    text = path.read_text()
    assert path == tmp_path / "page.html"
    for name in finished.report["front"]["fake"]:
        assert name in text
    assert "tiny" in text
    assert (finished.folder / "report.html").stat().st_size > 10_000


def test_a_file_that_is_not_what_was_measured_is_not_copied_out(
    tmp_path: Path, candidate: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = candidate("0001-int8", 0.001, 0.4, 300)
    content = one.id.encode().ljust(one.size, b".")
    whole = replace(one, sha256=hashlib.sha256(content).hexdigest())
    run = made(tmp_path / "run", [candidate("baseline"), whole])
    assert reporting.write_pick(run, one.id, "fake", tmp_path / "out", None).read_bytes() == content
    with monkeypatch.context() as patched:
        patched.setattr(reporting.shutil, "copyfile", lambda _, to: Path(to).write_bytes(b"half of it"))
        with pytest.raises(
            RequestError, match="the file of 0001-int8 changed while it was copied; nothing was put into"
        ):
            reporting.write_pick(run, one.id, "fake", tmp_path / "out", None)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == content, "what was there stays"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "model.onnx"]
    run.path(one.id).write_bytes(content[:-1] + b"!")
    with pytest.raises(
        RequestError, match="the file of 0001-int8 is damaged: its SHA-256 is not that of what was measur"
    ):
        reporting.write_pick(run, one.id, "fake", tmp_path / "other", None)
    assert not (tmp_path / "other").exists()

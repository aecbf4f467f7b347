"""A run's folder: what was asked, what happened, and the artifacts.

    run.json  record.jsonl  baseline/  cache/  candidates/ID/  report.json  report.html  best/

A folder is a run if it has a readable ``run.json`` of ours. Opening one for another task, or a folder that holds
something else, is refused before anything in it is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.run_folder.file_hashes import known_hash
from compress.run_folder.records import Record, State
from compress.tasks.tasks import TaskIdentity
from compress.values.candidates import Candidate
from compress.values.domains import Float
from compress.values.error_lines import one_line
from compress.values.search_spaces import AUTO, SearchSpace
from compress.values.serialization import from_json, to_json, write_json
from targets.documents import parse_json, read_text
from targets.errors import RunError, SpaceError

SCHEMA = 1
_WRITTEN = tuple(
    f".{name}"
    for name in ("run.json", "report.json", "report.html", "candidate.json", "manifest.json", "model.onnx",
                 "model.tflite", "weights.", "module.pt")
)  # fmt: skip
"""How the names begin of files that are being written, to be renamed when they are whole."""


@dataclass(frozen=True)
class Request:
    """What a search was asked to do. ``None`` where a continued run keeps what it had."""

    task: TaskIdentity | None
    space: SearchSpace
    objectives: tuple[str, ...]
    constraints: tuple[str, ...]
    targets: tuple[str, ...]
    seed: int
    sampler: str
    pick: str
    environment: dict[str, Any]
    higher_is_better: bool = True
    bounded: bool = True
    """The metric lies in [0, 1]."""


class Run:
    """An open run: paths, the request and the record."""

    def __init__(self, folder: Path, record: Record, request: Request) -> None:
        self.folder = folder
        self.record = record
        self.request = request

    @property
    def state(self) -> State:
        """What the record adds up to."""
        return self.record.state

    def candidate_folder(self, identifier: str) -> Path:
        """The folder that a candidate's files are kept in."""
        return self.folder / "candidates" / identifier

    def path(self, identifier: str) -> Path:
        """The path of a candidate's file: ``.tflite`` where it was made for targets that take such, else ``.onnx``."""
        known = self.state.candidates.get(identifier)
        return self.folder / ((known and known.path) or f"candidates/{identifier}/model.onnx")

    def is_whole(self, candidate: Candidate) -> bool:
        """Whether a candidate's ONNX file is there, with the very bytes that were measured."""
        path = self.folder / (candidate.path or "")
        return path.is_file() and candidate.sha256 in ("", known_hash(path))

    def available(self) -> list[Candidate]:
        """Candidates whose files are whole: what ``--keep front`` or an accident took can be picked no more."""
        return [candidate for candidate in self.state.candidates.values() if self.is_whole(candidate)]

    def write_request(self) -> None:
        """Write the request as ``run.json``, whole or not at all."""
        write_json(self.folder / "run.json", {"schema": SCHEMA, **as_json(self.request)})

    def with_request(self, **changes: Any) -> None:
        """Replace parts of the request, and write it."""
        self.request = replace(self.request, **changes)
        self.write_request()

    def sweep(self) -> None:
        """Remove what a killed process was writing; whatever has another name than ours is left alone."""
        patterns = (".*", "candidates/*/.*", "baseline/.*", "best/.*")
        for leftover in (path for pattern in patterns for path in self.folder.glob(pattern)):
            if leftover.is_file() and leftover.name.startswith(_WRITTEN):
                leftover.unlink(missing_ok=True)


def as_json(request: Request) -> dict[str, Any]:
    """The request as a JSON object, as ``run.json`` holds it."""
    return dict(to_json(request))


def read_request(folder: Path) -> Request | None:
    """What ``run.json`` says, None where the folder is empty or absent; RunError where it is something else."""
    path = folder / "run.json"
    try:
        if not path.exists():
            _check_empty(folder)
            return None
        data = parse_json(read_text(path))
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise RunError(f"{str(path)!r} is not of this version (schema {SCHEMA}); choose another --out")
        return from_json(Request, data)
    except (OSError, ValueError, SpaceError) as error:
        raise RunError(f"{str(path)!r} cannot be read: {error}; choose another --out") from None


def _check_empty(folder: Path) -> None:
    """Raise RunError unless a run may begin here: an absent or empty folder, or one that a killed start left."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{str(folder)!r} is a file, not a run's folder; choose another --out")
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        empty_record = path.name == "record.jsonl" and path.stat().st_size == 0
        if not empty_record and not path.name.startswith((".probe-", ".run.json.")):
            raise RunError(
                f"{str(folder)!r} is not a run: it has no run.json but holds {path.name!r}; choose another --out"
            )


def check_writable(folder: Path) -> None:
    """Raise RunError unless files can be made in ``folder``; makes it where it is absent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(
            f"--out {str(folder)!r} cannot be written: {error.strerror or error}; choose another folder"
        ) from None


def open_for_reading(folder: str | Path) -> Run:
    """A run to look at, finished or still going on; nothing in it is changed."""
    folder = Path(folder)
    request = read_request(folder) if folder.exists() else None
    if request is None:
        raise RunError(f"{str(folder)!r} is not a run: it has no run.json; give the folder a search wrote (--out)")
    return Run(folder, Record(folder / "record.jsonl", write=False), request)


@contextlib.contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Inside, what is read of a run is made something of; values in it that make no sense become a RunError.

    ``run.json`` and every line of the record have the right form, or are refused before; but a number may be absurd,
    or a description of a target have been changed by hand.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise RunError(
            f"{str(folder)!r} holds values that make no sense ({one_line(error, kind=True)}): its run.json or "
            "record.jsonl is damaged; restore it"
        ) from error


def link(source: Path, destination: Path) -> None:
    """The same file at another place: a hard link where the file system has them, else a copy."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, destination)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def space_of(run: Run) -> SearchSpace:
    """The run's space, with the range of learning rates that was found where it asks for one."""
    space, found = run.request.space, run.state.facts.learning_rates
    if space.lr != AUTO or not found:
        return space
    low, high = found
    return replace(space, lr=Float(low, high, log=True))

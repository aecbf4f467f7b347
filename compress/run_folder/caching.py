"""Nothing is computed twice: a stage's result lies under the hash of what determines it.

``cache/STAGE/HASH/`` holds the files a stage wrote and ``result.json``. A result appears whole or not at all: it is
made in a folder beside it and renamed. Failures are not kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.run_folder.file_hashes import known_hash
from compress.values.serialization import stable_hash, write_json
from targets.documents import file_hash, parse_json, read_text, write_text

_FILES = "files, by SHA-256"
"""In ``result.json``, beside what the stage said: its files as they were written."""
_CHECKSUM = "result.sha256"
"""The file beside ``result.json`` that says what its bytes must hash to."""
_TRIES = 3
"""To put a result in the place of one that cannot be read."""
OnStage = Callable[[str, bool, float], None]
"""Told of every stage: name, whether it was cached, seconds."""


@dataclass(frozen=True)
class Artifact:
    """A stage's result: the folder with its files, and what it said."""

    folder: Path
    info: dict[str, Any]
    key: str


class Cache:
    """Stage results on disk. One instance in a run; ``on_stage`` is how the record hears of them."""

    def __init__(self, root: Path, on_stage: OnStage) -> None:
        self.root = root
        self._on_stage = on_stage

    def stage(
        self, name: str, version: int, inputs: Mapping[str, Any], compute: Callable[[Path], Mapping[str, Any]]
    ) -> Artifact:
        """The result of stage ``name`` for ``inputs`` (JSON).

        ``compute`` writes files into the folder it is given and returns JSON.
        """
        key = _key(name, version, inputs)
        folder = self.root / name / key
        start = time.perf_counter()
        found = _read(folder)
        if found is not None:
            self._on_stage(name, True, time.perf_counter() - start)
            return Artifact(folder, found, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            info = compute(temporary)
            _write(temporary, {**info, _FILES: _hashes(temporary)})
            _put_in_place(temporary, folder)
        finally:
            # First, since it makes room where the disk is full.
            shutil.rmtree(temporary, ignore_errors=True)
            # Failed attempts took time as well.
            self._on_stage(name, False, time.perf_counter() - start)
        # Read back, so that a fresh result and a cached one are the same to the caller.
        return Artifact(folder, _read(folder) or {}, key)

    def get(self, name: str, version: int, inputs: Mapping[str, Any]) -> Artifact | None:
        """A result that is there, told as cached; None where it is not."""
        key = _key(name, version, inputs)
        found = _read(self.root / name / key)
        if found is None:
            return None
        self._on_stage(name, True, 0.0)
        return Artifact(self.root / name / key, found, key)

    def put(self, name: str, version: int, inputs: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        """Keep a result that was computed together with others."""
        folder = self.root / name / _key(name, version, inputs)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            _write(temporary, info)
            _put_in_place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count something that is not stored as a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._on_stage(name, False, time.perf_counter() - start)

    def sweep(self) -> None:
        """Remove what a killed process was making."""
        for leftover in self.root.glob("*/.making-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _put_in_place(made: Path, folder: Path) -> None:
    """Rename a result to where it belongs; where another process has put the same there meanwhile, that one stays.

    Several workers share a cache, and may be reading what lies there: only what cannot be read is removed.
    """
    for _ in range(_TRIES):
        try:
            os.replace(made, folder)
            return
        except OSError:
            if not folder.exists():
                raise
            if _read(folder) is not None:
                return
            shutil.rmtree(folder, ignore_errors=True)
    os.replace(made, folder)


def _key(name: str, version: int, inputs: Mapping[str, Any]) -> str:
    return stable_hash({"stage": name, "version": version, **inputs})


def _hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files that a stage wrote."""
    return {path.name: known_hash(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _write(folder: Path, info: Mapping[str, Any]) -> None:
    write_json(folder / "result.json", info)
    write_text(folder / _CHECKSUM, file_hash(folder / "result.json") + "\n")


def _read(folder: Path) -> dict[str, Any] | None:
    """What the stage said; None where there is nothing, or where it or one of its files is not as it was written.

    Results of before have no checksum.
    """
    try:
        if (folder / _CHECKSUM).exists() and read_text(folder / _CHECKSUM).strip() != file_hash(folder / "result.json"):
            return None
        result = parse_json(read_text(folder / "result.json"))
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict):
        return None
    files = result.pop(_FILES, {})
    if not isinstance(files, dict) or any(known_hash(folder / name) != wanted for name, wanted in files.items()):
        return None
    return result

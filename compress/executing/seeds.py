"""A run's beginning as bytes, so that a worker on another machine has what a worker in the folder would find there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

_TRIALS = ("finetune", "quantize", "measure", "score", "check", "refine", "prune", "workers")
"""Stages whose results belong to trials: a worker makes those it needs itself."""


def packed_run(folder: Path) -> bytes:
    """``run.json``, the record, the baseline and what was prepared from it, as a tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name in ("run.json", "record.jsonl", "baseline"):
            archive.add(folder / name, name)
        for stage in sorted((folder / "cache").glob("*/")):
            if stage.name not in _TRIALS:
                archive.add(stage, f"cache/{stage.name}", filter=_whole)
    return buffer.getvalue()


def unpacked_run(data: bytes, folder: Path) -> None:
    """Put what ``packed_run`` took into an empty folder."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        archive.extractall(folder, filter="data")


def _whole(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "/.making-" in f"/{entry.name}" else entry

"""Candidates whose files are no longer as they were measured: given back from the cache where it still has them."""

from __future__ import annotations

from pathlib import Path

from compress.run_folder.file_hashes import known_hash
from compress.run_folder.runs import Run, link


def restore_files(run: Run) -> list[str]:
    """Put back what is damaged or missing and still in the cache; gives a line for each file that was damaged.

    What is damaged and cannot be put back stays where it is, and is no longer chosen from. What ``--keep front`` has
    removed is in no cache either, and nothing is said of it.
    """
    told = []
    for candidate in run.state.candidates.values():
        if candidate.id == "baseline" or not candidate.path or run.is_whole(candidate):
            continue
        path = run.folder / candidate.path
        damaged = path.exists()
        kept = find_in_cache(run.folder / "cache", candidate.sha256, path.suffix)
        if kept is not None:
            link(kept, path)
            what = "damaged" if damaged else "gone"
            told.append(f"the file of {candidate.id} was {what}; it is restored from cache/")
        elif damaged:
            told.append(f"the file of {candidate.id} is damaged and not in cache/: it is left out of front and picks")
    return told


def find_in_cache(cache: Path, sha256: str, suffix: str) -> Path | None:
    """The file below ``cache`` with that hash and suffix (``.onnx``); None where there is none."""
    found = cache.glob(f"*/*/*{suffix}") if sha256 else ()
    return next((path for path in sorted(found) if known_hash(path) == sha256), None)

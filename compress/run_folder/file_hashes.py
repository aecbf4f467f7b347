"""SHA-256 of files that are asked for again and again: each is read once, and again only when it was changed."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from targets.documents import file_hash


def known_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex; empty where there is no such file, or it cannot be read."""
    try:
        found = path.stat()
        return _hash(path, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
    except OSError:
        return ""


@lru_cache(maxsize=4096)
def _hash(path: Path, *_: int) -> str:
    return file_hash(path)

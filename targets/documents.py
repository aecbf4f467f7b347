"""JSON documents and hashes of files, with the standard library alone: a small board has nothing else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex; raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, by way of a temporary one beside it; raises OSError where that fails."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_text(path: Path) -> str:
    """The text of a file; raises OSError where it cannot be read, ValueError where it is no text.

    What is no file, such as a pipe, which might never end, is not read: an OSError as well.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file")
    return path.read_text(encoding="utf-8")


def parse_json(text: str | bytes) -> Any:
    """The document that a text holds; raises ValueError, and nothing else, for a text that is none.

    So it does for one that is nested deeper than it can be read, and for strings that no file may hold (halves of
    characters).
    """
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


def finite(value: Any) -> Any:
    """The same JSON with NaN and infinities replaced by None."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value

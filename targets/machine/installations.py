"""Installations that pip alone cannot bring: a folder with a manifest, which appears whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from targets.errors import TargetUnavailable


def read_manifest(folder: Path, **expected: Any) -> dict[str, Any] | None:
    """What an installation is made of; None where there is none, or it is not made of what is ``expected``."""
    try:
        found = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    serves = isinstance(found, dict) and all(found.get(name) == value for name, value in expected.items())
    return found if serves else None


def put_in_place(folder: Path, variable: str, make: Callable[[Path], object]) -> Path:
    """Let ``make`` fill a new folder beside ``folder``, then put it there in one step; returns ``folder``.

    ``variable``: the environment variable that names another folder. Raises TargetUnavailable where it cannot be
    written, and what ``make`` raises.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
            make(Path(made) / "new")
            if folder.exists():
                os.replace(folder, Path(made) / "old")
            os.replace(Path(made) / "new", folder)
    except OSError as error:
        raise TargetUnavailable(
            f"{folder} cannot be written ({error.strerror or error}); make room, or set {variable} to another folder"
        ) from None
    return folder

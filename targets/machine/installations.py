"""Installations that pip alone cannot bring: a folder with a manifest, which appears whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from targets.errors import TargetUnavailable

_SECONDS = 1800
"""For any one program that is run here."""


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


def run_program(
    words: Sequence[str],
    what: str,
    command: str,
    *,
    variables: Mapping[str, str] | None = None,
    seconds: float = _SECONDS,
    telling: str | None = None,
) -> str:
    """A program's stdout; raises TargetUnavailable with its last words where it fails.

    ``what`` is wanted of it, ``command`` installs what is missing. ``telling``: the first line that holds this says
    more than the last one.
    """
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds,
            env=None if variables is None else dict(variables),
        )  # fmt: skip
    except FileNotFoundError:
        raise TargetUnavailable(f"{words[0]} is missing; run: {command}") from None
    except subprocess.TimeoutExpired:
        raise TargetUnavailable(f"{what}: {Path(words[0]).name} took more than {seconds:g} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if "[notice]" not in line]
        told = next((line for line in lines if telling is not None and telling in line), lines[-1] if lines else "")
        said = " ".join(told.split())[:300] or f"status {done.returncode}"
        raise TargetUnavailable(f"{what} cannot be had: {said}")
    return done.stdout

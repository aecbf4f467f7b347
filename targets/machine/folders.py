"""Where what belongs to a machine is kept: what was measured or converted once, and what was installed."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where what can be made again is kept: PARETOPRESS_CACHE, else ``paretopress`` in the user's cache folder."""
    own = os.environ.get("PARETOPRESS_CACHE")
    if own:
        return Path(own).expanduser()
    # The specification says that a relative path there is to be ignored.
    shared = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "paretopress"


def installation_folder(name: str, variable: str) -> Path:
    """Where an installation lies: what ``variable`` names, else ``paretopress/NAME`` in the user's data folder."""
    named = os.environ.get(variable)
    if named:
        return Path(named).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "paretopress" / name

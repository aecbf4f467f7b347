"""The first thing that runs on a device: it says what is there, and puts the runner into the cache folder.

Sent as text (``python3 -c``), so it knows nothing but the standard library. ``bundle.boot_code`` makes the command.

``ASKED`` is JSON: ``cache`` (folder), ``runner`` (name of a file in it), ``sha256`` (of that file), ``modules`` (what
the runtime needs). stdin is the runner, or empty. One line comes back: ``MARK``, then JSON.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from typing import Any

MARK = "paretopress:"


def look(asked: dict[str, Any], runner: bytes) -> dict[str, Any]:
    """What is there: ``python``, ``missing`` modules, ``broken`` (why numpy cannot be loaded), ``folder``, ``there``.

    Where the folder cannot be used: ``problem`` (errno, words) and ``free`` (bytes) instead of ``there``.
    """
    folder = os.path.abspath(os.path.expanduser(asked["cache"]))
    found: dict[str, Any] = {"python": list(sys.version_info[:3]), "folder": folder, "broken": ""}
    found["missing"] = [name for name in asked["modules"] if importlib.util.find_spec(name) is None]
    if "numpy" not in found["missing"] and not runner:  # nor has it changed since it was first looked at
        try:
            importlib.import_module("numpy")
        except Exception as error:  # a library that does not fit the system
            found["broken"] = " ".join(str(error).split())[:300]
    try:
        found["there"] = _put(folder, asked["runner"], asked["sha256"], runner)
    except OSError as error:
        found["problem"] = [error.errno, error.strerror or str(error)]
        found["free"] = _free(folder)
    return found


def _put(folder: str, name: str, wanted: str, runner: bytes) -> bool:
    """Store the runner if it came; returns whether the right one is there now."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if hasattr(os, "geteuid") and os.stat(folder).st_uid != os.geteuid():
        raise PermissionError(1, "it belongs to another user")
    path = os.path.join(folder, name)
    if runner and hashlib.sha256(runner).hexdigest() == wanted:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(runner)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest() == wanted


def _free(folder: str) -> int:
    """Bytes left where the folder is, or would be."""
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    with suppress(OSError):
        return shutil.disk_usage(folder).free
    return 0


if __name__ == "__main__":
    # Names of modules lying in the folder that the shell starts in (the home folder) are not meant.
    sys.path[:] = [place for place in sys.path if place]
    print(MARK + json.dumps(look(json.loads(sys.argv[1]), sys.stdin.buffer.read())))

"""A process that keeps a browser: ``python -m targets.runtimes.ort_web.browser_keeper COMMAND`` (JSON, its words).

It gives the browser a profile of its own, and ends it, with all its processes and the profile, when stdin is closed:
that is, when whoever started this is gone, however that died.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

_LOOK = 0.2
"""Seconds between two looks at whether the browser is there."""


def main() -> None:
    """Keep a browser until stdin is closed, or it ends by itself: then say its last words and end with its status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = Path(tempfile.mkdtemp(prefix="paretopress-browser-"))
    said = folder / "stderr"
    ended: int | None = None
    try:
        with said.open("wb") as errors:
            browser = subprocess.Popen(
                [*json.loads(sys.argv[1]), f"--user-data-dir={folder / 'profile'}"],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        try:
            while ended is None and not select.select([sys.stdin], [], [], _LOOK)[0]:
                ended = browser.poll()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
        if ended is not None:
            print(_last_words(said), file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if ended is None else abs(ended) or 1)


def _last_words(said: Path) -> str:
    lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip() and "dbus" not in line]
    return lines[-1] if lines else "the browser ended"


if __name__ == "__main__":
    main()

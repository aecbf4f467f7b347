"""One measurement at a time on a machine, whoever makes it: a lock that all its processes share.

Two measurements at the same moment slow each other down, and not both alike. So whoever times something here holds the
machine's lease meanwhile: the workers of one search, two searches, a benchmark beside them, or several hosts that use
the same board, since on a board it is the board's own lease. The system lets go of the lock of a process that ends.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock; there measurements are not kept apart
    fcntl = None  # type: ignore[assignment]

FOLDER = Path("/tmp/paretopress-leases")
"""One place for all users of the machine; nothing is read from it. PARETOPRESS_LEASES names another folder."""
PATIENCE = 900.0
"""Seconds after which a holder is taken to be stuck (a stopped process keeps its lock): then nobody waits any more."""
_LOOK = 0.01
_SAY = 1.0
"""Seconds between two times of saying that it waits."""


@contextlib.contextmanager
def leased(name: str = "measuring", waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the machine's lease ``name`` inside, after waiting for whoever holds it.

    ``waiting`` is called once a second meanwhile. Where no lock can be had (a read-only system, a file of somebody
    else's in its place) it holds nothing.
    """
    with leased_one([name], waiting):
        yield


@contextlib.contextmanager
def leased_one(names: Sequence[str], waiting: Callable[[], None] = lambda: None) -> Iterator[int]:
    """Hold one of several leases inside: the first in order that is free, else the first to become so.

    Gives its place in ``names``. ``waiting``, and what happens where no lock can be had: see ``leased``.
    """
    handles = [_opened(name) for name in names]
    try:
        yield _locked(handles, waiting)
    finally:
        for handle in handles:
            if handle is not None:
                os.close(handle)


def _opened(name: str) -> int | None:
    """The lock's file, open; it is everybody's, and never written to."""
    folder = Path(os.environ.get("PARETOPRESS_LEASES") or FOLDER)
    if fcntl is None:
        return None
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o1777)
        handle = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # another user's: it has this mode already
        if stat.S_IMODE(os.fstat(handle).st_mode) != 0o666:
            os.fchmod(handle, 0o666)
    return handle


def _locked(handles: Sequence[int | None], waiting: Callable[[], None]) -> int:
    """The place of the first handle that could be locked; of the first one where that takes too long."""
    start = said = time.monotonic()
    while time.monotonic() - start < PATIENCE:
        for place, handle in enumerate(handles):
            if handle is None:
                return place
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:
                return place  # a file system without locks
            return place
        if time.monotonic() - said >= _SAY:
            said = time.monotonic()
            waiting()
        time.sleep(_LOOK)
    return 0

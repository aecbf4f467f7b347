"""Running what the user brings as code, so that whatever it does ends in one line with its file and line."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from compress.values.error_lines import one_line
from compress.values.stack_traces import save_trace
from targets.errors import CompressError, TaskError

T = TypeVar("T")


def guarded(what: str, call: Callable[[], T]) -> T:
    """Run user code; what it raises becomes a TaskError with file and line, what it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except CompressError as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = _user_line(error)
        # What user code raises on purpose says all there is; what we raise about its settings lacks the line.
        if where and _is_ours(frames[-1].filename) and where not in str(error):
            raise type(error)(f"{error}{where}") from None
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{what} raised {describe(error)}; stack trace: {save_trace()}") from None


@contextlib.contextmanager
def naming_exits() -> Iterator[None]:
    """Turns a ``sys.exit()`` of user code into a TaskError with its line: a search that ends so is not done."""
    try:
        yield
    except SystemExit as error:
        raise TaskError(f"the task's code ended the program: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """``TypeError: ... (file.py:12)``: the first line of the message and the innermost user line."""
    return one_line(error, kind=True) + _user_line(error)


def is_users(file: str) -> bool:
    """Whether a source file is the user's: neither ours nor of an installed package or the standard library."""
    return not (_is_ours(file) or _is_installed(file))


def _user_line(error: BaseException) -> str:
    """`` (file.py:12)``: the innermost line that is neither ours nor of an installed package; may be empty."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_users(frame.filename):
            return f" ({frame.filename}:{frame.lineno})"
    return ""


def _is_ours(file: str) -> bool:
    root = Path(__file__).resolve().parents[2]
    path = Path(file).resolve()
    return any(path.is_relative_to(root / name) for name in ("compress", "targets"))


def _is_installed(file: str) -> bool:
    """Of the standard library or a package, or of no file (``<frozen importlib>``)."""
    return file.startswith(("<", sysconfig.get_path("stdlib"))) or not {"site-packages", "dist-packages"}.isdisjoint(
        Path(file).parts
    )

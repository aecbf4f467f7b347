"""What is told of a disk that is full, or that does not take what is written: such a failure need not happen again."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from targets.errors import TransientError

_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
_TEXTS = tuple(os.strerror(number) for number in _NUMBERS)
_TORCH = ("PytorchStreamWriter failed", "inline_container.cc")
"""How torch's own writer names a file that could not be written to its end."""


def is_storage_failure(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is that of a disk which is full or could not be written to."""
    seen: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in seen:
        if isinstance(step, OSError) and step.errno in _NUMBERS:
            return True
        # A library, or user code, may have put the system's words into an error of its own.
        if any(text in str(step) for text in (*_TEXTS, *_TORCH)):
            return True
        seen.append(step)
        step = step.__cause__ or step.__context__
    return False


def name_storage_failure(error: BaseException) -> str:
    """The failure in the system's words, as ``No space left on device``, also where an error hides them."""
    step: BaseException | None = error
    while step is not None:
        if isinstance(step, OSError) and step.errno in _NUMBERS:
            return step.strerror or os.strerror(step.errno)
        found = next((text for text in _TEXTS if text in str(step)), None)
        if found is not None:
            return found
        step = step.__cause__ or step.__context__
    return "the disk did not take what was written (is it full?)"


@contextlib.contextmanager
def naming_storage_failures(folder: Path) -> Iterator[None]:
    """Turns an OSError of a full or failing disk into a TransientError that says so, and what to do, in one line."""
    try:
        yield
    except OSError as error:
        if not is_storage_failure(error):
            raise
        where = error.filename or folder
        raise TransientError(
            f"{name_storage_failure(error)} while writing {str(where)!r}: make room and give the same command again; "
            f"everything finished so far is kept in {folder}"
        ) from error

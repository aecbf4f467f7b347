"""Where the stack trace of an error goes, so that what people are shown is one line."""

from __future__ import annotations

import tempfile
import traceback


def save_trace() -> str:
    """Write the stack trace of the exception being handled to a temporary file, and give its path.

    Where no file can be written (no temporary folder, a full disk), the words ``not kept, ...`` with the reason.
    """
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="paretopress-", suffix=".trace", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            traceback.print_exc(file=file)
    except OSError as error:
        return f"not kept, since no temporary file can be written ({error.strerror or error})"
    return file.name

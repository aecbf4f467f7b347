"""What an exception says, in one line: for messages that name the cause, and for records and reports."""

from __future__ import annotations

_LONGEST = 300
"""Characters of an exception's message that are shown; some libraries put pages of advice into one."""


def one_line(error: BaseException, *, kind: bool = False) -> str:
    """The first line of the exception's message that is not empty, spaces collapsed, at most 300 characters of it.

    Where the message is empty, the name of the exception's class. ``kind``: with the class's name before the
    message, as in ``ValueError: negative dimensions are not allowed``.

    >>> one_line(ValueError("no such axis\\nhere is some advice"))
    'no such axis'
    >>> one_line(ValueError("no such axis"), kind=True)
    'ValueError: no such axis'
    >>> one_line(AssertionError())
    'AssertionError'
    """
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    text = next(filter(None, lines), "")[:_LONGEST]
    name = type(error).__name__
    if not text:
        return name
    return f"{name}: {text}" if kind else text


def root_cause(error: BaseException) -> BaseException:
    """The exception that this one was raised from in the first place: the last one along ``__cause__``."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error

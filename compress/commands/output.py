"""What the commands share: their exit status, the option ``--json``, and who may write to stdout.

stdout carries a command's result, or with ``--json`` one JSON document and nothing else; stderr carries the progress.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from compress.values.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

SATISFIED, FAILED, WRONG, UNSATISFIED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit status: done; anything else; the request was wrong; done, but nothing meets the limits; ended by Ctrl-C."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@contextlib.contextmanager
def own_stdout() -> Iterator[None]:
    """Within this context, whatever is written to stdout goes to stderr.

    User code may print, and so may the programs that it starts, which is why the file descriptor is turned round and
    not ``sys.stdout`` alone.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def say(text: object, *, err: bool = False, keep: str = "") -> None:
    """Print a line for people, on stdout or (``err``) on stderr; nothing in it acts on the terminal (``printable``)."""
    click.echo(printable(text, keep=keep), err=err)


def print_json(document: Any) -> None:
    """Print ``document`` on stdout as JSON; NaN and infinities, which JSON lacks, become null."""
    from targets.documents import finite

    click.echo(json.dumps(finite(document), indent=1, allow_nan=False))


def make_console() -> Console:
    """A console that prints tables to stdout: as wide as the terminal, or 120 columns where there is none."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    # Tables are made for about 110 columns; a pipe has no width of its own.
    return console if console.is_terminal else Console(highlight=False, width=120)

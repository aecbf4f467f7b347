"""Output: carried here."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

SATISFIED, FAILED, WRONG, UNSATISFIED, INTERRUPTED = 0, 1, 2, 3, 130
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@contextlib.contextmanager
def _own_stdout() -> Iterator[None]:
    """What user code prints meanwhile goes to stderr, that of programs it starts as well: stdout stays ours."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _print_json(document: Any) -> None:
    from targets.documents import finite

    click.echo(json.dumps(finite(document), indent=1, allow_nan=False))


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    # Tables are made for about 110 columns; a pipe has no width of its own.
    return console if console.is_terminal else Console(highlight=False, width=120)

"""What a search says while it runs, on stderr: which trial, which stage, the best so far, the time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from compress.values.durations import format_duration
from compress.values.printable import printable

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """What the search tells. Every call is cheap; none may raise."""

    def stage(self, name: str) -> None:
        """The stage that begins now."""

    def trial(self, number: int, done: int, asked: int | None, left: float | None) -> None:
        """A trial begins: its number, how many are finished, of how many, seconds left."""

    def outcome(self, text: str) -> None:
        """A trial has ended so."""

    def best(self, text: str) -> None:
        """The best candidate so far that meets the constraints."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def close(self) -> None:
        """Nothing more comes."""


class Silent:
    """Says nothing."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def trial(self, number: int, done: int, asked: int | None, left: float | None) -> None:
        """Nothing."""

    def outcome(self, text: str) -> None:
        """Nothing."""

    def best(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Live:
    """A status line that changes in place on a terminal; elsewhere one line for every trial."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self._console = console or Console(stderr=True, highlight=False)
        self._status = self._console.status("starting") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()
        self._head = ""
        self._stage = "starting"
        self._best = ""
        self._deadline: float | None = None

    def stage(self, name: str) -> None:
        """Show the stage."""
        self._stage = name
        self._show()

    def trial(self, number: int, done: int, asked: int | None, left: float | None) -> None:
        """Show where the search is."""
        of = f" of {asked}" if asked else ""
        self._head = f"trial {done + 1}{of}" if number >= 0 else ""
        self._deadline = None if left is None else time.monotonic() + left
        self._show()

    def outcome(self, text: str) -> None:
        """Print how a trial ended."""
        self._print(text)

    def best(self, text: str) -> None:
        """Show the best so far; print it when it changes and no terminal shows it."""
        if text != self._best and self._status is None:
            self._print(f"  best so far: {text}")
        self._best = text
        self._show()

    def note(self, text: str) -> None:
        """Print a remark."""
        self._print(text)

    def close(self) -> None:
        """Remove the status line."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _print(self, text: str) -> None:
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def _show(self) -> None:
        if self._status is None:
            return
        parts: list[Any] = [part for part in (self._head, self._stage) if part]
        if self._deadline is not None:
            parts.append(f"{format_duration(max(0.0, self._deadline - time.monotonic()))} left")
        if self._best:
            parts.append(f"best {self._best}")
        from rich.markup import escape

        self._status.update(escape(printable("  ·  ".join(parts))))

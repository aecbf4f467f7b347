"""What a search says while it runs, on stderr: which trial, which stage, the best so far, the time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from compress.values.durations import format_duration
from compress.values.printable import printable

if TYPE_CHECKING:
    from rich.console import Console


_IN_WORDS = {
    "probe": "trying what the target can do",
    "training mode": "trying how this machine trains fastest",
    "profile": "trying where the network can be cut",
    "ask": "choosing a config",
    "gate": "latency gate",
    "teacher": "computing the baseline's outputs on train",
    "finetune": "fine-tune",
    "judge": "judging the short training",
    "sparsify": "sparsity learning",
    "train in int8": "training in int8",
}
"""Stages as they are shown, where their name in the record would not be understood."""


class Progress(Protocol):
    """What the search tells. Every call is cheap; none may raise."""

    def stage(self, name: str) -> None:
        """A stage of a trial, or of what is made ready, begins: its name in a few words."""

    def trial(self, number: int, done: int, asked: int | None, left: float | None) -> None:
        """A trial begins: its number, how many are finished, of how many, seconds left."""

    def outcome(self, text: str) -> None:
        """A trial has ended: what came of it, in one line."""

    def best(self, text: str) -> None:
        """The best candidate so far that meets the constraints."""

    def note(self, text: str) -> None:
        """Something that the user should know, in one line."""

    def close(self) -> None:
        """The search is over: nothing more will be told."""


class Silent:
    """Says nothing."""

    def stage(self, name: str) -> None:
        """What is told is not shown."""

    def trial(self, number: int, done: int, asked: int | None, left: float | None) -> None:
        """What is told is not shown."""

    def outcome(self, text: str) -> None:
        """What is told is not shown."""

    def best(self, text: str) -> None:
        """What is told is not shown."""

    def note(self, text: str) -> None:
        """What is told is not shown."""

    def close(self) -> None:
        """What is told is not shown."""


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
        """Show the stage in the status line."""
        first, comma, rest = name.partition(",")
        self._stage = f"{_IN_WORDS.get(first, first)}{comma}{rest}"
        self._show()

    def trial(self, number: int, done: int, asked: int | None, left: float | None) -> None:
        """Show in the status line which trial this is, and the time that is left."""
        of = f" of {asked}" if asked else ""
        self._head = f"trial {done + 1}{of}" if number >= 0 else ""
        self._deadline = None if left is None else time.monotonic() + left
        self._show()

    def outcome(self, text: str) -> None:
        """Print how a trial ended, above the status line."""
        self._print(text)

    def best(self, text: str) -> None:
        """Show the best so far; print it when it changes and no terminal shows it."""
        if text != self._best and self._status is None:
            self._print(f"  best so far: {text}")
        self._best = text
        self._show()

    def note(self, text: str) -> None:
        """Print the remark, above the status line."""
        self._print(text)

    def close(self) -> None:
        """Remove the status line from the terminal."""
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

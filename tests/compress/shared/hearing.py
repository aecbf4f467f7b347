"""A progress that keeps what a search tells it."""

from __future__ import annotations

from compress.searching.progress import Silent


class Heard(Silent):
    """Notes, outcomes of trials and stages, in the order in which they were told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.outcomes: list[str] = []
        self.stages: list[str] = []

    def note(self, text: str) -> None:
        """Keep a line."""
        self.notes.append(text)

    def outcome(self, text: str) -> None:
        """Keep what came of a trial."""
        self.outcomes.append(text)

    def stage(self, name: str) -> None:
        """Keep the name of a stage that begins."""
        self.stages.append(name)

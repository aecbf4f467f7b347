"""What a search says while it runs: one line a trial in a log, a line that changes on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from compress.searching.progress import Live, Silent


def tell(progress: Live | Silent) -> None:
    """A short search."""
    progress.stage("baseline")
    progress.note("warning: [bold]not markup[/bold]")
    progress.trial(0, 0, 6, 90.0)
    progress.stage("finetune, epoch 1 of 2")
    progress.outcome("trial 0: int8 0.95 at 0.75x (3 s)")
    progress.best("0000-int8: 0.750x")
    progress.best("0000-int8: 0.750x")
    progress.close()
    progress.close()


def test_a_log_gets_a_line_for_what_happened_and_none_for_what_is_going_on() -> None:
    file = io.StringIO()
    tell(Live(Console(file=file, width=40, force_terminal=False)))
    assert file.getvalue().splitlines() == [
        "warning: [bold]not markup[/bold]",
        "trial 0: int8 0.95 at 0.75x (3 s)",
        "  best so far: 0000-int8: 0.750x",
    ]


def test_a_terminal_shows_where_the_search_is() -> None:
    file = io.StringIO()
    live = Live(Console(file=file, width=200, force_terminal=True))
    live.trial(3, 2, 6, 90.0)
    live.stage("measure")
    live.best("0001-int8: 0.5x")
    assert live._status is not None
    assert str(live._status.status).startswith("trial 3 of 6  ·  measure  ·  1 min 30 s left  ·  best 0001-int8: 0.5x")
    live.close()


def test_silence_is_silent() -> None:
    tell(Silent())

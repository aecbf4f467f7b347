"""What ``paretopress bench`` shows while it runs: on a terminal, on stderr; elsewhere nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compress.reports.formatting import draw_bar, format_ratio, format_ratio_interval
from compress.values.durations import format_duration
from compress.values.printable import printable
from targets.benches.advice import short_names
from targets.target import Estimate, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_BAR = 20


class LiveBench:
    """Shows how a measurement stands: call it with every new estimate, inside ``with``, which removes the lines again.

    It draws only when it is called, since a thread of its own would run beside what is timed. Nothing is drawn where
    ``console`` (by default stderr) is no terminal.
    """

    def __init__(self, models: Sequence[str], protocol: Protocol, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        console = console or Console(stderr=True, highlight=False)
        self._names = [printable(name) for name in short_names([Path(model) for model in models])]
        self._protocol = protocol
        self._ratios: tuple[tuple[float, float, float], ...] = ()
        self._target = ""
        self._started = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> LiveBench:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, estimate: Estimate) -> None:
        """Show the newest estimate."""
        if estimate.target != self._target:
            self._target, self._ratios, self._started = estimate.target, (), time.monotonic()
        # A process that is only loading has nothing to show; what the one before it found stays.
        self._ratios = estimate.ratios or self._ratios
        if self._live is not None:
            self._live.update(self.shown(estimate), refresh=True)

    def shown(self, estimate: Estimate) -> Text:
        """A line on what is being done, and one for every model with its bar, ratio and interval."""
        from rich.text import Text

        spent = format_duration(time.monotonic() - self._started)
        limit = f" of {format_duration(self._protocol.total)} at most" if self._protocol.total else ""
        more = " or more" if estimate.process < self._protocol.most else ""
        text = Text(
            printable(f"{estimate.target}")
            + f"  process {estimate.process} of {estimate.processes}{more}  {spent}{limit}  ",
            no_wrap=True,
            overflow="ellipsis",
        )
        text.append("timing" if estimate.ratios else printable(estimate.stage), style="dim")
        if len(self._ratios) < 2:
            return text
        longest = max(1.0, *(value for value, _, _ in self._ratios))
        room = max(map(len, self._names))
        for name, (value, low, high) in zip(self._names, self._ratios, strict=False):
            bar = draw_bar(value, longest, _BAR)
            text.append(f"\n  {name:<{room}}  {bar:<{_BAR}}  {format_ratio(value)}")
            if low < high:
                text.append(f" [{format_ratio_interval(low, high)}]", style="dim")
        return text

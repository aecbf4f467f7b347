"""``misbehaving.py`` where cost is counted: goes wrong when it is asked to count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import misbehaving
import numpy as np

from targets.workers.runtime import Input


class Misbehaving(misbehaving.Misbehaving):
    """Counts one run."""

    def count(
        self,
        path: Path,
        make_feeds: Callable[[Sequence[Input]], dict[str, np.ndarray]],
        report: Callable[[str], None],
    ) -> tuple[int, tuple[Input, ...]]:
        """One, if the run comes back."""
        session = self.load(path)
        report("counting instructions")
        session.run(make_feeds(session.inputs))
        return 1, ()

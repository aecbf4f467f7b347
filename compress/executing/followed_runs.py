"""A run as a worker sees it: the record as it stood when the worker began, and what it adds is told to the driver."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.run_folder.records import Record
from compress.run_folder.runs import Run, read_request
from compress.values.serialization import finite, to_json
from targets.errors import RunError

Tell = Callable[[dict[str, Any]], None]
"""Told of an event that a worker would have written into the record."""


class FollowedRecord(Record):
    """A record that somebody else writes: what is appended is known here, and told."""

    def __init__(self, path: Path, tell: Tell) -> None:
        """Read what is there; raises RunError where it is damaged."""
        super().__init__(path, write=False)
        self._tell = tell

    def append(self, event: str, **values: Any) -> None:
        """Take the event into the state, and tell it."""
        entry = json.loads(json.dumps({"event": event, **finite(to_json(values))}))
        self.state.apply(entry)
        self._tell(entry)

    def close(self) -> None:
        """There is nothing to let go of."""


class FollowedRun(Run):
    """A run whose request somebody else writes."""

    def write_request(self) -> None:
        """Nothing is written: the driver did, or will."""


def follow(folder: Path, tell: Tell) -> FollowedRun:
    """The run in ``folder`` as a worker takes part in it; raises RunError where there is none."""
    request = read_request(folder)
    if request is None:
        raise RunError(f"{str(folder)!r} is not a run: it has no run.json")
    return FollowedRun(folder, FollowedRecord(folder / "record.jsonl", tell), request)

"""How many workers a search has."""

from __future__ import annotations

import os
from dataclasses import dataclass

from targets.errors import RequestError
from targets.machine import cpus

AUTO = "auto"


@dataclass(frozen=True)
class Cluster:
    """Which cluster trials are carried out on, and what one of them takes of it."""

    address: str
    """``ray://HOST:PORT``, ``HOST:PORT``, or ``auto`` for one that runs on this machine."""
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        """Raise RequestError for what no cluster can give."""
        if not self.address or self.cpus < 1 or self.gpus < 0:
            raise RequestError(
                f"cluster={self.address!r}, worker_cpus={self.cpus}, worker_gpus={self.gpus}: an address (or 'auto'), "
                "at least 1 CPU, and no fewer than 0 GPUs are needed"
            )


def cores() -> int:
    """How many cores this process may use."""
    return len(cpus.allowed()) or os.cpu_count() or 1


def check_workers(workers: int | str | None) -> None:
    """Raise RequestError unless ``workers`` is a whole number from 1 on, ``auto``, or not given."""
    whole = isinstance(workers, int) and not isinstance(workers, bool) and workers >= 1
    if not (whole or workers in (AUTO, None)):
        raise RequestError(f"workers={workers!r}: a whole number, at least 1, is needed, or {AUTO!r}")


def worker_count(workers: int | str | None, gpus: int, trials: int | None) -> int:
    """How many workers there are on this machine; ``auto``: one for each GPU, or each core where there is none.

    Not given: one. Never more than ``trials``, where that many are asked for.
    """
    count = workers if isinstance(workers, int) else 1 if workers is None else gpus or cores()
    return max(1, min(count, trials or count))

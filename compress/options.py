"""What a search may be asked besides task, target, objectives and constraints; checked before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compress.durations import parse_duration
from compress.sampling import SAMPLERS, check_sampler
from compress.selecting import PICKS
from targets.errors import RequestError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

KEEPS = ("all", "front")
"""Which artifacts a run keeps."""
_MOST_SEED = 2**32 - 1


def check_options(
    *,
    trials: int | None = None,
    time: str | float | None = None,
    seed: int | None = None,
    sampler: str | BaseSampler | None = None,
    device: str = "auto",
    workers: int = 1,
    pick: str | None = None,
    keep: str = "all",
) -> None:
    """Raise RequestError for what cannot be asked; None is "not given" and always fine."""
    from compress.training.training_modes import resolve_device

    if trials is not None and not (_is_whole(trials) and trials >= 1):
        raise RequestError(f"trials={trials!r}: a whole number, at least 1, is needed")
    parse_duration(time)
    if seed is not None and not (_is_whole(seed) and 0 <= seed <= _MOST_SEED):
        raise RequestError(f"seed={seed!r}: a whole number from 0 to {_MOST_SEED} is needed")
    check_sampler(sampler)
    if workers != 1:
        raise RequestError(f"workers={workers!r}: this version trains one network at a time; leave it at 1")
    if pick is not None and pick not in PICKS:
        raise RequestError(f"unknown pick {pick!r}; use one of {', '.join(PICKS)}")
    if keep not in KEEPS:
        raise RequestError(f"keep {keep!r}: use {' or '.join(repr(name) for name in KEEPS)}")
    resolve_device(device)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def sampler_name(given: str | BaseSampler | None, before: str | None) -> str:
    """The sampler's name for the run; ``before``: what a continued run had.

    Raises RequestError where that was an object of the caller's own, which no folder can hold.
    """
    if given is not None or before is None:
        return check_sampler(given)
    if before not in SAMPLERS:
        raise RequestError(
            f"the run was begun with a sampler of your own ({before}): "
            f"give it again, or a name (--sampler {', '.join(SAMPLERS)})"
        )
    return before

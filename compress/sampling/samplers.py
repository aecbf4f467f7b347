"""Optuna's samplers by name, seeded for each trial; and the points of a grid."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress.sampling.first_configs import steady
from compress.values.domains import Choice, Float, Int
from targets.errors import RequestError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

SAMPLERS = ("auto", "gp", "tpe", "nsga2", "random", "grid", "cost-aware")
_GRID_RATIOS = 9


def check_sampler(sampler: str | BaseSampler | None) -> str:
    """The sampler's name; raises RequestError for one that is not known."""
    if sampler is None:
        return "auto"
    if isinstance(sampler, str) and sampler in SAMPLERS:
        return sampler
    if not isinstance(sampler, str):
        from optuna.samplers import BaseSampler

        if isinstance(sampler, BaseSampler):
            return type(sampler).__name__
    raise RequestError(
        f"unknown sampler {sampler!r}; use one of {', '.join(SAMPLERS)}, or an optuna BaseSampler from Python"
    )


def make_sampler(sampler: str | BaseSampler, seed: int, number: int) -> BaseSampler:
    """A sampler seeded for one trial. One given by the user is copied, so that it carries nothing from ask to ask."""
    from optuna import samplers

    derived = (seed * 1_000_003 + number) % 2**31
    if not isinstance(sampler, str):
        mine = copy.deepcopy(sampler)
        _reseed(mine, derived)
        return mine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if sampler == "gp":
            return samplers.GPSampler(seed=derived, n_startup_trials=1, warn_independent_sampling=False)
        if sampler == "tpe":
            return samplers.TPESampler(seed=derived, n_startup_trials=5)
        if sampler == "nsga2":
            return samplers.NSGAIISampler(population_size=20, seed=derived)
        return samplers.RandomSampler(seed=derived)


def grid_params(dimensions: Mapping[str, Float | Int | Choice]) -> list[dict[str, Any]]:
    """All points of the grid: the pruning ratio in steps, every choice; the rest stays at a steady value."""
    axes: dict[str, list[Any]] = {}
    for name, domain in dimensions.items():
        if name == "prune_ratio" and isinstance(domain, Float):
            width = (domain.high - domain.low) / (_GRID_RATIOS - 1)
            axes[name] = [domain.low + i * width for i in range(_GRID_RATIOS)]
        elif isinstance(domain, Choice) and name != "precision":  # every precision comes of one training anyway
            axes[name] = list(domain.values)
        else:
            axes[name] = [steady(name, domain)]
    # The ratio changes fastest, so that a grid that is not walked to its end has seen all of them.
    names = sorted(axes, key=lambda name: name == "prune_ratio")
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axes[name] for name in names))]


def _reseed(sampler: Any, seed: int, depth: int = 0) -> None:
    """Seed every random state inside a sampler: there is no public way that is not random itself."""
    if depth > 3:
        return
    for value in list(vars(sampler).values()) if hasattr(sampler, "__dict__") else []:
        kind = type(value)
        if kind.__name__ == "LazyRandomState":
            value.rng.seed(seed)
        elif kind.__module__.startswith("optuna.samplers"):
            _reseed(value, seed, depth + 1)

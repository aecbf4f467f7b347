"""Parameters of an Optuna space as coordinates of a unit cube, drawn at random, and moved a little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_STEP = 0.1


def encoded(space: Mapping[str, BaseDistribution], points: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Coordinates of points, (n, d): one for a number, one for each choice of a categorical parameter."""
    from optuna.distributions import CategoricalDistribution

    columns: list[np.ndarray] = [np.full(len(points), 0.5)]
    for name, domain in space.items():
        if isinstance(domain, CategoricalDistribution):
            chosen = np.array([domain.choices.index(point[name]) for point in points])
            columns += [(chosen == i) / np.sqrt(2.0) for i in range(len(domain.choices))]
        else:
            low, high = _scale(domain, domain.low), _scale(domain, domain.high)  # type: ignore[attr-defined]  # numeric
            values = np.array([_scale(domain, point[name]) for point in points])
            columns.append((values - low) / max(high - low, 1e-12))
    return np.stack(columns, axis=1)


def randomly(space: Mapping[str, BaseDistribution], rng: np.random.Generator) -> dict[str, Any]:
    """A point, uniform over the space, on the logarithm of parameters that say so."""
    return {name: _drawn(domain, float(rng.random())) for name, domain in space.items()}


def nearby(space: Mapping[str, BaseDistribution], point: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The point with one or two of its parameters moved by about a tenth of their ranges, or chosen anew."""
    from optuna.distributions import CategoricalDistribution

    moved = {name: point[name] for name in space}
    names = list(space)
    for i in rng.choice(len(names), size=min(len(names), int(rng.integers(1, 3))), replace=False):
        name, domain = names[int(i)], space[names[int(i)]]
        if isinstance(domain, CategoricalDistribution):
            moved[name] = _drawn(domain, float(rng.random()))
            continue
        low, high = _scale(domain, domain.low), _scale(domain, domain.high)  # type: ignore[attr-defined]  # numeric
        step = float(rng.normal(0.0, _STEP))
        place = (_scale(domain, point[name]) - low) / max(high - low, 1e-12)
        found = _drawn(domain, min(max(place + step, 0.0), 1.0 - 1e-9))
        if found == point[name] and getattr(domain, "step", None):
            # The next step at least: a tenth may be less than one.
            found = min(max(point[name] + int(np.sign(step)) * domain.step, domain.low), domain.high)  # type: ignore[attr-defined]  # numeric
        moved[name] = found
    return moved


def _drawn(domain: BaseDistribution, place: float) -> Any:
    """The value at ``place`` of 0 to 1."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, CategoricalDistribution):
        return domain.choices[int(place * len(domain.choices))]
    if isinstance(domain, IntDistribution):
        low, high = domain.low - 0.5, domain.high + 0.5
        if domain.log:
            value = float(np.exp(np.log(low) + place * (np.log(high) - np.log(low))))
        else:
            value = low + place * (high - low)
        steps = round((value - domain.low) / domain.step)
        return min(max(domain.low + steps * domain.step, domain.low), domain.high)
    if isinstance(domain, FloatDistribution):
        low, high = _scale(domain, domain.low), _scale(domain, domain.high)
        value = low + place * (high - low)
        value = float(np.exp(value)) if domain.log else value
        if domain.step:
            value = domain.low + round((value - domain.low) / domain.step) * domain.step
        return min(max(value, domain.low), domain.high)
    raise TypeError(f"a parameter of {type(domain).__name__}; floats, integers and categories are known")


def _scale(domain: BaseDistribution, value: float) -> float:
    return float(np.log(value)) if getattr(domain, "log", False) else float(value)

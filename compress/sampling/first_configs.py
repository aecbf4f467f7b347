"""What is tried before a sampler takes over: configs that usually do well, and the way down to where quality ends.

A sampler that has seen nothing asks at random. These configs cut by a few round ratios, and then halve the distance
between the one that is still good enough and the one that is not any more: where the fastest network within the limits
is looked for, that is most of the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compress.values.configs import row
from compress.values.domains import Choice, Float, Int, middle, nearest
from compress.values.search_spaces import SearchSpace
from compress.values.settings import LARGEST

_NEAR = 0.1
"""Ratios that differ by no more than this are not halved any further: steps of width make the same networks of them."""


def strong_params(
    space: SearchSpace, dimensions: Mapping[str, Float | Int | Choice], groups: int, blocks: int = 0
) -> list[dict[str, Any]]:
    """Configs that are tried before the sampler takes over: they usually do well, and they calibrate it.

    All-int8 without training; half of the channels; three eighths, five eighths and three quarters, spared where it
    hurts most; one residual block and a quarter of the channels. Each is told in every precision, so half of the
    channels in int8 is among them. ``is_worth`` says which of them are still worth a training.
    """
    base = {name: steady(name, domain) for name, domain in dimensions.items()}
    wanted: list[dict[str, Any]] = [{"epochs": 0, "prune_ratio": 0.0}]
    if groups:
        wanted += [
            {"prune_ratio": 0.5},
            *_without_a_block(dimensions, blocks),
            {"prune_ratio": 0.375, "prune_skew": 0.25},
            {"prune_ratio": 0.625, "prune_skew": 0.25},
            {"prune_ratio": 0.75, "prune_skew": 0.4},
            {"prune_ratio": 0.75},
        ]
    found: list[dict[str, Any]] = []
    for changes in wanted:
        params = dict(base)
        for name, value in changes.items():
            domain = dimensions.get(name)
            if domain is None:
                continue
            # No training and no pruning mean what they say, also where the space begins above.
            params[name] = value if value == 0 else nearest(domain, value)
        ratio = space.prune_ratio
        if isinstance(ratio, (int, float)) and ratio > 0 and params.get("epochs") == 0:
            continue
        if params not in found:
            found.append(params)
    return found


def is_untouched(params: Mapping[str, Any]) -> bool:
    """Whether a config leaves the network as it is: nothing cut, nothing trained."""
    return params.get("epochs") == 0 and not params.get("prune_ratio")


def _without_a_block(dimensions: Mapping[str, Float | Int | Choice], blocks: int) -> list[dict[str, Any]]:
    """Where depth is searched: the least that drops a block at all, and few channels with it, where it hurts least."""
    domain = dimensions.get("depth")
    if domain is None or not blocks:
        return []
    shares = [float(v) for v in domain.values] if isinstance(domain, Choice) else [1.0 / blocks]
    least = min((share for share in shares if share > 0), default=0.0)
    return [{"depth": least, "prune_ratio": 0.25, "prune_skew": 0.25}] if least else []


def is_worth(ratio: float, seen: Sequence[tuple[float, float]]) -> bool:
    """Whether a strong config says more than those before it, (ratio, excess of quality over its limit) each.

    One that cuts more than what has lost twice as much as allowed is hopeless; one that cuts less than what has lost
    no more than allowed gains nothing. The excess is a share of the limit.
    """
    too_much = any(cut <= ratio and excess > 1.0 for cut, excess in seen)
    return not too_much and not any(cut >= ratio and excess <= 0.0 for cut, excess in seen)


def halfway(seen: Sequence[tuple[float, float]]) -> float | None:
    """The ratio between the largest that was good enough and the smallest beyond that was not; None if they are near.

    ``seen`` as for ``is_worth``. Nothing cut is good enough.
    """
    good = max((cut for cut, excess in seen if excess <= 0.0), default=0.0)
    bad = min((cut for cut, excess in seen if excess > 0.0 and cut > good), default=good)
    return (good + bad) / 2 if bad - good > _NEAR else None


def for_each_depth(strong: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of the strong configs one for each depth, to be cut by other ratios: one that spares what cutting hurts most."""
    cut = [params for params in strong if params.get("prune_ratio")]
    found = {params.get("depth"): params for params in reversed(cut)}
    found |= {params.get("depth"): params for params in reversed(cut) if params.get("prune_skew")}
    return list(found.values())


def steady(name: str, domain: Float | Int | Choice) -> Any:
    """A value that seldom hurts: little regularization, distillation on, the longest training."""
    wish = row(name).setting.steady
    if wish == LARGEST:
        return domain.high if isinstance(domain, Int) else middle(domain)
    return middle(domain) if wish is None else nearest(domain, wish)

"""Which networks a search space allows, and whether it leaves them to be chosen one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from compress.values.configs import row
from compress.values.domains import Choice, Float, Int, corners, nearest
from compress.values.networks import GroupLadder, Network, Pattern
from compress.values.search_spaces import AUTO, SearchSpace

_MOST_REMOVED = 0.99


def why_not_networks(space: SearchSpace, groups: int, blocks: int) -> str | None:
    """Why networks of ``space`` cannot be chosen by their widths and blocks, in words; None where they can.

    ``groups``: how many can be pruned; ``blocks``: how many can be dropped.
    """
    if not groups and (not blocks or _no_depth(space)):
        return "nothing of the network can be cut"
    if not isinstance(space.prune_ratio, (Float, Choice)) or corners(space.prune_ratio) == (0.0,):
        return "prune_ratio is not searched"
    if groups > 1 and not isinstance(space.prune_delta, Float):
        return "prune_delta is not searched, so all groups have one ratio"
    if _removed(space)[0] > 0.0:
        return "every config of the space is cut"
    for name in ("allocation", "prune_steps", "sparsity"):
        if corners(space.domains()[name]) != (row(name).neutral,):
            return f"{name} is searched or set, and widths follow from it"
    if space.depth != AUTO and not _no_depth(space) and not isinstance(space.depth, (Float, Choice)):
        return "depth is fixed"
    return None


def allowed(patterns: Sequence[Pattern], space: SearchSpace, blocks: int) -> tuple[Pattern, ...]:
    """The patterns and widths that ``space`` allows; the whole baseline is always among them."""
    kept = [one for one in patterns if not one.dropped or _may_drop(space, len(one.dropped), blocks)]
    most = _removed(space)[1]
    return tuple(replace(one, groups=tuple(_narrowed(group, most) for group in one.groups)) for one in kept)


def projected(network: Network, whole: Pattern, dimensions: Mapping[str, Float | Int | Choice]) -> dict[str, Any]:
    """Where a network lies among the usual dimensions: the mean share that its groups lose, and what each loses more.

    So another sampler can learn from it, and importances can be told.
    """
    shares = {
        group.name: 1.0 - network.width_of[group.name] / group.channels
        for group in whole.groups
        if group.name in network.width_of
    }
    mean = sum(shares.values()) / len(shares) if shares else 0.0
    found: dict[str, Any] = {}
    for name, domain in dimensions.items():
        if name == "prune_ratio":
            found[name] = nearest(domain, mean)
        elif name == "prune_skew":
            found[name] = nearest(domain, 0.0)
        elif name.startswith("prune_delta."):
            found[name] = nearest(domain, shares.get(name.removeprefix("prune_delta."), mean) - mean)
    return found


def _no_depth(space: SearchSpace) -> bool:
    return corners(space.depth) == (0.0,)


def _may_drop(space: SearchSpace, count: int, blocks: int) -> bool:
    if space.depth == AUTO:
        return True
    ends = [round(float(share) * blocks) for share in corners(space.depth)]
    return count in ends if isinstance(space.depth, Choice) else min(ends) <= count <= max(ends)


def _removed(space: SearchSpace) -> tuple[float, float]:
    """The least and the most of a group that a config of ``space`` may remove."""
    ratios, skews, deltas = (
        [float(x) for x in corners(domain)] for domain in (space.prune_ratio, space.prune_skew, space.prune_delta)
    )
    slack = max(abs(skew) for skew in skews) / 2
    least, most = min(ratios) + min(deltas) - slack, max(ratios) + max(deltas) + slack
    return max(0.0, least), min(_MOST_REMOVED, most)


def _narrowed(group: GroupLadder, most: float) -> GroupLadder:
    least = math.ceil((1.0 - most) * group.channels - 1e-9)
    return replace(group, widths=tuple(width for width in group.widths if width >= least) or (group.channels,))

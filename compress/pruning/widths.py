"""Width arithmetic: how many channels a pruning ratio leaves. Pure numbers, no network.

Torch-Pruning's ``round_to`` rounds down and does nothing at all where that gives zero (32 channels at a ratio of
0.7 rounded to 16 stay 32), so widths are computed here. A width is chosen from a fixed ladder, the nearest rung to
what the ratio asks for; that makes it monotone in the ratio, and a realised width realises to itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from targets.errors import SpaceError

MOST_RATIO = 0.95
"""The largest share of its channels that ``evened`` gives a group to lose."""
_TILT = 0.01
"""Damage that is added for each share, so that curves which are flat rise as well."""
_NOTHING = 1e-12
"""Damage up to this is taken for none."""


def check_ratio(ratio: float, name: str = "") -> float:
    """The pruning ratio itself if it is in [0, 1); raises SpaceError otherwise (NaN and non-numbers included).

    ``name``: whose ratio it is, for the message.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        of = f" of {name!r}" if name else ""
        raise SpaceError(f"pruning ratio{of} is {ratio!r}: it must be in [0, 1), the share of channels to remove")
    return float(ratio)


def check_step(step: int) -> int:
    """The step itself if it is a whole number of at least 1; raises SpaceError otherwise."""
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise SpaceError(f"width step is {step!r}: it must be a whole number of at least 1")
    return step


def ladder(channels: int, step: int = 1, multiple: int = 1) -> range:
    """The widths below ``channels`` that may be chosen, ascending; ``channels`` itself always may, too.

    They are the multiples of both ``step`` (a wish: latency falls there) and ``multiple`` (a must: grouped
    convolutions, GroupNorm, heads). Where no multiple of both fits, the wish gives way.
    A step greater than ``channels`` leaves nothing but ``channels``.

    >>> list(ladder(64, step=16))
    [16, 32, 48]
    >>> list(ladder(40, step=16, multiple=10))  # no multiple of both is below 40: the wish gives way
    [10, 20, 30]
    """
    unit = math.lcm(step, multiple)
    if unit > channels >= step:
        unit = multiple
    return range(unit, channels, unit)


def realise(channels: int, ratio: float, step: int = 1, multiple: int = 1) -> int:
    """Channels to keep of ``channels`` when the share ``ratio`` is to be removed.

    The width on the ladder (see ``ladder``) nearest to ``channels * (1 - ratio)``; of two equally near ones the
    wider. At least one step is kept, never more than ``channels``; a ratio of 0 keeps all.

    Raises SpaceError if ``ratio`` is not in [0, 1), ``step`` is below 1, or ``channels`` is not a positive multiple
    of ``multiple``.

    >>> realise(64, 0.3)
    45
    >>> realise(64, 0.3, step=16)
    48
    >>> realise(32, 0.7, step=16)
    16
    """
    check_ratio(ratio)
    check_step(step)
    if channels < 1 or multiple < 1 or channels % multiple:
        raise SpaceError(f"{channels} channels cannot be cut in multiples of {multiple}: not a positive multiple of it")
    rungs = ladder(channels, step, multiple)
    wanted = channels * (1.0 - ratio)
    if not rungs:
        return channels
    # The two rungs around the wanted width, clipped to the ladder; the top of the ladder is `channels` itself.
    below = min(max(math.floor(wanted / rungs.step), 1), len(rungs)) * rungs.step
    above = below + rungs.step if below + rungs.step < channels else channels
    # A hair of float error must not turn a tie (or an exact rung) into the neighbour.
    return above if above - wanted <= wanted - below + 1e-9 * channels else below


def evened(
    curves: Mapping[str, Sequence[tuple[float, float]]], channels: Mapping[str, int], ratio: float
) -> dict[str, float]:
    """Group -> share to remove, so that ``ratio`` of all channels goes and each group's cut costs the same by itself.

    ``curves``: group -> measured (share removed, damage), in ascending order of the share; in between and beyond, the
    damage is taken to go on in straight lines, and never to fall. What costs nothing goes first.

    >>> curves = {"first": [(0.5, 0.1)], "second": [(0.5, 0.3)]}
    >>> shares = evened(curves, {"first": 32, "second": 32}, ratio=0.4)
    >>> {name: round(share, 2) for name, share in shares.items()}
    {'first': 0.6, 'second': 0.2}
    """
    whole = {name: _rising(points) for name, points in curves.items()}
    worst = max((points[-1][1] for points in whole.values()), default=0.0)
    scale = 1.0 / worst if worst > _NOTHING else 0.0
    # A little more for every channel: flat stretches would leave the share open.
    whole = {name: [(share, scale * harm + _TILT * share) for share, harm in points] for name, points in whole.items()}
    total = sum(channels.values())
    low, high = 0.0, max((points[-1][1] for points in whole.values()), default=0.0)
    shares = dict.fromkeys(whole, 0.0)
    for _ in range(60):
        level = (low + high) / 2
        shares = {name: _share_at(points, level) for name, points in whole.items()}
        if sum(shares[name] * channels[name] for name in whole) < ratio * total:
            low = level
        else:
            high = level
    return shares


def _rising(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The curve from (0, 0) to the share MOST_RATIO, which never falls."""
    found = [(0.0, 0.0)]
    for share, damage in points:
        found.append((share, max(damage, found[-1][1])))
    (a, low), (b, high) = found[-2:] if len(found) > 1 else (found[0], (MOST_RATIO, 0.0))
    if b < MOST_RATIO:
        found.append((MOST_RATIO, high + (high - low) / (b - a) * (MOST_RATIO - b)))
    return found


def _share_at(points: Sequence[tuple[float, float]], level: float) -> float:
    """The share at which a strictly rising curve reaches ``level``, at most its last."""
    for (a, low), (b, high) in itertools.pairwise(points):
        if level <= high:
            return a + (b - a) * (level - low) / (high - low)
    return points[-1][0]

"""Networks that could be trained next: random ones, neighbours of given ones, and some to measure.

Everything is drawn from a seeded generator, so that the same search looks at the same networks again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compress.sampling.network_arrays import Patterns, macs, whole
from compress.values.networks import Network, Pattern

_DROPPED = 0.4
"""Probability of a block to be dropped in a random network."""
_SPREAD = 0.25
"""Standard deviation of a group's place on its ladder around the network's own."""
_TOGGLED = 0.25
"""Share of neighbours in which a block is dropped or put back."""
_RELIEF = 8
"""Steps on the way to less memory, which is about that of the narrowest groups then."""


def random_networks(patterns: Patterns, count: int, seed: int) -> list[Network]:
    """``count`` different networks, or fewer where there are not so many; the whole baseline is the first.

    Each has a level, uniform from its narrowest to its full widths, around which every group lies on its ladder; a
    block is dropped with probability 0.4, as far as there is a pattern without it.
    """
    rng = np.random.default_rng(seed)
    keys = sorted(patterns)
    blocks = len({name for key in keys for name in key})
    chances = np.array([_DROPPED ** len(key) * (1 - _DROPPED) ** (blocks - len(key)) for key in keys])
    found = {whole(patterns[()]): None}
    # Small spaces run out of networks: then it ends after as many vain draws.
    for chosen in rng.choice(len(keys), size=4 * count, p=chances / chances.sum()):
        if len(found) >= count:
            break
        pattern = patterns[keys[chosen]]
        found.setdefault(_at_levels(pattern, rng.random() + rng.normal(0.0, _SPREAD, len(pattern.groups))))
    return list(found)


def neighbours(patterns: Patterns, networks: Sequence[Network], each: int, seed: int) -> list[Network]:
    """Up to ``each`` neighbours of every network: one or two groups one step wider or narrower on their ladders.

    In a quarter of them a block is dropped or put back as well. None of ``networks`` is among them.
    """
    rng = np.random.default_rng(seed)
    found: dict[Network, None] = {}
    for network in networks:
        for _ in range(each):
            near = _toggled(patterns, network, rng) if rng.random() < _TOGGLED else network
            if near is network or rng.random() < 0.5:
                near = _stepped(patterns[near.dropped], near, rng)
            found.setdefault(near)
    return [network for network in found if network not in set(networks)]


def relieved(
    patterns: Patterns, networks: Sequence[Network], at_peak: Callable[[Network], Sequence[str]]
) -> list[Network]:
    """What leads from each network to less memory: an eighth of its ladder off each group at its peak, and so on.

    ``at_peak``: the groups of a network that make its peak of memory. Up to eight networks each; ``networks`` are not
    among them.
    """
    found: dict[Network, None] = {}
    for network in networks:
        for _ in range(_RELIEF):
            named, widths = set(at_peak(network)), []
            for group in patterns[network.dropped].groups:
                place = group.widths.index(network.width_of[group.name])
                off = max(1, len(group.widths) // _RELIEF) if group.name in named else 0
                widths.append((group.name, group.widths[max(0, place - off)]))
            narrower = Network(network.dropped, tuple(sorted(widths)))
            if narrower == network:
                break
            network = narrower
            found.setdefault(network)
    return [network for network in found if network not in set(networks)]


def spread(patterns: Patterns, count: int, seed: int) -> list[Network]:
    """Different networks to be measured, from the smallest to the whole baseline, many small ones among them.

    Of 500 random networks, sorted by MACs, those at ranks (i / (count - 1))^1.5.
    """
    networks = random_networks(patterns, 500, seed)
    order = np.argsort(macs(patterns, networks), kind="stable")
    count = min(count, len(networks))
    ranks = np.round((np.arange(count) / max(1, count - 1)) ** 1.5 * (len(networks) - 1)).astype(int)
    return [networks[order[rank]] for rank in sorted(set(ranks.tolist()))]


def _at_levels(pattern: Pattern, levels: np.ndarray) -> Network:
    """The network whose groups lie at ``levels`` of their ladders: 0 for the narrowest, 1 for the full width."""
    widths = []
    for group, level in zip(pattern.groups, np.clip(levels, 0.0, 1.0), strict=True):
        widths.append((group.name, group.widths[round(float(level) * (len(group.widths) - 1))]))
    return Network(pattern.dropped, tuple(sorted(widths)))


def _stepped(pattern: Pattern, network: Network, rng: np.random.Generator) -> Network:
    """One or two groups one step up or down; where all of them stand at an end, the network itself."""
    ladders = [group for group in pattern.groups if len(group.widths) > 1]
    if not ladders:
        return network
    widths = dict(network.width_of)
    for i in rng.choice(len(ladders), size=min(len(ladders), int(rng.integers(1, 3))), replace=False):
        ladder = ladders[int(i)]
        place = ladder.widths.index(widths[ladder.name]) + int(rng.choice((-1, 1)))
        widths[ladder.name] = ladder.widths[min(max(place, 0), len(ladder.widths) - 1)]
    return Network(network.dropped, tuple(sorted(widths.items())))


def _toggled(patterns: Patterns, network: Network, rng: np.random.Generator) -> Network:
    """One block dropped or put back. Groups of the new pattern keep their widths; new ones lie where the others do."""
    here = set(network.dropped)
    others = [key for key in sorted(patterns) if len(here.symmetric_difference(key)) == 1]
    if not others:
        return network
    pattern = patterns[others[int(rng.integers(len(others)))]]
    old = {group.name: group for group in patterns[network.dropped].groups}
    levels = [group.widths.index(network.width_of[name]) / max(1, len(group.widths) - 1) for name, group in old.items()]
    usual = float(np.mean(levels)) if levels else 1.0
    widths = []
    for group in pattern.groups:
        width = network.width_of.get(group.name)
        if width not in group.widths:
            width = group.widths[round(usual * (len(group.widths) - 1))]
        widths.append((group.name, width))
    return Network(pattern.dropped, tuple(sorted(widths)))

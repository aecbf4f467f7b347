"""A space of networks without any torch: a trunk, three residual blocks that can be dropped, and a head."""

import itertools

from compress.sampling.network_arrays import patterns_by_dropped
from compress.values.networks import GroupLadder, LayerShape, Network, Pattern

BLOCKS = ("a", "b", "c")
WIDTHS = (16, 32, 48, 60)
FULL = 60


def pattern(dropped: tuple[str, ...]) -> Pattern:
    """The space without some blocks; block ``a`` has a depthwise layer, the others are two convolutions."""
    left = [name for name in BLOCKS if name not in dropped]
    layers = [LayerShape("stem", "conv", 9, 64, 3, FULL, (), (("trunk", 1),))]
    for name in left:
        trunk, own = (("trunk", 1),), ((name, 1),)
        layers.append(LayerShape(f"{name}.0", "conv", 9, 64, FULL, FULL, trunk, own))
        if name == "a":
            layers.append(LayerShape(f"{name}.1", "depthwise", 9, 64, FULL, FULL, own, own))
        layers.append(LayerShape(f"{name}.2", "conv", 1, 64, FULL, FULL, own, trunk))
    layers.append(LayerShape("head", "linear", 1, 1, 4 * FULL, 10, (("trunk", 4),), ()))
    return Pattern(dropped, tuple(GroupLadder(name, FULL, WIDTHS) for name in ("trunk", *left)), tuple(layers))


PATTERNS = patterns_by_dropped(
    [pattern(dropped) for count in range(3) for dropped in itertools.combinations(BLOCKS, count)]
)


def network(*widths: int, dropped: tuple[str, ...] = ()) -> Network:
    """Widths of the trunk and of the blocks that are left, in their order."""
    names = ["trunk", *(name for name in BLOCKS if name not in dropped)]
    return Network(dropped, tuple(sorted(zip(names, widths, strict=True))))

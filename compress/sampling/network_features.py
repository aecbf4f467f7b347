"""What a quality model sees of a network: how wide its layers are, how much of the whole is left, what is dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from compress.sampling.network_arrays import Patterns, by_pattern, channels, macs, whole
from compress.values.networks import Network

GONE = -3.5
"""Where a layer's logarithm of width would be, its block being dropped: narrower than an eighth."""
_LEAST_SHARE = 1e-4


@dataclass(frozen=True)
class Seen:
    """Features of n networks."""

    layers: np.ndarray
    """Logarithms to base 2 of each layer's share of output channels left, ``GONE`` where it is dropped; (n, layers)."""
    whole: np.ndarray
    """Decimal logarithm of the share of MACs; a quarter of that of the damage; 0.3 for each dropped block; (n, 3)."""
    expected: np.ndarray
    """How much worse the logarithm of the loss is expected to be than the baseline's, before anything is seen; (n,)."""


@dataclass(frozen=True)
class Eyes:
    """Reads features off networks; what depends on the patterns alone is computed once."""

    patterns: Patterns
    damage: Callable[[Sequence[Network]], np.ndarray] | None = None
    """Networks -> the sum of the importance (Taylor scores) of all channels that they lack, of shape (n,)."""
    _known: dict[Network, tuple[np.ndarray, np.ndarray, float]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _baseline_macs(self) -> float:
        return float(macs(self.patterns, [whole(self.patterns[()])])[0])

    @cached_property
    def _varying(self) -> tuple[str, ...]:
        """Layers that may become narrower, or be dropped: the others say nothing."""
        names = {layer.name for pattern in self.patterns.values() for layer in pattern.layers if layer.output_groups}
        for pattern in self.patterns.values():
            names |= {layer.name for layer in self.patterns[()].layers} - {layer.name for layer in pattern.layers}
        # Without any, one that never changes: a distance needs a coordinate.
        return tuple(layer.name for layer in self.patterns[()].layers if layer.name in names) or (
            self.patterns[()].layers[0].name,
        )

    @cached_property
    def _blocks(self) -> int:
        return len({name for dropped in self.patterns for name in dropped})

    def see(self, networks: Sequence[Network]) -> Seen:
        """Features of ``networks``, in their order."""
        missing = [network for network in dict.fromkeys(networks) if network not in self._known]
        if missing:
            self._look(missing)
        found = [self._known[network] for network in networks]
        return Seen(
            np.array([layers for layers, _, _ in found]).reshape(len(found), len(self._varying)),
            np.array([rest for _, rest, _ in found]).reshape(len(found), 3),
            np.array([expected for _, _, expected in found]),
        )

    def _look(self, networks: Sequence[Network]) -> None:
        place = {name: i for i, name in enumerate(self._varying)}
        full = {layer.name: layer.outputs for layer in self.patterns[()].layers}
        layers = np.full((len(networks), len(place)), GONE)
        for dropped, indices in by_pattern(networks).items():
            pattern = self.patterns[dropped]
            _, outputs = channels(pattern, [networks[i] for i in indices])
            for j, layer in enumerate(pattern.layers):
                if layer.name in place:
                    layers[indices, place[layer.name]] = np.log2(np.maximum(outputs[:, j] / full[layer.name], 2**GONE))
        share = np.log10(np.maximum(macs(self.patterns, networks) / self._baseline_macs, _LEAST_SHARE))
        damage = np.zeros(len(networks)) if self.damage is None else self.damage(networks)
        dropped_blocks = np.array([len(network.dropped) for network in networks], dtype=np.float64)
        rest = np.stack([share, 0.25 * np.log10(1.0 + np.maximum(damage, 0.0)), 0.3 * dropped_blocks], axis=1)
        # Without this the first choice is the cheapest network there is, which never works.
        expected = -0.8 * share + 2.0 * (dropped_blocks / max(1, self._blocks)) ** 2
        for i, network in enumerate(networks):
            self._known[network] = (layers[i], rest[i], float(expected[i]))

"""The networks that can be cut out of a baseline, as plain data: which blocks may go, and what is left at which widths.

A pattern is the baseline without some of its blocks. Its layers' shapes are linear in the widths of its groups, which
is read off the slots of the groups and one run; so what any of its networks computes is known without cutting it.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

from torch import Tensor, nn

from compress.networks.prepared_modules import ready
from compress.pruning.blocks import Blocks, groups_without, without_blocks
from compress.pruning.cutting import cut, tensor_named
from compress.pruning.groups import Group, Groups
from compress.pruning.layers import Matrix, MatrixAxis, matrices
from compress.pruning.narrow_attention import adapt
from compress.pruning.widths import check_step, ladder
from compress.values.error_lines import one_line
from compress.values.networks import GroupLadder, LayerShape, Pattern
from targets.errors import TaskError

MOST_PATTERNS = 16
"""With more sets of blocks than these, no more than two blocks are dropped at once."""


def network_patterns(
    module: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    groups: Groups,
    blocks: Blocks,
    step: int = 1,
    *,
    most: int = MOST_PATTERNS,
    without: Callable[[tuple[str, ...]], Groups] | None = None,
) -> tuple[Pattern, ...]:
    """The patterns of ``module``, the whole network first; those with fewer blocks dropped before those with more.

    ``groups`` and ``blocks`` were found for ``module``; ``step``: widths are multiples of it. All sets of blocks if
    there are at most ``most``, else one block and two. ``without``: names of blocks -> the groups that are left, for a
    caller that remembers them. A set of blocks without which the network does not run is left out.

    Raises TaskError if the whole network does not run, SpaceError for a step that is no whole number from 1.
    """
    found = [network_pattern(module, example_inputs, groups, blocks, (), step)]
    for dropped in dropped_sets([block.name for block in blocks.removable], most)[1:]:
        try:
            left = (
                groups_without(module, example_inputs, groups, blocks, dropped) if without is None else without(dropped)
            )
            found.append(network_pattern(module, example_inputs, left, blocks, dropped, step))
        except TaskError:
            continue
    return tuple(found)


def dropped_sets(names: Sequence[str], most: int = MOST_PATTERNS) -> list[tuple[str, ...]]:
    """Which blocks to drop together: all sets if they are at most ``most``, else up to pairs; the empty one first.

    >>> dropped_sets(["a", "b"])
    [(), ('a',), ('b',), ('a', 'b')]
    >>> len(dropped_sets("abcd")), len(dropped_sets("abcde"))
    (16, 16)
    """
    deepest = len(names) if len(names) < 31 and 2 ** len(names) <= most else 2
    return [one for count in range(min(deepest, len(names)) + 1) for one in itertools.combinations(names, count)]


def network_pattern(
    module: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    groups: Groups,
    blocks: Blocks,
    dropped: Iterable[str],
    step: int = 1,
) -> Pattern:
    """One pattern: ``module`` without the blocks ``dropped``; ``groups`` are those that are left then.

    A group of which some channels sit in more places of a layer than others keeps its width: the shapes of layers
    would not be linear in it. Raises TaskError where the network does not run, SpaceError for a name or a step that
    does not fit.
    """
    check_step(step)
    names = tuple(sorted(set(dropped)))
    whole, inputs = ready(module, example_inputs)
    network = (without_blocks(whole, blocks.named(names)) if names else copy.deepcopy(whole)).eval()
    adapt(network)
    try:
        found = matrices(network, inputs)
    except Exception as error:
        raise TaskError(
            f"the model does not run on example_inputs without {', '.join(names) or 'anything dropped'} "
            f"({one_line(error, kind=True)})"
        ) from error
    held = _Held(network, groups)
    uneven = {group for matrix in found for group in held.uneven(matrix)}
    layers = [_shape(matrix, held, uneven) for matrix in found]
    uneven |= _fitted(network, inputs, groups, uneven, layers)
    return Pattern(names, tuple(_ladder(group, step, uneven) for group in groups.prunable), tuple(layers))


def _fitted(
    network: nn.Module, inputs: tuple[Tensor, ...], groups: Groups, uneven: set[str], layers: list[LayerShape]
) -> set[str]:
    """Make ``layers`` say what a cut network has, in place; names of groups with which they cannot.

    All groups are cut at once; where a layer is then not as it says, each group alone, to see which changes what.
    """
    full = {group.name: group.channels for group in groups.prunable}
    free = [group for group in groups.prunable if group.name not in uneven and group.multiple < group.channels]
    if not _wrong(network, inputs, full, free, layers):
        return set()
    bad: set[str] = set()
    for group in free:
        for k, change in _wrong(network, inputs, full, [group], layers).items():
            if change is None:
                bad.add(group.name)
            else:
                lost = _half(group)
                entry = (group.name, change / len(lost))
                layers[k] = replace(layers[k], position_groups=(*layers[k].position_groups, entry))
    free = [group for group in free if group.name not in bad]
    if not _wrong(network, inputs, full, free, layers):
        return bad
    together: list[Group] = []
    for group in free:
        if _wrong(network, inputs, full, [*together, group], layers):
            bad.add(group.name)
        else:
            together.append(group)
    return bad


def _wrong(
    network: nn.Module, inputs: tuple[Tensor, ...], full: dict[str, int], cutting: list[Group], layers: list[LayerShape]
) -> dict[int, int | None]:
    """Layers that are not as they say where half of each of some groups is cut.

    Place of the layer -> positions that it has too few of; None where it is its channels that are others.
    """
    smaller = copy.deepcopy(network)
    cut(smaller, [(group, _half(group)) for group in cutting])
    found = matrices(smaller, inputs)
    widths = full | {group.name: group.channels - len(_half(group)) for group in cutting}
    if [matrix.name for matrix in found] != [layer.name for layer in layers]:
        return dict.fromkeys(range(len(layers)))
    wrong: dict[int, int | None] = {}
    for k, (matrix, layer) in enumerate(zip(found, layers, strict=True)):
        if (matrix.inputs, matrix.outputs) != layer.channels(widths, full) or matrix.parts != layer.parts:
            wrong[k] = None
        elif matrix.positions != layer.places(widths, full):
            wrong[k] = layer.places(widths, full) - matrix.positions
    return wrong


def _half(group: Group) -> tuple[int, ...]:
    """Half of the channels, at least one of each block, the last ones."""
    return tuple(c for block in group.blocks() for c in block[max(1, len(block) // 2) :])


def _ladder(group: Group, step: int, uneven: set[str]) -> GroupLadder:
    rungs = () if group.name in uneven else tuple(ladder(group.channels, group.step(step), group.multiple))
    return GroupLadder(group.name, group.channels, (*rungs, group.channels))


def _shape(matrix: Matrix, held: _Held, uneven: set[str]) -> LayerShape:
    return LayerShape(
        name=matrix.name,
        kind=matrix.kind,
        kernel=matrix.kernel,
        positions=matrix.positions,
        inputs=matrix.inputs,
        outputs=matrix.outputs,
        input_groups=held.shares(matrix, uneven, inputs=True),
        output_groups=held.shares(matrix, uneven, inputs=False),
        input_overlaps=held.overlaps(matrix, inputs=True),
        output_overlaps=held.overlaps(matrix, inputs=False),
        parts=matrix.parts,
    )


class _Held:
    """Which groups' channels sit along which axes of a network's weights."""

    def __init__(self, network: nn.Module, groups: Groups) -> None:
        self.network = network
        self.groups = {group.name: group for group in groups.prunable}
        self.places: dict[tuple[int, int, bool], dict[str, list[tuple[int, int]]]] = {}
        for group in groups.prunable:
            for slot in group.slots:
                # By the tensor itself: layers that share a weight are cut together.
                axis = (id(tensor_named(network, slot.tensor)), slot.dim, slot.grouped)
                at = list(zip(slot.index, slot.root, strict=True))
                self.places.setdefault(axis, {})[group.name] = at

    def shares(self, matrix: Matrix, uneven: set[str], *, inputs: bool) -> tuple[tuple[str, float], ...]:
        """(group, channels of the layer for each of its own) on one side of the layer."""
        found = []
        for name, counts in self._counted(matrix, inputs).items():
            share = _axis(matrix, inputs).each * sum(counts.values()) / self.groups[name].channels
            if name not in uneven:
                found.append((name, _number(share)))
        return tuple(found)

    def overlaps(self, matrix: Matrix, *, inputs: bool) -> tuple[tuple[str, str, float], ...]:
        """(group, another one, channels of the layer for each pair of theirs) where both sit in the same places."""
        places = {name: {index for index, _ in at} for name, at in self._at(matrix, inputs).items()}
        found = []
        for a, b in itertools.combinations(places, 2):
            both = len(places[a] & places[b])
            if both:
                pairs = self.groups[a].channels * self.groups[b].channels
                found.append((a, b, _number(_axis(matrix, inputs).each * both / pairs)))
        return tuple(found)

    def uneven(self, matrix: Matrix) -> list[str]:
        """The groups of which some channels of a block have more places in the layer than others of it."""
        return [
            name
            for inputs in (True, False)
            for name, counts in self._counted(matrix, inputs).items()
            if any(len({counts[channel] for channel in block}) > 1 for block in self.groups[name].blocks())
        ]

    def _counted(self, matrix: Matrix, inputs: bool) -> dict[str, Counter[int]]:
        """Group -> how often each of its channels sits on that side."""
        return {name: Counter(root for _, root in at) for name, at in self._at(matrix, inputs).items()}

    def _at(self, matrix: Matrix, inputs: bool) -> dict[str, list[tuple[int, int]]]:
        """Group -> (place along the axis of that side, which of its channels is there)."""
        axis = _axis(matrix, inputs)
        places = self.places.get((id(matrix.weight), axis.dim, axis.grouped), {})
        held = {
            name: [(index, root) for index, root in at if axis.rows is None or index in axis.rows]
            for name, at in places.items()
        }
        return {name: at for name, at in held.items() if at}


def _axis(matrix: Matrix, inputs: bool) -> MatrixAxis:
    return matrix.input_axis if inputs else matrix.output_axis


def _number(share: Fraction) -> float:
    """A whole number as one."""
    return int(share) if share.denominator == 1 else float(share)

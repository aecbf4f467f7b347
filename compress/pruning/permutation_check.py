"""The permutation check: is a group of channels really one, and does cutting it do what is meant?

Without it wrong groups would go unnoticed: their networks run and export cleanly. There are three tests, each of which
a wrong index fails. The order of channels inside a network means nothing: permute a group consistently in every tensor
that it claims to be in, and the output must not change. The group is really cut, and the network must still run and
give outputs of the same shape: a group that changes the output's shape is the output layer. And what is cut must
compute what the whole network does when these channels are neither made nor read; where something normalises over them
(zeros would count), when they are copies of channels that stay, which nothing reads.

The check must be able to see. So it runs on a copy in float64, with norms (weight 1, bias 0 in a fresh network, which
hides mix-ups) and constant weights made random; and it compares with a control: the same permutation of the root
layer alone, which breaks the network. Right groups differ by rounding, about 1e-13 of what the control does; wrong
ones by about as much as the control.

One permutation could fit by coincidence (swapping neighbours everywhere respects many pairings), so a set is used
that generates all of them: a cycle through all channels and a swap of two that are next to each other in it.

Where full permutations fail, permutations within equal blocks are tried: the halves of a ``chunk`` are right that
way, and the group is then cut by the same number in each block. Blocks must be free of each other: they are also
permuted in subsets that tell any two of them apart.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from compress.networks.running import few_samples, forward, forward_in_training, one_sample
from compress.pruning.cutting import cut, duplicate, permute, zero
from compress.pruning.groups import Group
from compress.pruning.light_copies import lightly_copied
from compress.pruning.narrow_attention import adapt
from compress.pruning.smaller_runs import container, cropped, part_of, within
from compress.pruning.widths import realise
from compress.tracing.channels import OUTPUT
from compress.values.error_lines import one_line

BLOCKS = 16
"""Finest division into blocks that is tried: beyond it a group is not worth cutting."""
UNEQUAL = "removing channels is not the same as their not being there"
"""Begins the reason of a group whose cut runs but computes something else."""
_NO_INFLUENCE = "it has no influence on the output that could be checked"
_SEEDS = (0, 1, 2)
_MANY = 5_000_000
"""Parameters beyond which a network is checked on one sample, if that shows as much as two."""
Run = Callable[[nn.Module, tuple[Tensor, ...]], list[Tensor]]
"""Gives the outputs of a network."""


@dataclass(frozen=True)
class CheckedGroup:
    """A group after its check: ``reason`` is why it may not be cut; None if it may be, in ``group.multiple`` blocks."""

    group: Group
    reason: str | None


class PermutationCheck:
    """Checks the dependency groups of one network, on randomised copies of it; the network is untouched.

    ``module`` must be in eval mode; ``inputs``: the arguments of its forward. ``trained``: whether its groups must hold
    in training mode as well, since it has layers that work only then. ``parts``: whether a group may be judged on the
    module alone that it lies in.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        *,
        trained: bool = False,
        parts: bool = True,
        run: Run = forward,
    ) -> None:
        self._run = run
        self._parts: dict[str, PermutationCheck | None] = {}
        self._smaller = run is forward and not trained
        """Whether single groups may be judged on less than the whole."""
        self._divides = parts
        self._also = PermutationCheck(module, inputs, run=forward_in_training) if trained else None
        self._copies: dict[int, tuple[nn.Module, tuple[Tensor, ...], list[Tensor]]] = {}
        inputs = few_samples(module, inputs)
        if run is forward and sum(p.numel() for p in module.parameters()) > _MANY:
            inputs = one_sample(module, inputs)  # half the time of all that follows
        self._source = (module, inputs)
        small = cropped(module, inputs) if self._smaller else None
        self._small = None if small is None else PermutationCheck(module, small, parts=False)
        self._exact = True
        """Whether the copies are in float64."""

    def checked(self, group: Group) -> CheckedGroup:
        """``group`` in the fewest blocks that it passes with; as it is, with the reason, if it passes with none."""
        first = None
        for multiple in _divisions(group):
            divided = replace(group, multiple=multiple)
            reason = self.why_not([divided])
            if reason is None:
                return CheckedGroup(divided, None)
            first = first or reason
            if reason == OUTPUT:
                break
        return CheckedGroup(group, first or f"its {group.channels} channels cannot be divided further")

    def why_not(self, groups: Sequence[Group], *, fully: bool = False) -> str | None:
        """Why these groups cannot be cut, all together; None if they can.

        One alone is judged on less of the network and on smaller images, if that can be (``smaller_runs.py``); only
        what passes there, or changes the outputs' shape, is told by that. ``fully``: it is judged on everything.
        """
        if self._smaller and len(groups) == 1 and not fully:
            if self._passes_within(groups[0]):
                return None
            found = None if self._small is None else self._small.why_not(groups)
            if self._small is not None and found in (None, OUTPUT):
                return found
        if fully:  # less is not asked for any more: its copies need not stay beside those of the whole
            self._parts.clear()
            if self._small is not None:
                self._small._copies.clear()
        try:
            reason = self._uncuttable(groups) or self._ordered(groups)
        except Exception as error:
            reason = f"it cannot be cut ({one_line(error, kind=True)})"
        if reason == _NO_INFLUENCE and self._also is not None:
            return "it takes part in training only"
        if reason is None and self._also is not None and (why := self._also.why_not(groups)) is not None:
            return why if why == OUTPUT else f"in training mode {why}"
        return reason

    def _passes_within(self, group: Group) -> bool:
        """Whether the module that ``group`` lies in gives what it gave when the group is cut."""
        name = container(group) if self._divides else ""
        if not name:
            return False
        if name not in self._parts:
            module, inputs = (self if self._small is None else self._small)._source
            try:
                part = part_of(module, inputs, name)
            except Exception:  # it is no module of its own but a list of some
                part = None
            self._parts[name] = None if part is None else PermutationCheck(*part, parts=False)
        check = self._parts[name]
        return check is not None and check.why_not([within(group, name)]) is None

    def why_not_joined(self, joint: Group, whole: Sequence[Group]) -> str | None:
        """Why ``joint``, whose channels are runs of those of several groups, cannot be cut; None if it can.

        ``whole``: those groups, which cannot be cut themselves, but whose channels must each be where they are said to
        be: it is they that are permuted.
        """
        if self._small is not None and (found := self._small.why_not_joined(joint, whole)) in (None, OUTPUT):
            return found
        try:
            return self._uncuttable([joint]) or self._ordered(whole, every=True)
        except Exception as error:
            return f"it cannot be cut ({one_line(error, kind=True)})"

    def _uncuttable(self, groups: Sequence[Group]) -> str | None:
        """Really cut: by half, and by as little as possible."""
        network, inputs, reference = self._copy(_SEEDS[0])
        if not any(r.is_floating_point() for r in reference):
            return "the network's outputs are not floating-point numbers: they cannot be compared closely"
        if not all(bool(r.isfinite().all()) for r in reference):
            return "the network's outputs are not finite: they cannot be compared"
        for removed, comparable in _plans(groups):
            small = lightly_copied(network, groups)
            cut(small, removed)
            try:
                outputs = self._run(small, inputs)
            except Exception as error:
                return f"the network does not run when it is cut ({one_line(error, kind=True)})"
            if [o.shape for o in outputs] != [r.shape for r in reference]:
                return OUTPUT
            if comparable and not self._close(outputs, self._without(network, removed, reference)):
                return f"{UNEQUAL} (a scale or a shape depends on their number)"
        return None

    def _without(
        self, network: nn.Module, removed: list[tuple[Group, list[int]]], reference: list[Tensor]
    ) -> list[Tensor]:
        """Outputs of a network of the full width in which the channels make no difference."""

        def run(zeroed: list[tuple[Group, list[int]]]) -> list[Tensor]:
            full = lightly_copied(network, [group for group, _ in removed], written=True)
            duplicate(full, [(group, _twins(group)) for group, _ in removed if group.mixed])
            zero(full, zeroed)
            return self._run(full, self._copies[_SEEDS[0]][1])

        zeroed = [(group, gone) for group, gone in removed if not group.mixed]
        found = run(zeroed)
        if all(map(_as_finite, found, reference)):
            return found
        # Something is divided by their size: they are made as before, and read by nothing.
        read = [(replace(g, slots=tuple(s for s in g.slots if s.side == "in")), gone) for g, gone in zeroed]
        return run(read)

    def _close(self, outputs: list[Tensor], expected: list[Tensor]) -> bool:
        limit = 1e-9 if self._exact else 1e-3
        return all(
            bool((new - old).abs().max() <= limit * old.abs().max().clamp_min(1e-30))
            for new, old in zip(outputs, expected, strict=True)
            if old.is_floating_point() and old.numel()
        )

    def _ordered(self, groups: Sequence[Group], *, every: bool = False) -> str | None:
        """Permute: whether the order of the channels changes the output. ``every``: all permutations of several groups,
        which else have been through them alone.
        """
        for seed in _SEEDS:
            network, _, _ = self._copy(seed)
            sets = zip(*(permutations(group, seed) for group in groups), strict=len(groups) == 1)
            tests = [list(zip(groups, orders, strict=True)) for orders in sets]
            tests = tests if every or len(groups) == 1 else tests[:1]
            control = self._control(network, tests[0], seed)
            limit = control * (1e-6 if self._exact else 1e-3)
            for orders in tests:
                change = self._change(network, orders, seed, root_only=False)
                if not change <= limit:  # not a number is no agreement either
                    return (
                        f"its order matters: permuting it changes the output by {change:.2g} "
                        "(torch.split, channel shuffle or a padded shortcut)"
                    )
            if control > (1e-12 if self._exact else 1e-5):
                return None
        return _NO_INFLUENCE

    def _control(self, network: nn.Module, orders: list[tuple[Group, list[int]]], seed: int) -> float:
        """What a mix-up changes: the root layer's channels in another order, no others."""
        change = self._change(network, orders, seed, root_only=True)
        if change > (1e-12 if self._exact else 1e-5):
            return change
        # A layer that reads what it makes, as tied ones do: its tensors one by one.
        alone = [[(replace(group, slots=(slot,)), order)] for group, order in orders for slot in group.slots]
        return max([change, *(self._change(network, one, seed, root_only=False) for one in alone)])

    def _change(
        self, network: nn.Module, orders: list[tuple[Group, list[int]]], seed: int, *, root_only: bool
    ) -> float:
        """Largest change of any output, relative to that output's largest value."""
        _, inputs, reference = self._copies[seed]
        permuted = lightly_copied(network, [group for group, _ in orders])
        permute(permuted, orders, root_only=root_only)
        changes = [
            (new - old).abs().max() / old.abs().max().clamp_min(1e-30)
            for new, old in zip(self._run(permuted, inputs), reference, strict=True)
            if old.is_floating_point() and old.numel()
        ]
        return float(torch.stack(changes).max())

    def _copy(self, seed: int) -> tuple[nn.Module, tuple[Tensor, ...], list[Tensor]]:
        """A randomised copy, its inputs and its floating outputs; float64 on the CPU if the network runs so."""
        if seed not in self._copies:
            module, inputs = self._source
            if self._exact:
                try:
                    self._copies[seed] = _prepared(module, inputs, seed, self._run, torch.device("cpu"), torch.float64)
                except Exception:  # a network that makes float32 tensors, or tensors on its device, as it goes
                    self._exact = False
                    self._copies.clear()
            if not self._exact:
                device = next((t.device for t in [*module.parameters(), *inputs]), torch.device("cpu"))
                self._copies[seed] = _prepared(module, inputs, seed, self._run, device, torch.float32)
        return self._copies[seed]


def _as_finite(found: Tensor, reference: Tensor) -> bool:
    return bool(found.isfinite().all()) or not bool(reference.isfinite().all())


def randomise(module: nn.Module, seed: int, *, everything: bool = False) -> None:
    """Make norms and constant weights random, in place, so that no two channels are alike.

    ``everything``: all weights of two dimensions or more as well.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, _NormBase | nn.GroupNorm | nn.LayerNorm):
                for name, low, high in (
                    ("weight", 0.5, 1.5),
                    ("bias", -0.5, 0.5),
                    ("running_mean", -0.2, 0.2),
                    ("running_var", 0.5, 1.5),
                ):
                    if isinstance(tensor := getattr(layer, name, None), Tensor):
                        uniform(tensor, low, high)
        for parameter in module.parameters():
            if not parameter.is_floating_point() or parameter.numel() < 2:
                continue
            if (everything and parameter.ndim > 1) or bool((parameter == parameter.flatten()[0]).all()):
                reach = 1.0 if parameter.ndim < 2 else (3.0 / max(parameter[0].numel(), 1)) ** 0.5
                uniform(parameter, -reach, reach)


def _plans(groups: Sequence[Group]) -> list[tuple[list[tuple[Group, list[int]]], bool]]:
    """What to cut: half of the channels, and as few as can be; each with whether it can be compared.

    It can unless something normalises over the channels: then copies of others must go. Those are half, too, if that
    is as many copies of each one that stays.
    """
    few = [(g, _tail(g, g.channels - g.multiple)) for g in groups]
    half = [(g, _tail(g, realise(g.channels, 0.5, 1, g.multiple))) for g in groups]
    if not any(g.mixed for g in groups):
        return [(half, True), (few, True)]
    copies = [(g, list(_twins(g)) if g.mixed else gone) for g, gone in half]
    if all(len(gone) == len(other) for (_, gone), (_, other) in zip(half, copies, strict=True)):
        return [(copies, True), (few, False)]
    return [(half, False), (few, False), (copies, True)]


def _prepared(
    module: nn.Module, inputs: tuple[Tensor, ...], seed: int, run: Run, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, tuple[Tensor, ...], list[Tensor]]:
    network = copy.deepcopy(module).to(device, dtype).eval()
    adapt(network)
    # As they are, weights and inputs may leave a layer without influence (behind a dead ReLU): then others are tried.
    afresh = seed != _SEEDS[0]
    randomise(network, seed, everything=afresh)
    generator = torch.Generator().manual_seed(seed)
    moved = []
    for tensor in inputs:
        if tensor.is_floating_point():
            # Constant inputs (zeros, as examples often are) would hide everything.
            drawn = afresh or bool((tensor == tensor.flatten()[:1]).all())
            tensor = torch.randn(tensor.shape, generator=generator) if drawn else tensor.detach()
            moved.append(tensor.to(device, dtype))
        else:
            moved.append(tensor.to(device))
    reference = run(network, tuple(moved))
    return network, tuple(moved), reference


def permutations(group: Group, seed: int) -> list[list[int]]:
    """Seeded orders of the group's channels, within its blocks, that generate all of those.

    First a cycle through each block that leaves no channel in place; then a swap of two neighbours of each cycle;
    then cycles of some blocks only, those whose number has a given bit set.
    """
    rng = random.Random(seed)
    cycles = [rng.sample(block, len(block)) for block in group.blocks()]

    def order(chosen: list[list[int]]) -> list[int]:
        moved = list(range(group.channels))
        for cycle in chosen:
            for channel, follower in zip(cycle, cycle[1:] + cycle[:1], strict=True):
                moved[channel] = follower
        return moved

    bits = range((len(cycles) - 1).bit_length())
    return [
        order(cycles),
        order([cycle[:2] for cycle in cycles]),
        *(order([cycle for k, cycle in enumerate(cycles) if k >> bit & 1]) for bit in bits),
    ]


def _twins(group: Group) -> dict[int, int]:
    """{channel to remove: channel that it may be a copy of}: equally many copies of each one left, in every block."""
    size = group.channels // group.multiple
    left = max((n for n in range(1, size) if size % n == 0), default=1)
    return {block[k]: block[k % left] for block in group.blocks() for k in range(left, size)}


def _divisions(group: Group) -> list[int]:
    """Numbers of blocks to try, the group's own first; each block must have at least two channels."""
    own, n = group.multiple, group.channels
    finer = range(2 * own, BLOCKS + 1, own)
    return [d for d in (own, *finer) if n % d == 0 and n // d >= 2]


def _tail(group: Group, keep: int) -> list[int]:
    """The last channels of each block, so that ``keep`` are left."""
    each = keep // group.multiple
    return [channel for block in group.blocks() for channel in block[each:]]

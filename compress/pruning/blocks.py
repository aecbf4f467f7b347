"""Depth: blocks are dropped, so that their input passes alone and nothing of them is computed.

``find_blocks`` lists what can be dropped. Residual blocks: a network must compute, without one, what it does with the
block's branch multiplied by zero, alone and all of them together. Repeats (``repeats.py``): a network must run without
one, and give outputs of the same shapes. ``drop_blocks`` puts modules in their places that export to nothing: a block
that is a module becomes its shortcut, the module that ends a branch a constant zero (added to the shortcut, which the
exporter folds away), the modules of a repeat pass on what they are given. Names of the weights that stay do not change.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compress.networks.plain_copies import replace_everywhere, unwrapped
from compress.networks.prepared_modules import ExampleInputs, ready
from compress.networks.running import (
    RANDOM,
    copies,
    few_samples,
    forward,
    is_random,
    repeatable,
    tensors_in,
    unfused,
)
from compress.pruning.grouping import find_groups
from compress.pruning.groups import KEPT_AS_ASKED, Group, Groups
from compress.pruning.repeats import Repeat, possible_repeats
from compress.tracing.residuals import Block, RecordedRun, possible_blocks, zeroed
from compress.values.error_lines import one_line
from targets.errors import SpaceError, TaskError

_TOLERANCE = 1e-4
"""Largest difference from the branch times zero, as a share of the largest output."""


@dataclass(frozen=True)
class Blocks:
    """The residual blocks and repeats of a network: those that can be dropped, and where others are."""

    removable: tuple[Block | Repeat, ...]
    kept: tuple[tuple[str, str], ...]
    """(module, why its residual additions stay), and repeats with why they do."""

    def named(self, names: Iterable[str]) -> list[Block | Repeat]:
        """The blocks of these names, in the network's order; raises SpaceError for one that is not removable."""
        known = {block.name: block for block in self.removable}
        asked = list(names)
        for name in asked:
            if name not in known:
                why = dict(self.kept).get(name)
                close = difflib.get_close_matches(name, known, 3) or list(known)[:3]
                hint = f": {why}" if why else f"; removable are {', '.join(close)}" if close else "; none is here"
                raise SpaceError(f"{name!r} is no removable residual block{hint}")
        return [block for block in self.removable if block.name in asked]


def drop_blocks(
    module: nn.Module,
    example_inputs: ExampleInputs,
    names: Iterable[str],
    *,
    blocks: Blocks | None = None,
) -> nn.Module:
    """A copy of ``module`` without the residual blocks and repeats of these names.

    ``example_inputs``: as ``find_blocks`` takes them. ``blocks``: what ``find_blocks`` found, to save
    finding it again. Raises SpaceError for a name that is no removable block, TaskError if the module does not run.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    known = find_blocks(module, example_inputs) if blocks is None else blocks
    return without_blocks(unwrapped(module), known.named(names))


def find_blocks(module: nn.Module, example_inputs: ExampleInputs) -> Blocks:
    """The blocks of ``module`` that can be dropped, and where others are. ``module`` is untouched.

    ``example_inputs``: a tensor, a tuple of tensors, or a dict of tensors by the names of forward's arguments, batch
    first.

    Raises TaskError if the module cannot be copied or run on ``example_inputs``.
    """
    module, inputs = ready(module, example_inputs)
    try:
        network = copy.deepcopy(module).eval()
        inputs = few_samples(network, inputs)
        if is_random(network, inputs):
            return Blocks((), (("(the network itself)", RANDOM),))
        traced = copy.deepcopy(network)
        with repeatable(traced):
            run = RecordedRun(traced, copies(inputs))
    except Exception as error:
        raise TaskError(
            f"the model cannot be copied or does not run on example_inputs ({one_line(error, kind=True)})"
        ) from error
    found, kept = possible_blocks(run)
    passed: list[Block] = []
    for block in found:
        why = _refusal(network, inputs, [block])
        if why is None:
            passed.append(block)
        else:
            kept.append((block.name, why))
    if len(passed) > 1 and _refusal(network, inputs, passed) is not None:
        together: list[Block] = []
        for block in passed:
            why = _refusal(network, inputs, [*together, block])
            if why is None:
                together.append(block)
            else:
                kept.append((block.name, f"not together with the blocks before it: {why}"))
        passed = together
    repeats, refused = _repeats(network, inputs, passed)
    removable: list[Block | Repeat] = [*passed, *repeats]
    if repeats:
        place = {name: i for i, (name, _) in enumerate(network.named_modules())}
        removable.sort(key=lambda one: place[one.children[0] if isinstance(one, Repeat) else one.name])
    return Blocks(tuple(removable), (*kept, *refused))


def without_blocks(module: nn.Module, blocks: Iterable[Block | Repeat]) -> nn.Module:
    """A copy of ``module`` without ``blocks``, which were found for this network; modes and names of weights stay."""
    smaller = copy.deepcopy(module)
    for block in blocks:
        if isinstance(block, Repeat):
            for name in block.children:
                child = _present(smaller, name)
                if child is not None:
                    _put(smaller, name, _Pass(child))
            continue
        old = _present(smaller, block.name)
        if old is not None:
            _put(smaller, block.name, _Shortcut(old, block) if block.shortcut else _Zero(old, block))
        for name in block.served:
            idle = _present(smaller, name)
            if idle is not None:
                _put(smaller, name, _Pass(idle))
    return smaller


def groups_without(
    module: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    groups: Groups,
    blocks: Blocks,
    dropped: Iterable[str],
) -> Groups:
    """The groups of ``module`` without the blocks ``dropped``; ``groups``: those that were found for it whole.

    Residual blocks leave the groups around them as they are. Without a repeat the widths on its two sides become one,
    so groups are found anew: a group goes by the first layer whose width it is, which may be another one than before.
    Nothing but whole modules goes, so a channel's index is that of its layer's channel in the whole network.

    Raises SpaceError for a name that is no removable block.
    """
    gone = blocks.named(dropped)
    smaller = without_blocks(module, gone)
    if not any(isinstance(block, Repeat) for block in gone):
        return remaining(groups, smaller) if gone else groups
    present = {name for name, _ in smaller.named_modules()} | {name for name, _ in smaller.named_parameters()}
    keep = [name for name, why in groups.kept if why == KEPT_AS_ASKED and name in present]
    return find_groups(smaller, example_inputs, keep=keep)


def remaining(groups: Groups, module: nn.Module) -> Groups:
    """``groups`` of a network, as far as they are left in ``module``, which is it without some blocks; names stay."""
    held = {n for n, _ in module.named_parameters(remove_duplicate=False)}
    held |= {n for n, _ in module.named_buffers(remove_duplicate=False)}
    modules = {n for n, _ in module.named_modules(remove_duplicate=False)}
    left: list[Group] = []
    for group in groups.prunable:
        slots = tuple(slot for slot in group.slots if slot.tensor in held)
        knobs = tuple(knob for knob in group.knobs if knob.module in modules)
        if any(slot.side == "out" for slot in slots) and any(slot.side == "in" for slot in slots):
            members = tuple(name for name in group.members if name in modules or name in held)
            left.append(replace(group, slots=slots, knobs=knobs, members=members))
    return Groups(tuple(left), groups.kept)


def least_harmful(blocks: Blocks, losses: Mapping[str, float], share: float) -> tuple[str, ...]:
    """Names of the ``share`` of all removable blocks whose dropping alone leaves the smallest loss, in their order."""
    names = [block.name for block in blocks.removable]
    ranked = sorted(names, key=lambda name: (losses[name], names.index(name)))
    gone = set(ranked[: round(share * len(names))])
    return tuple(name for name in names if name in gone)


def _repeats(
    network: nn.Module, inputs: tuple[Tensor, ...], blocks: Sequence[Block]
) -> tuple[list[Repeat], list[tuple[str, str]]]:
    """The repeats that can go, alone and together with ``blocks``, and why others stay.

    A repeat that is, or holds, a removable residual block goes by that.
    """
    passed: list[Repeat] = []
    kept: list[tuple[str, str]] = []
    for repeat in possible_repeats(network, inputs):
        held = any(f"{block.name}.".startswith(f"{child}.") for block in blocks for child in repeat.children)
        if held:
            continue
        why = _change(network, inputs, [repeat])
        if why is None and (blocks or passed):
            why = _change(network, inputs, [*blocks, *passed, repeat])
            why = why and f"not together with the blocks before it: {why}"
        if why is None:
            passed.append(repeat)
        else:
            kept.append((repeat.name, why))
    return passed, kept


def _change(network: nn.Module, inputs: tuple[Tensor, ...], blocks: Sequence[Block | Repeat]) -> str | None:
    """Why ``blocks`` cannot go: the network does not run without them, or gives something of another form."""
    expected = forward(network, inputs)
    try:
        found = forward(without_blocks(network, blocks), inputs)
    except Exception as error:
        return f"the network does not run without it ({one_line(error, kind=True)})"
    if [(x.shape, x.dtype) for x in found] != [(x.shape, x.dtype) for x in expected]:
        return "the outputs' shapes change without it"
    if not all(bool(x.isfinite().all()) for x in found if x.is_floating_point()):
        return "the outputs are not finite without it"
    return None


def _refusal(network: nn.Module, inputs: tuple[Tensor, ...], blocks: Sequence[Block]) -> str | None:
    """Why the network without ``blocks`` is not the network with their branches times zero; None if it is."""
    try:
        smaller = without_blocks(network, blocks)
        with repeatable(smaller), unfused():
            found = tensors_in(smaller(*copies(inputs)))
    except Exception as error:
        return f"the network does not run without it ({one_line(error, kind=True)})"
    expected = zeroed(copy.deepcopy(network), copies(inputs), [a for block in blocks for a in block.additions])
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return "the outputs' shapes change without it"
        if not a.is_floating_point():
            same = torch.equal(a, b)
        else:
            same = bool((a - b).abs().max() <= _TOLERANCE * a.abs().max().clamp_min(1e-6))  # NaN is not the same
        if not same:
            return "dropping it is not the same as its branch times zero"
    return None


def _present(module: nn.Module, name: str) -> nn.Module | None:
    """The module of that name; None where it went with a block around it, or is replaced already."""
    try:
        found = module.get_submodule(name)
    except AttributeError:
        return None
    return None if isinstance(found, _Gone) else found


def _put(module: nn.Module, name: str, new: nn.Module) -> None:
    replace_everywhere(module, module.get_submodule(name), new)


def _remembered(old: nn.Module, to: Any) -> None:
    """Give ``to`` the plain values of a module that code around it may ask for (``layer.self_attn.batch_first``)."""
    for name, value in vars(old).items():
        if (value is None or isinstance(value, bool | int | float | str)) and not hasattr(to, name):
            setattr(to, name, value)
    for name, _ in [*old.named_parameters(recurse=False), *old.named_buffers(recurse=False)]:
        if not hasattr(to, name):
            setattr(to, name, None)
    for name, child in old.named_children():
        if not hasattr(to, name) and name.isidentifier():
            inner = SimpleNamespace()
            _remembered(child, inner)
            setattr(to, name, inner)


class _Gone(nn.Module):
    """Stands where something was dropped, and gives what code around it expects."""

    outputs: int

    def _given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        return [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]

    def _form(self, x: Tensor) -> Any:
        """As the dropped module gave it: alone, or first in a tuple."""
        return (x, *(None for _ in range(self.outputs - 1))) if self.outputs else x


class _Shortcut(_Gone):
    """A block without its branch: its input, and what else it does to that."""

    def __init__(self, old: nn.Module, block: Block) -> None:
        super().__init__()
        self.place, self.outputs = block.place, block.outputs
        self.tail: list[str] = []
        for i, name in enumerate(block.tail):
            key = f"activation{i}" if "." in name else name
            if key not in self._modules:
                self.add_module(key, getattr(nn, name.rpartition(".")[2])() if "." in name else getattr(old, name))
            self.tail.append(key)
        _remembered(old, self)
        self.train(old.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The argument that is the shortcut, after what else the block does to it."""
        x = self._given(args, kwargs)[self.place]
        for name in self.tail:
            x = self.get_submodule(name)(x)
        return self._form(x)


class _Zero(_Gone):
    """The end of a branch without the branch: one zero, which the exporter leaves out where it is added."""

    zero: Tensor

    def __init__(self, old: nn.Module, block: Block) -> None:
        super().__init__()
        like = next(old.parameters())
        self.outputs, self.rank = block.outputs, block.rank
        # Not among the weights that are kept: rebuilding the module makes it again.
        self.register_buffer("zero", like.new_zeros([1] * block.rank if block.turned else []), persistent=False)
        _remembered(old, self)
        self.train(old.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002  whatever it was given
        """Zero; in training of full rank, for what drops whole samples."""
        return self._form(self.zero.reshape([1] * self.rank) if self.training else self.zero)


class _Pass(_Gone):
    """What only served a dropped branch, or is part of a repeat that is dropped."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.outputs = 0
        _remembered(old, self)
        self.train(old.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Its first input, unchanged: a repeat is left out so, and of what served a branch nothing reads it."""
        return self._given(args, kwargs)[0]

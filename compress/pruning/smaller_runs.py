"""Less of a network to run than all of it, where that shows as much of a group of channels.

What belongs together among channels does not depend on how many pixels there are: where a network takes small images,
those will do. And a group that lies inside one module, the two layers of a block say, is right if that module still
gives what it gave: the rest need not be run. What is judged by less must be looked at once more, all together, on
everything: that is up to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from compress.networks.running import forward
from compress.pruning.groups import Group

_PIXELS = (64, 96, 128)
"""Sizes of small images, tried in this order."""
_PLAIN = (int, float, bool, str, type(None))
_INSIDE = "part"


class Part(nn.Module):
    """A module of a network, called with the tensors by place that it got there; other arguments are as they were."""

    def __init__(self, part: nn.Module, arrange: Callable[[Sequence[Tensor]], tuple[Any, Any]]) -> None:
        super().__init__()
        self.part, self.arrange = part, arrange
        self.train(part.training)

    def forward(self, *tensors: Tensor) -> Any:
        """What the part of the network gives for these tensors, put in their places."""
        args, kwargs = self.arrange(tensors)
        return self.part(*args, **kwargs)


def _arranging(leaves: Sequence[Any], spec: TreeSpec) -> Callable[[Sequence[Tensor]], tuple[Any, Any]]:
    """Puts tensors in the places of those in ``leaves``. A function, since that is not copied with the module."""

    def arrange(tensors: Sequence[Tensor]) -> tuple[Any, Any]:
        rest = iter(tensors)
        args, kwargs = tree_unflatten([next(rest) if isinstance(x, Tensor) else x for x in leaves], spec)
        return args, kwargs

    return arrange


def container(group: Group) -> str:
    """The name of the innermost module that holds all tensors of ``group`` and all numbers that change with it."""
    paths = [slot.layer.split(".") for slot in group.slots]
    paths += [[*knob.module.split("."), ""] if knob.module else [] for knob in group.knobs]
    common: list[str] = []
    for names in zip(*paths, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)


def within(group: Group, name: str) -> Group:
    """``group`` as a group of the ``Part`` that is made of the module called ``name``."""

    def inside(full: str) -> str:
        return _INSIDE + full.removeprefix(name)

    return replace(
        group,
        slots=tuple(replace(slot, tensor=inside(slot.tensor)) for slot in group.slots),
        knobs=tuple(replace(knob, module=inside(knob.module)) for knob in group.knobs),
        members=tuple(inside(member) for member in group.members),
    )


def part_of(module: nn.Module, inputs: tuple[Tensor, ...], name: str) -> tuple[nn.Module, tuple[Tensor, ...]] | None:
    """(the module called ``name`` as a ``Part``, what it is given in a run of ``module`` on ``inputs``).

    None where it is called not once but never or several times, or is given what is neither tensors nor plain.
    """
    calls: list[tuple[list[Any], TreeSpec]] = []

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        leaves, spec = tree_flatten((args, kwargs))
        calls.append(([x.detach().clone() if isinstance(x, Tensor) else x for x in leaves], spec))

    part = module.get_submodule(name)
    hook = part.register_forward_pre_hook(note, with_kwargs=True)
    try:
        forward(module, inputs)
    finally:
        hook.remove()
    if len(calls) != 1:
        return None
    leaves, spec = calls[0]
    tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
    if not tensors or not all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in leaves):
        return None
    return Part(part, _arranging(leaves, spec)), tensors


def cropped(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """``inputs`` with their images cut to a few pixels; None where none is large, or ``module`` wants them all."""
    for size in _PIXELS:
        small = tuple(_cropped(x, size) for x in inputs)
        if sum(x.numel() for x in small) * 2 > sum(x.numel() for x in inputs):
            return None
        try:
            outputs = forward(module, small)
        except Exception:  # it has weights for each place, or makes its images too small
            continue
        if all(bool(x.isfinite().all()) for x in outputs if x.is_floating_point()):
            return small
    return None


def _cropped(x: Tensor, size: int) -> Tensor:
    """The corner of an image or volume; anything else as it is."""
    if x.ndim not in (4, 5) or not x.is_floating_point():
        return x
    return x[(slice(None), slice(None), *(slice(size) for _ in x.shape[2:]))]

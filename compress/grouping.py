"""Which channels of a network belong together, found by Torch-Pruning and checked by us.

The only file that imports torch_pruning, and it uses little of it: the dependency graph gives, for each layer, the
places its output channels reach. That is turned into plain data (``Slot``), which the gate then tries to refute.
Torch-Pruning's pruners are not used: they resolve conflicting ratios silently, round widths to nothing, and share
mutable defaults.

A layer that cannot be traced, that the gate refutes, or that is not supported keeps its width, and the reason is
given: nothing is left alone in silence.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress.cutting import Group, Groups, Side, Slot, Unsupported, axes, is_depthwise, member, width
from compress.permutation_gate import Gate, forward, said, tensors
from targets.errors import SpaceError, TaskError

__all__ = ["Group", "Groups", "as_inputs", "find_groups"]

_OPAQUE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Layers that keep their widths, whatever reaches them."""


def find_groups(module: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], *, keep: Iterable[str] = ()) -> Groups:
    """The groups of ``module`` that may be cut, and why the others may not.

    ``example_inputs``: a tensor or a tuple of tensors, batch first, on the module's device. ``keep``: names of layers
    (or of modules that contain them) whose widths stay. ``module`` is untouched.

    Raises SpaceError if ``keep`` names nothing, TaskError if the module cannot be run on ``example_inputs`` or copied.
    """
    inputs = as_inputs(example_inputs)
    asked = _check_keep(module, keep)
    found = _trace(module, inputs)
    kept = dict(found.kept)
    candidates = []
    for group in found.groups:
        if any(_within(owner, name) for owner in group.owners() for name in asked):
            kept[group.name] = "asked to keep"
        else:
            candidates.append(group)
    prunable, refused = _judge(Gate(module, inputs), candidates)
    kept.update(refused)
    position = {name: i for i, (name, _) in enumerate(module.named_modules())}
    return Groups(tuple(prunable), tuple(sorted(kept.items(), key=lambda item: position.get(item[0], len(position)))))


def as_inputs(example_inputs: Any) -> tuple[Tensor, ...]:
    """``example_inputs`` as a tuple of tensors; raises TaskError if it is anything else."""
    inputs = tuple(example_inputs) if isinstance(example_inputs, list | tuple) else (example_inputs,)
    if not inputs or not all(isinstance(t, Tensor) for t in inputs):
        kinds = ", ".join(type(t).__name__ for t in inputs) or "nothing"
        raise TaskError(f"example_inputs is {kinds}: give a tensor, or a tuple of tensors, batch first")
    return inputs


@dataclass(frozen=True)
class _Traced:
    groups: list[Group]
    kept: dict[str, str]


def _judge(gate: Gate, candidates: Sequence[Group]) -> tuple[list[Group], dict[str, str]]:
    """One by one, then all at once; if only that fails, as many as go together, in order."""
    passed, kept = [], {}
    for group in candidates:
        verdict = gate.judge(group)
        if verdict.reason is None:
            passed.append(verdict.group)
        else:
            kept[group.name] = verdict.reason
    if len(passed) < 2 or gate.refusal(passed) is None:
        return passed, kept
    together: list[Group] = []
    for group in passed:
        reason = gate.refusal([*together, group])
        if reason is None:
            together.append(group)
        else:
            kept[group.name] = f"not together with the groups before it: {reason}"
    return together, kept


def _trace(module: nn.Module, inputs: tuple[Tensor, ...]) -> _Traced:
    """All groups as Torch-Pruning sees them, unchecked."""
    try:
        copied = copy.deepcopy(module).eval()
    except Exception as error:
        raise TaskError(
            f"the model cannot be copied ({said(error)}): pruning needs a module that deepcopy takes"
        ) from error
    try:
        forward(copied, inputs)
    except Exception as error:
        raise TaskError(
            f"the model does not run on example_inputs ({said(error)}): give them as its forward takes them"
        ) from error
    kept = {
        name: f"{type(m).__name__} is not supported" for name, m in copied.named_modules() if isinstance(m, _OPAQUE)
    }
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    roots = [
        (name, layer)
        for name, layer in copied.named_modules()
        if isinstance(layer, _ConvNd | nn.Linear | nn.Embedding) and not any(_within(name, opaque) for opaque in kept)
    ]
    try:
        graph = _graph(copied, inputs)
    except Exception as error:
        kept.update((name, f"the network could not be traced ({said(error)})") for name, _ in roots)
        return _Traced([], kept)
    groups: list[Group] = []
    owned: set[str] = set()
    for name, layer in roots:
        if name in owned or name in kept:
            continue
        try:
            group = _group(graph, copied, name, layer)
        except Exception as error:
            kept[name] = str(error) if isinstance(error, Unsupported) else f"it could not be traced ({said(error)})"
            continue
        owned.update(group.owners())
        groups.append(group)
    return _Traced(groups, kept)


def _graph(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The dependency graph; recurrent layers are left out if it cannot be built with them."""
    recurrent = [m for m in module.modules() if isinstance(m, nn.RNNBase | nn.RNNCellBase)]
    for ignored in ([], recurrent):
        try:
            with _silence(), torch.enable_grad():
                return torch_pruning.DependencyGraph().build_dependency(
                    module,
                    inputs,
                    forward_fn=lambda m, x: m(*x),
                    output_transform=lambda out: [t for t in tensors(out) if t.grad_fn is not None],
                    ignored_layers=ignored,
                    verbose=False,
                )
        except Exception:
            if ignored or not recurrent:
                raise
    raise AssertionError("unreachable: the second attempt returns or raises")


def _group(graph: Any, module: nn.Module, name: str, layer: nn.Module) -> Group:
    """The group of all output channels of ``layer``. Raises Unsupported, and whatever Torch-Pruning does."""
    if layer not in graph.module2node:
        raise Unsupported("it takes no part in computing the output")
    channels = width(layer, "out")
    if channels < 2:
        raise Unsupported("it has only one channel")
    names: dict[int, str] = {id(m): n for n, m in module.named_modules()}
    names.update((id(p), n) for n, p in module.named_parameters())
    with _silence():
        pruner = graph.get_pruner_of_module(layer)
        items = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(channels)))
    slots = [slot for item in items if (slot := _slot(item, names)) is not None]
    slots.sort(key=lambda slot: (slot.layer != name, slot.side == "in"))
    members = tuple(dict.fromkeys(slot.layer for slot in slots))
    multiple = math.lcm(*(_multiple(module, slot) for slot in slots))
    group = Group(name, channels, multiple, members, tuple(slots))
    if channels % multiple or channels == multiple:
        raise Unsupported(
            f"its {channels} channels must stay a multiple of {multiple} (grouped convolution or GroupNorm)"
        )
    return group


def _slot(item: Any, names: dict[int, str]) -> Slot | None:
    """One (dependency, indices) pair as plain data; None for operations without weights."""
    node, index, root = item.dep.target, tuple(item.idxs), tuple(item.root_idxs)
    layer = node.module
    name = names.get(id(layer))
    if name is None or (isinstance(layer, nn.PReLU) and layer.num_parameters == 1):
        return None
    if isinstance(layer, nn.Parameter):
        dim = node.pruning_dim % layer.ndim
        size, slot = layer.shape[dim], Slot(name, "both", index, root, dim)
    elif isinstance(layer, _OPAQUE):
        raise Unsupported(f"its channels reach {name!r}: {type(layer).__name__} is not supported")
    elif not isinstance(layer, _ConvNd | nn.Linear | nn.Embedding) and not _has_channels(layer):
        return None
    else:
        sided = isinstance(layer, _ConvNd | nn.Linear) and not is_depthwise(layer)
        side: Side = ("in" if item.dep.handler.__name__ == "prune_in_channels" else "out") if sided else "both"
        try:
            axes(layer)
        except Unsupported as error:
            raise Unsupported(f"its channels are those of {name!r}: {error}") from error
        size, slot = width(layer, side), Slot(name, side, index, root)
    if any(not 0 <= i < size for i in index) or len(set(index)) < len(index) or any(r is None for r in root):
        raise Unsupported(f"its channels could not be followed into {name!r}")
    return slot


def _has_channels(layer: nn.Module) -> bool:
    """Whether ``layer`` holds anything per channel: activations, pooling and the like do not."""
    return (
        any(True for _ in layer.parameters(recurse=False))
        or hasattr(layer, "num_features")
        or isinstance(layer, nn.GroupNorm | nn.LayerNorm)
    )


def _multiple(module: nn.Module, slot: Slot) -> int:
    """What the slot's layer asks of the group's width. Raises Unsupported if it concerns only a part of the layer."""
    layer = member(module, slot.layer)
    groups = 1
    if isinstance(layer, _ConvNd) and not is_depthwise(layer):
        groups = layer.groups
    elif isinstance(layer, nn.GroupNorm):
        groups = layer.num_groups
    whole = tuple(root for _, root in sorted(zip(slot.index, slot.root, strict=True)))
    if groups > 1 and whole != tuple(range(width(layer, slot.side))):
        raise Unsupported(f"its channels are only a part of what the grouped layer {slot.layer!r} takes")
    return groups


def _check_keep(module: nn.Module, keep: Iterable[str]) -> tuple[str, ...]:
    """The names to keep; raises SpaceError for one that is no module or parameter of the network."""
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    known = [n for n, _ in module.named_modules() if n] + [n for n, _ in module.named_parameters()]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = (
                f"; did you mean {', '.join(map(repr, close))}?" if close else f"; it has {', '.join(known[:5])}, ..."
            )
            raise SpaceError(f"keep names {name!r}, which is no layer of the network{hint}")
    return names


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@contextlib.contextmanager
def _silence() -> Any:
    """Torch-Pruning prints and warns; what matters of it is in our reasons."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

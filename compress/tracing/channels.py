"""Runs a network once and follows the channels of its parameters through every operator.

A dispatch mode sees each operator that torch really executes, below modules, functional calls and the fused forms of
recurrent and attention layers. The rules (``rules.py``) label its results (``labels.py``).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from compress.networks.running import copies, doubled, seeded, tensors_in, training, unfused
from compress.tracing.calls import OperatorCall
from compress.tracing.labels import FIXED, FREE, Axis, ChannelTrace, Labels
from compress.tracing.rules import output_labels

OUTPUT = "output layer"
"""Why the channels of a network's outputs cannot go."""


def trace_channels(module: nn.Module, inputs: tuple[Tensor, ...]) -> ChannelTrace:
    """What a run of ``module`` on ``inputs`` shows of its channels; raises what its forward raises.

    ``module`` must be in eval mode; ``inputs``: the arguments of its forward. Where a run in training mode takes
    other parameters, as those of an auxiliary head, it is followed as well: what has been pruned must still train.
    Statistics of ``module`` may change by that.
    """
    inputs = copies(inputs)  # which it may write to
    mode = ChannelMode(module, inputs)
    with unfused(), mode:
        mode.freeze_outputs(module(*inputs))
    also = _where_training_differs(module, inputs, mode.used)
    if also is not None:
        with contextlib.suppress(Exception), seeded(0), training(module), unfused(), mode:
            mode.freeze_outputs(module(*also))
            mode.found.trained = True
    for axis in mode.unused():
        mode.atoms.freeze(axis.labels, "it takes no part in computing the output", first=True)
    return mode.found


def _where_training_differs(
    module: nn.Module, inputs: tuple[Tensor, ...], used: Counter[int]
) -> tuple[Tensor, ...] | None:
    """Inputs on which ``module`` in training mode takes some parameters more often than ``used`` says; else None.

    None also where it does not run so, as one that wants labels then. What is left out at random in training, as whole
    blocks may be, is no difference.
    """
    held = {id(p) for p in module.parameters()}
    for given in (inputs, doubled(inputs)):
        uses = _Uses()
        with contextlib.suppress(Exception), seeded(0), training(module), unfused(), uses:
            module(*copies(given))
            return given if any(uses.used[key] > used[key] for key in held) else None
    return None


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often each tensor is an argument of an operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, and count its arguments."""
        self.used.update(id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))


class ChannelMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Labels the dimensions of parameters, buffers and inputs, and then of what each operator makes of them."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = ChannelTrace()
        self.atoms = self.found.atoms
        self._labels: Any = WeakTensorKeyDictionary()
        self.names: dict[int, list[str]] = {}
        self.used: Counter[int] = Counter()
        for tensor in inputs:
            self._labels[tensor] = [np.full(n, FIXED) for n in tensor.shape]
        held = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        for name, tensor in held:
            if tensor not in self._labels:
                self._labels[tensor] = [self.atoms.fresh(n) if n > 1 else np.full(n, FREE) for n in tensor.shape]
            for dim, label in enumerate(self._labels[tensor]):
                if len(label) > 1 and tensor.is_floating_point():
                    self.found.axes.append(Axis(name, dim, label))
            self.names.setdefault(id(tensor), []).append(name)
        self._stored = {tensor.untyped_storage().data_ptr() for _, tensor in held}

    def labels(self, tensor: Tensor) -> Labels:
        """The labels of ``tensor``; a constant made on the way is free."""
        known: Labels | None = self._labels.get(tensor)
        return [np.full(n, FREE) for n in tensor.shape] if known is None else known

    def is_stored(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is a parameter or a buffer, or a view of one."""
        return tensor.untyped_storage().data_ptr() in self._stored

    def freeze_outputs(self, outputs: Any) -> None:
        """Note that the shapes of a run's outputs must stay."""
        for tensor in tensors_in(outputs):
            for label in self.labels(tensor):
                self.atoms.freeze(label, OUTPUT, first=True)

    def unused(self) -> list[Axis]:
        """The axes of parameters and buffers that no operator has taken."""
        names = {name for key in self.names.keys() & self.used.keys() for name in self.names[key]}
        return [axis for axis in self.found.axes if axis.tensor not in names]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then label its results."""
        given = kwargs or {}
        result = func(*args, **given)
        outputs = [t for t in (result if isinstance(result, tuple | list) else (result,)) if isinstance(t, Tensor)]
        if not outputs:
            return result
        call = OperatorCall(self, func, args, given, outputs)
        self.used.update(id(t) for t in call.tensors())
        for tensor, label in zip(outputs, output_labels(call), strict=False):
            self._labels[tensor] = label
        return result

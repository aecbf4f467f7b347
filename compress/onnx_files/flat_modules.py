"""Networks as the exporter takes them: tensors in by place, tensors out in a tuple, and what they are called.

A graph has a list of inputs and a list of outputs. Networks are freer: they take tensors by name, write to them, and
return None, dataclasses, or dicts within dicts. ``FlatModule`` stands around such a network while it is exported.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from compress.networks.calling import Calling, calling_of, writes_to_inputs
from compress.networks.running import copies, named_tensors, repeatable

PREFIX = "network."
"""Begins the names of the weights of a ``FlatModule``."""


class FlatModule(nn.Module):
    """Takes the inputs of ``network`` by place, copies them, and gives its outputs as a tuple, each tensor once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The tensors in what the network returns, in their order."""
        found: list[Tensor] = []
        for _, tensor in named_tensors(self.network(*(x.clone() for x in inputs))):
            # One value cannot be two outputs, nor an input of the graph.
            found.append(tensor.clone() if any(tensor is one for one in found) else tensor)
        return tuple(found)


def is_flat(network: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the exporter takes ``network`` as it is; ``inputs``: by place. Raises what the network raises."""
    kinds = [p.kind for p in inspect.signature(network.forward).parameters.values()]
    if calling_of(network) != Calling() or inspect.Parameter.VAR_POSITIONAL in kinds:
        return False
    if writes_to_inputs(network, inputs):
        return False
    with repeatable(network):
        outputs = network(*copies(inputs))
    if isinstance(outputs, Tensor):
        return True
    return type(outputs) in (tuple, list, dict) and _all_tensors(outputs)


def _all_tensors(outputs: Any) -> bool:
    values = list(outputs.values()) if isinstance(outputs, dict) else list(outputs)
    distinct = len({id(x) for x in values}) == len(values)
    return distinct and all(isinstance(x, Tensor) for x in values)


def output_names(network: nn.Module, inputs: tuple[Tensor, ...], taken: Collection[str]) -> list[str] | None:
    """Names of the outputs of ``network``, by the keys and fields that it returns them under; None where it has none.

    Those that are ``taken``, by inputs or weights, get a number. Raises TypeError where it returns no tensor.
    """
    with repeatable(network):
        outputs = network(*copies(inputs))
    paths = [path for path, _ in named_tensors(outputs)]
    if not paths:
        raise TypeError(f"it returns {type(outputs).__name__} without a tensor in it")
    if all(path == "" or path.replace(".", "").isdigit() for path in paths):
        return None
    return distinct_names(paths, taken)


def distinct_names(names: Sequence[str], taken: Collection[str]) -> list[str]:
    """``names``, those that occur before or are ``taken`` with a number behind them.

    >>> distinct_names(["x", "y", "y"], ["x"])
    ['x_1', 'y', 'y_1']
    """
    found: list[str] = []
    for name in names:
        number, free = 0, name
        while free in taken or free in found:
            number += 1
            free = f"{name}_{number}"
        found.append(free)
    return found

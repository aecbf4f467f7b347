"""One call of an operator in a run that is followed: what the rules for labels are given to work with."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from compress.tracing.labels import FIXED, Atoms, ChannelTrace, Labels


class Followed(Protocol):
    """What the rules need of the run that the call is part of."""

    found: ChannelTrace
    """What has been seen so far."""
    atoms: Atoms
    names: dict[int, list[str]]
    """Qualified names of parameters and buffers, by the id of the tensor."""

    def labels(self, tensor: Tensor) -> Labels:
        """The labels of each dimension of ``tensor``."""

    def is_stored(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is a parameter or a buffer, or a view of one."""


class OperatorCall:
    """One call of an operator: its arguments by name, and the tensors that it gave."""

    def __init__(
        self, mode: Followed, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor]
    ) -> None:
        self.mode, self.atoms, self.outputs = mode, mode.atoms, outputs
        schema = func._schema.arguments
        self.args: dict[str, Any] = {a.name: a.default_value for a in schema if a.has_default_value()}
        self.args.update({a.name: value for a, value in zip(schema, args, strict=False)})
        self.args.update(kwargs)
        self.order = [a.name for a in schema]
        name = func.overloadpacket.__name__
        self.name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        self.pointwise = torch.Tag.pointwise in func.tags

    def tensors(self) -> list[Tensor]:
        """All arguments that are tensors, those in lists included, in the order of the operator's schema."""
        values = [self.args.get(name) for name in self.order]
        flat = [v for value in values for v in (value if isinstance(value, tuple | list) else (value,))]
        return [v for v in flat if isinstance(v, Tensor)]

    def of(self, name: str) -> Labels:
        """The labels of the argument ``name``, which must be a tensor."""
        return self.mode.labels(self.args[name])

    def unknown(self) -> list[Labels]:
        """Labels of the outputs of an operator that cannot be followed: fixed, and all that reaches it is frozen."""
        for tensor in self.tensors():
            for label in self.mode.labels(tensor):
                self.atoms.freeze(
                    label, f"it reaches the operator {self.name}, through which channels are not followed"
                )
        return [[np.full(n, FIXED) for n in t.shape] for t in self.outputs]

    def fixed(self, output: int = 0) -> Labels:
        """Labels for the output of that number if none of its dimensions holds channels."""
        return [np.full(n, FIXED) for n in self.outputs[output].shape]

    def sum_over(self, name: str, label: np.ndarray) -> None:
        """Note that a product sums over the dimension with the labels ``label`` of the argument ``name``."""
        if self.mode.is_stored(self.args[name]):
            self.mode.found.summed.update(label[label > FIXED].tolist())

    def mix(self, label: np.ndarray) -> None:
        """Note that the dimension with the labels ``label`` was normalised or averaged over."""
        self.mode.found.mixed.append(label)

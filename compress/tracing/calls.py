"""One operator of a run, as the rules see it: its arguments by name, their labels, and what it gave."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from compress.tracing.labels import FIXED, Atoms, Labels, Trace


class Followed(Protocol):
    """What the rules need of the run that they are part of."""

    found: Trace
    atoms: Atoms
    names: dict[int, list[str]]
    """Of parameters and buffers, by their id."""

    def labels(self, tensor: Tensor) -> Labels:
        """Those of ``tensor``."""


class OperatorCall:
    """One operator with its arguments by name, and what it gave."""

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
        """All tensor arguments, lists included."""
        values = [self.args.get(name) for name in self.order]
        flat = [v for value in values for v in (value if isinstance(value, tuple | list) else (value,))]
        return [v for v in flat if isinstance(v, Tensor)]

    def of(self, name: str) -> Labels:
        """Labels of the tensor argument ``name``."""
        return self.mode.labels(self.args[name])

    def unknown(self) -> list[Labels]:
        """Freeze whatever reaches this operator."""
        for tensor in self.tensors():
            for label in self.mode.labels(tensor):
                self.atoms.freeze(
                    label, f"it reaches the operator {self.name}, through which channels are not followed"
                )
        return [[np.full(n, FIXED) for n in t.shape] for t in self.outputs]

    def fixed(self, output: int = 0) -> Labels:
        """Labels of an output none of whose dimensions hold channels."""
        return [np.full(n, FIXED) for n in self.outputs[output].shape]

    def mix(self, label: np.ndarray) -> None:
        """Note that a dimension was normalised or averaged over."""
        self.mode.found.mixed.append(label)

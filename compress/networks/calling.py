"""How a network is called: with tensors by place, or by the names of its forward's arguments.

Everything here calls a network as ``module(*tensors)``. Networks that take their inputs by name, as those of
``transformers`` do, and networks that write to what they are given, get a hook in front of their forward that makes
that work; it is taken off again where a network is handed out.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compress.networks.running import repeatable
from targets.errors import TaskError


@dataclass(frozen=True)
class Calling:
    """A hook in front of a network's forward."""

    names: tuple[str, ...] = ()
    """Names of the arguments that tensors given by place are meant for; empty: as they are placed."""
    copied: bool = False
    """Whether each call gets copies of its tensors, since forward writes to them."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        """The arguments as forward is to get them; what a caller gives by name stays as it is."""
        if self.copied:
            args = tuple(x.clone() if isinstance(x, Tensor) else x for x in args)
            kwargs = {name: x.clone() if isinstance(x, Tensor) else x for name, x in kwargs.items()}
        if not kwargs and len(args) == len(self.names) and all(isinstance(x, Tensor) for x in args):
            return (), dict(zip(self.names, args, strict=True))
        return args, kwargs


def input_names(example_inputs: Any) -> tuple[str, ...]:
    """Names of the inputs, where ``example_inputs`` is a dict by name; else none."""
    return tuple(map(str, example_inputs)) if isinstance(example_inputs, Mapping) else ()


def called(module: nn.Module, calling: Calling) -> nn.Module:
    """``module`` itself, with ``calling`` in front of its forward in place of what was there; in place."""
    uncalled(module)
    if calling != Calling():
        module.register_forward_pre_hook(calling, prepend=True, with_kwargs=True)
    return module


def uncalled(module: nn.Module) -> nn.Module:
    """``module`` itself, as its user calls it: without the hook of ``called``; in place."""
    for number in [number for number, hook in _hooks(module).items() if isinstance(hook, Calling)]:
        del module._forward_pre_hooks[number]
        module._forward_pre_hooks_with_kwargs.pop(number, None)
    return module


def calling_of(module: nn.Module) -> Calling:
    """How ``module`` is called."""
    return next((hook for hook in _hooks(module).values() if isinstance(hook, Calling)), Calling())


def _hooks(module: nn.Module) -> Mapping[int, Any]:
    return module._forward_pre_hooks


def by_name(module: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """``module``, or a copy that takes tensors by place where there are ``names`` for them.

    Raises TaskError for names that are no arguments of its forward, and what deepcopy raises.
    """
    if not names:
        return module
    check_argument_names(module, names)
    return called(copy.deepcopy(module), Calling(names, calling_of(module).copied))


def check_argument_names(module: nn.Module, names: tuple[str, ...]) -> None:
    """Raise TaskError unless each of ``names`` is an argument of the network's forward."""
    known = inspect.signature(module.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    unknown = [name for name in names if name not in known]
    if unknown:
        takes = ", ".join(name for name, p in known.items() if p.kind is not p.VAR_POSITIONAL)
        raise TaskError(
            f"inputs {', '.join(map(repr, unknown))} are no arguments of the forward of {type(module).__name__}, which "
            f"takes {takes}: rename them or leave them out"
        )


def writes_to_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether ``module`` changes the tensors that it is given, views of them included; raises what its forward does."""
    given = tuple(x.detach().clone() for x in inputs)
    before = [x._version for x in given]
    with repeatable(module):
        module(*given)
    return [x._version for x in given] != before


def argument_names(module: nn.Module, count: int) -> list[str]:
    """Names for the first ``count`` inputs of ``module``, as its forward calls them; numbered where it does not."""
    names = list(calling_of(module).names)
    if len(names) == count:
        return names
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = [name for name, p in inspect.signature(module.forward).parameters.items() if p.kind in kinds][:count]
    return given + [f"input_{k}" for k in range(len(given), count)]

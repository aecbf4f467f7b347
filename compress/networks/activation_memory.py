"""How much memory the inner values of a network take for one sample, and how many samples therefore fit at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.networks.running import copies, repeatable
from targets.machine import memory

ROOM = 600_000_000
"""Bytes for the inner values of the samples that are run or trained on at once: more makes nothing faster."""


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what the operators of a run put out, views aside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:
                self.total += x.untyped_storage().nbytes()
        return found


def bytes_of_one(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Bytes that all operators of ``module`` put out for one sample: an upper bound of what a run of it holds.

    ``inputs``: some samples, batch first. Raises what its forward raises.
    """
    few = copies(tuple(x[:2] if x.ndim else x for x in inputs))
    counter = _Bytes()
    with repeatable(module), counter:
        module(*few)
    return counter.total // max(1, max((len(x) for x in few if x.ndim), default=1))


def samples_at_once(module: nn.Module, inputs: tuple[Tensor, ...], copies_held: int = 1) -> int | None:
    """How many samples there is room for; None where nothing limits them, as for most networks.

    ``copies_held``: how often the values of a run are held, 2 where gradients stand beside them.
    """
    try:
        each = copies_held * bytes_of_one(module, inputs)
    except Exception:  # it shows, and is said, where it is run
        return None
    room = memory.room(ROOM)
    most = max(1, room // max(1, each))
    return None if most >= _MANY else 1 << (most.bit_length() - 1)


_MANY = 1024
"""Samples from which on there is no need to count."""

"""Running a network once, as the stages need it: in eval mode, repeatably, with or without torch's fused kernels.

What is put in (``as_inputs``, ``few_samples``), what comes out (``tensors_in``, ``outputs_of``), and the settings
that hold for a while and are then as they were (``evaluating``, ``repeatable``, ``unfused``, ``threads``).
"""

from __future__ import annotations

import copy
import dataclasses
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from targets.errors import TaskError

RANDOM = (
    "it is random in eval mode: the same input gives other outputs each time (dropout without "
    "training=self.training, torch.rand or bernoulli in its forward?)"
)
"""What is wrong with a network of which ``is_random`` holds."""
_RUNS = 4
MAIN = "logits"
"""The name of the output that decides, where outputs have names."""


def as_inputs(example_inputs: Any) -> tuple[Tensor, ...]:
    """``example_inputs`` as a tuple of tensors, those of a dict in its order.

    Raises TaskError if it is anything else than one or several tensors.
    """
    if isinstance(example_inputs, Mapping):
        inputs = tuple(example_inputs.values())
    else:
        inputs = tuple(example_inputs) if isinstance(example_inputs, list | tuple) else (example_inputs,)
    if not inputs or not all(isinstance(t, Tensor) for t in inputs):
        kinds = ", ".join(type(t).__name__ for t in inputs) or "nothing"
        raise TaskError(
            f"example_inputs is {kinds}: give a tensor, a tuple of tensors, or a dict of tensors by the names of "
            "forward's arguments, batch first"
        )
    return inputs


def few_samples(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first two samples of ``inputs``, which show as much of a network as more would, in less time.

    All of ``inputs`` where the network does not run on two: an input is not batch first, or it was made for one batch
    size.
    """
    two = tuple(t[:2] if t.ndim else t for t in inputs)
    if all(a.shape == b.shape for a, b in zip(two, inputs, strict=True)):
        return inputs
    try:
        forward(module, two)
    except Exception:
        return inputs
    return two


def one_sample(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first sample of ``inputs``, where the network computes for it alone what it does beside others; else all."""
    one = tuple(t[:1] if t.ndim else t for t in inputs)
    try:
        alone, beside = forward(module, one), forward(module, inputs)
    except Exception:
        return inputs
    same = [a.shape == b[:1].shape and _alike(a, b[:1]) for a, b in zip(alone, beside, strict=True) if a.ndim]
    return one if same and all(same) else inputs


def forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The tensors that ``module`` gives for ``inputs``, in eval mode, without gradients and with a fixed seed.

    It is given copies: ``inputs`` stay as they are, whatever it writes to them.
    """
    with repeatable(module):
        return tensors_in(module(*copies(inputs)))


def copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies of ``inputs``, for a network that may write to what it is given."""
    return tuple(x.detach().clone() for x in inputs)


def is_random(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether ``module``, in eval mode, gives other outputs for the same ``inputs`` when it is run again.

    Tried with two seeds of all generators, with more where torch's is drawn from: little dropout may drop the same.
    Raises what its forward raises.
    """
    first: list[Tensor] | None = None
    draws = _Draws()
    with evaluating(module), torch.no_grad(), draws:
        for seed in range(_RUNS):
            if seed > 1 and not draws.seen:
                break
            with seeded(seed):
                found = tensors_in(module(*copies(inputs)))
            first = found if first is None else first
            if len(found) != len(first) or not all(map(_alike, found, first)):
                return True
    return False


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether an operator that draws at random is called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator of torch, and note whether it draws at random."""
        self.seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs are the same but for rounding."""
    if a.shape != b.shape or not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)


def forward_in_training(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The tensors that a copy of ``module`` gives for ``inputs`` in training mode, without chance.

    Dropout and its kind let everything through, and what is drawn besides is drawn from a fixed seed, so that two
    networks can be compared. Inputs of one sample are
    doubled where BatchNorm refuses them. Raises what the network raises.
    """
    with torch.no_grad(), seeded(0), _WithoutChance():
        try:
            return tensors_in(copy.deepcopy(module).train()(*copies(inputs)))
        except ValueError:
            return tensors_in(copy.deepcopy(module).train()(*doubled(inputs)))


def doubled(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """``inputs`` twice, one after the other: BatchNorm takes no single sample in training mode."""
    return tuple(torch.cat([t, t]) if t.ndim else t for t in inputs)


class _WithoutChance(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives for each draw of yes or no its mean, which dropout and stochastic depth divide by again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, or what stands for it."""
        given = kwargs or {}
        name = str(func)
        if name == "aten.bernoulli_.float":
            return args[0].fill_(args[1] if len(args) > 1 else given.get("p", 0.5))
        if name == "aten.native_dropout.default":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        return func(*args, **given)


def tensors_in(outputs: Any) -> list[Tensor]:
    """All tensors in what a network returns, in their order.

    They may be nested in tuples, lists, dicts, dataclasses and namespaces, to any depth.

    Anything else in there (None, numbers, caches) is passed over.
    """
    return [tensor for _, tensor in named_tensors(outputs)]


def named_tensors(outputs: Any) -> list[tuple[str, Tensor]]:
    """All tensors in what a network returns, each with its path: keys, fields and places, joined by dots.

    The path of a tensor that is returned by itself is empty.
    """
    if isinstance(outputs, Tensor):
        return [("", outputs)]
    return [
        (f"{key}.{path}" if path else str(key), tensor)
        for key, value in _entries(outputs)
        for path, tensor in named_tensors(value)
    ]


def _entries(value: Any) -> list[tuple[Any, Any]]:
    """(key, value) of what is in a container; none of anything else."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, SimpleNamespace):
        return list(vars(value).items())
    return []


def outputs_of(value: Any) -> tuple[Tensor, ...]:
    """A network's outputs as a tuple of tensors, whatever it returns them in; raises TypeError where there are none."""
    found = tuple(tensors_in(value))
    if not found:
        raise TypeError(f"it returns {type(value).__name__} without a tensor in it")
    return found


def main_output(value: Any) -> Tensor:
    """The output that is scored and trained by: what is returned as ``logits``, else the first tensor."""
    named = named_tensors(value)
    if not named:
        raise TypeError(f"it returns {type(value).__name__} without a tensor in it")
    return dict(named).get(MAIN, named[0][1])


def evaluating(module: nn.Module) -> AbstractContextManager[None]:
    """Eval mode inside; afterwards every submodule is in the mode that it was in."""
    return _in_mode(module, training=False)


def training(module: nn.Module) -> AbstractContextManager[None]:
    """Training mode inside; afterwards every submodule is in the mode that it was in."""
    return _in_mode(module, training=True)


@contextmanager
def _in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


@contextmanager
def repeatable(module: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and a fixed seed inside; afterwards the modes and torch's seed are what they were."""
    with evaluating(module), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def unfused() -> Iterator[None]:
    """No gradients and no fused kernels inside, so that every operator of a network can be seen and counted.

    Fused are oneDNN's recurrent layers, flash attention, and the fast path of torch's transformer layers.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own switches
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything random is seeded inside, as by ``seed_all``; afterwards it goes on from where it was."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            seed_all(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch computes on ``count`` threads inside, and afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seed_all(seed: int) -> None:
    """Seed all that an augmentation or a training loop may draw from: Python's random, numpy's and torch's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def broken_weight(module: nn.Module) -> str | None:
    """The name of the first weight with NaN or infinite values; None where there is none.

    A buffer may hold infinities: masks of attention do. The statistics of a norm may not.
    """
    statistics = {
        f"{name}.{own}".lstrip(".")
        for name, one in module.named_modules()
        if hasattr(one, "running_mean") or hasattr(one, "running_var")
        for own, _ in one.named_buffers(recurse=False)
    }
    masks = {name for name, _ in module.named_buffers()} - statistics
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        if bool(tensor.isnan().any()) or (name not in masks and not bool(tensor.isfinite().all())):
            return name
    return None

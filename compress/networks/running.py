"""Running a network once, as the stages need it: in eval mode, repeatably, with or without torch's fused kernels.

What is put in (``as_inputs``, ``few_samples``), what comes out (``tensors_in``, ``outputs_of``), and the settings
that hold for a while and are then as they were (``evaluating``, ``repeatable``, ``unfused``, ``threads``).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from targets.errors import TaskError


def as_inputs(example_inputs: Any) -> tuple[Tensor, ...]:
    """``example_inputs`` as a tuple of tensors; raises TaskError if it is anything else than one or several of them."""
    inputs = tuple(example_inputs) if isinstance(example_inputs, list | tuple) else (example_inputs,)
    if not inputs or not all(isinstance(t, Tensor) for t in inputs):
        kinds = ", ".join(type(t).__name__ for t in inputs) or "nothing"
        raise TaskError(f"example_inputs is {kinds}: give a tensor, or a tuple of tensors, batch first")
    return inputs


def few_samples(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first two samples of ``inputs``, which show as much of a network as more would, in less time.

    All of ``inputs`` where the network does not run on two: an input is not batch first, or it was made for one batch
    size.
    """
    two = tuple(t[:2] if t.ndim else t for t in inputs)
    try:
        forward(module, two)
    except Exception:
        return inputs
    return two


def forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The tensors that ``module`` gives for ``inputs``, in eval mode, without gradients and with a fixed seed."""
    with repeatable(module):
        return tensors_in(module(*inputs))


def tensors_in(outputs: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts, in their order; anything else in there is passed over."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        return [t for value in outputs.values() for t in tensors_in(value)]
    if isinstance(outputs, list | tuple):
        return [t for value in outputs for t in tensors_in(value)]
    return []


def outputs_of(value: Any) -> tuple[Tensor, ...]:
    """A network's outputs as a tuple of tensors, whatever it returns them in.

    Unlike ``tensors_in`` it passes over nothing, since every output is compared or trained: an output that is a number
    or None raises TypeError.
    """
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return tuple(x for item in value for x in outputs_of(item))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule is in the mode that it was in."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
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

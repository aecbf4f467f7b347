"""Running: carried here."""

from __future__ import annotations

import contextlib
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
    """``example_inputs`` as a tuple of tensors; raises TaskError if it is anything else."""
    inputs = tuple(example_inputs) if isinstance(example_inputs, list | tuple) else (example_inputs,)
    if not inputs or not all(isinstance(t, Tensor) for t in inputs):
        kinds = ", ".join(type(t).__name__ for t in inputs) or "nothing"
        raise TaskError(f"example_inputs is {kinds}: give a tensor, or a tuple of tensors, batch first")
    return inputs


@contextmanager
def repeatable(module: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and a fixed seed inside; every submodule's own mode and the global seed come back."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The tensors that ``module`` gives for ``inputs`` in eval mode, flattened out of tuples, lists and dicts."""
    with repeatable(module):
        return tensors_in(module(*inputs))


def few(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first two samples, where the network takes them: more see no more."""
    few = tuple(t[:2] if t.ndim else t for t in inputs)
    try:
        forward(module, few)
    except Exception:  # an input that is not batch first, or a network made for one batch size
        return inputs
    return few


@contextmanager
def unfused() -> Iterator[None]:
    """No gradients and no fused kernels: their parts are what is to be seen."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own switches
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def tensors_in(outputs: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        return [t for value in outputs.values() for t in tensors_in(value)]
    if isinstance(outputs, list | tuple):
        return [t for value in outputs for t in tensors_in(value)]
    return []


def as_tuple(inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A tensor or tuple of tensors as a tuple."""
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)


def outputs_of(value: Any) -> tuple[Tensor, ...]:
    """A network's outputs as a tuple of tensors, whatever it returns them in."""
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return tuple(x for item in value for x in outputs_of(item))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every submodule gets its own mode back."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode


def seed_all(seed: int) -> None:
    """Everything that an augmentation or a training loop may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything random is seeded for a while; afterwards it goes on from where it was."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            seed_all(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's thread count for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

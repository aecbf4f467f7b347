"""Channels followed through awkward operators: right, or left alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.networks.running import forward
from compress.pruning.cutting import zero
from compress.pruning.grouping import find_groups
from compress.pruning.permutation_check import randomise
from compress.pruning.pruning import prune
from compress.tracing.labels import FIXED, FREE, Atoms, Removal


class Made(nn.Module):
    """A network of some layers, buffers and numbers, and a function for its forward."""

    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(a: int, b: int, **settings: Any) -> nn.Module:
    return nn.Conv2d(a, b, 3, padding=1, **settings)


def attended(m: Any, x: Tensor, *, dim: int = -1) -> Tensor:
    q, k, v = (p.view(2, 4, m.heads, -1).transpose(1, 2) for p in (m.q(x), m.k(x), m.v(x)))
    return m.h(((q @ k.transpose(-1, -2) * 0.5).softmax(dim) @ v).transpose(1, 2).flatten(2)).mean(1)


def one_key(m: Any, x: Tensor) -> Tensor:
    """All heads share keys and values."""
    q, k, v = m.q(x).view(2, 4, m.heads, -1).transpose(1, 2), m.k(x)[:, None], m.v(x)[:, None]
    return m.h(((q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)).mean(1)


def stepped(m: Any, x: Tensor) -> Tensor:
    state = None
    for t in range(x.shape[1]):
        state = m.a(x[:, t], state)
    return m.h(state[0])


def qkv(inner: int) -> dict[str, Any]:
    return {"q": nn.Linear(8, 16), "k": nn.Linear(8, inner), "v": nn.Linear(8, inner), "h": nn.Linear(16, 3)}


def head(m: Any, x: Tensor) -> Tensor:
    return m.h(x.mean((2, 3)))


RIGHT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "glu": (lambda: Made(lambda m, x: head(m, F.glu(m.a(x), 1)), a=conv(2, 16), h=nn.Linear(8, 3)), 1),
    "maxout": (
        lambda: Made(lambda m, x: head(m, m.a(x).view(2, 8, -1, 4, 8).amax(1)), a=conv(2, 32), h=nn.Linear(4, 3)), 1,
    ),
    "unshuffle": (
        lambda: Made(lambda m, x: head(m, F.pixel_unshuffle(m.a(x), 2)), a=conv(2, 8), h=nn.Linear(32, 3)), 1,
    ),
    "instance-norm": (
        lambda: Made(lambda m, x: head(m, m.n(m.a(x)).relu()), a=conv(2, 8), n=nn.InstanceNorm2d(8, affine=True),
                     h=nn.Linear(8, 3)), 1,
    ),
    "multiplier": (
        lambda: Made(lambda m, x: head(m, m.b(m.a(x).relu())), a=conv(2, 8), b=conv(8, 16, groups=8),
                     h=nn.Linear(16, 3)), 1,
    ),
    "einsum": (
        lambda: Made(lambda m, x: m.h(torch.einsum("bchw,dc->bd", m.a(x), m.b.weight)), a=conv(2, 8),
                     b=nn.Linear(8, 6), h=nn.Linear(6, 3)), 2,
    ),
    "every-second": (lambda: Made(lambda m, x: head(m, m.a(x)[:, ::2]), a=conv(2, 8), h=nn.Linear(4, 3)), 1),
    "slices": (
        lambda: Made(lambda m, x: head(m, m.a(x)[:, : m.n] * m.a(x)[:, m.n : 2 * m.n] + m.a(x)[:, 2 * m.n :]), n=4,
                     a=conv(2, 12), h=nn.Linear(4, 3)), 1,
    ),
    "one-key": (lambda: Made(one_key, heads=4, **qkv(4)), 3),
    "heads": (lambda: Made(attended, heads=4, **qkv(16)), 3),
    "cells": (lambda: Made(lambda m, x: stepped(m, x.flatten(2)), a=nn.LSTMCell(32, 12), h=nn.Linear(12, 3)), 1),
    "projected": (
        lambda: Made(lambda m, x: m.h(m.a(x.flatten(2))[0].mean(1)),
                     a=nn.LSTM(32, 12, 2, proj_size=4, batch_first=True), h=nn.Linear(4, 3)), 2,
    ),
}  # fmt: skip
ALONE: dict[str, Callable[[], nn.Module]] = {
    "cumsum": lambda: Made(lambda m, x: head(m, m.a(x).cumsum(1)), a=conv(2, 8), h=nn.Linear(8, 3)),
    "flip": lambda: Made(lambda m, x: head(m, m.a(x).flip(1)), a=conv(2, 8), h=nn.Linear(8, 3)),
    "roll": lambda: Made(lambda m, x: head(m, m.a(x) + m.a(x).roll(2, 1)), a=conv(2, 8), h=nn.Linear(8, 3)),
    "sort": lambda: Made(lambda m, x: head(m, m.a(x).sort(1)[0]), a=conv(2, 8), h=nn.Linear(8, 3)),
    "top": lambda: Made(lambda m, x: m.h(m.a(x).amax((2, 3)).topk(4, 1)[0]), a=conv(2, 8), h=nn.Linear(4, 3)),
    "scaled-by-width": lambda: Made(
        lambda m, x: head(m, m.a(x)) / math.sqrt(m.a.out_channels), a=conv(2, 8), h=nn.Linear(8, 3)
    ),
    "ranked": lambda: Made(
        lambda m, x: head(m, m.a(x) * torch.arange(1, m.a.out_channels + 1)[:, None, None]),
        a=conv(2, 8), h=nn.Linear(8, 3),
    ),
    "neighbours": lambda: Made(
        lambda m, x: head(m, m.n(m.a(x))), a=conv(2, 8), n=nn.LocalResponseNorm(3), h=nn.Linear(8, 3)
    ),
    "misread": lambda: Made(lambda m, x: m.h(m.a(x).reshape(2, 32, 8).mean(1)), a=conv(2, 8), h=nn.Linear(8, 3)),
}  # fmt: skip


def put(make: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    module = make()
    randomise(module, 0)
    wide = any(isinstance(m, nn.Linear) and m.in_features == 8 and name == "q" for name, m in module.named_modules())
    return module, (torch.randn(2, 4, 8) if wide else torch.randn(2, *_shape(module)),)


def _shape(module: nn.Module) -> tuple[int, ...]:
    return (2, 4, 8) if isinstance(module.a, nn.Conv2d) else (3, 4, 8)


@pytest.mark.parametrize("name", RIGHT)
def test_cut_is_as_if_the_channels_were_not_there(name: str) -> None:
    make, expected = RIGHT[name]
    module, inputs = put(make)
    groups = find_groups(module, inputs)
    assert len(groups.prunable) == expected
    for ratio in (0.3, 0.6):
        pruned = prune(module, inputs, ratio, groups=groups)
        assert pruned.pruned
        full = copy.deepcopy(module)
        zero(full, [(group, pruned.removed.get(group.name, ())) for group in groups.prunable])
        for got, wanted in zip(forward(pruned.module, inputs), forward(full, inputs), strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ALONE)
def test_what_depends_on_order_or_number_is_left_alone(name: str) -> None:
    module, inputs = put(ALONE[name])
    groups = find_groups(module, inputs)
    assert not groups.prunable
    assert "output" not in dict(groups.kept)["a"] or "permuting" in dict(groups.kept)["a"]


@given(st.integers(2, 5), st.integers(2, 5))
def test_rows_and_columns_of_a_divided_dimension_go_whole(rows: int, columns: int) -> None:
    atoms = Atoms()
    line = atoms.fresh(rows * columns)
    first, second = atoms.view([line], [rows * columns], [rows, columns])
    assert np.array_equal(atoms.view([first, second], [rows, columns], [rows * columns])[0], line)
    removal = Removal(atoms)
    assert removal.closure(int(first[0])) == {int(first[0]), *line.reshape(rows, columns)[0].tolist()}
    assert removal.closure(int(second[1])) == {int(second[1]), *line.reshape(rows, columns)[:, 1].tolist()}
    assert removal.basics(int(line[0])) == [first[0], second[0]]


@given(st.integers(2, 4), st.integers(2, 4), st.integers(2, 4))
def test_pixels_pass_through_views_and_back(channels: int, height: int, width: int) -> None:
    atoms = Atoms()
    image = [np.full(2, FIXED), atoms.fresh(channels), np.full(height, FIXED), np.full(width, FIXED)]
    shape = [2, channels, height, width]
    flat = atoms.view(image, shape, [2, channels * height * width])
    assert np.array_equal(flat[1], np.repeat(image[1], height * width))
    back = atoms.view(flat, [2, channels * height * width], shape)
    assert [label.tolist() for label in back] == [label.tolist() for label in image]


def test_constants_take_on_what_they_meet() -> None:
    atoms = Atoms()
    line = atoms.fresh(3)
    assert np.array_equal(atoms.unite(np.full(3, FREE), line), line)
    other = atoms.fresh(3)
    atoms.unite(line, other)
    assert np.array_equal(atoms.find(line), atoms.find(other))
    atoms.unite(other, np.array([FIXED, FREE, FREE]))
    assert atoms.find(line)[0] == FIXED
    assert atoms.find(line)[1] == atoms.find(other)[1] != FIXED

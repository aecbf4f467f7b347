"""Numbers that a module keeps in settings, or in a function that it was given, change with a width; for it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compress
from compress.networks.held_numbers import numbers_held, with_number
from compress.networks.running import forward


@dataclass(frozen=True)
class Settings:
    hidden: int = 16
    layers: int = 1
    name: str = "small"


class Plain:
    def __init__(self) -> None:
        self.hidden, self.flag = 16, True


class Recurrent(nn.Module):
    """Makes its initial state of a number that it keeps somewhere."""

    def __init__(self, settings: Any, read: Callable[[Any], int]) -> None:
        super().__init__()
        self.settings, self.read = settings, read
        self.rnn, self.head = nn.GRU(4, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(1, x.shape[0], self.read(self.settings))
        return self.head(self.rnn(x, state)[0][:, -1])


KEPT: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "data class": (Settings(), lambda s: s.hidden),
    "object": (Plain(), lambda s: s.hidden),
    "namespace": (SimpleNamespace(hidden=16), lambda s: s.hidden),
    "dict": ({"hidden": 16, "rate": 0.1}, lambda s: s["hidden"]),
    "partial": (partial(dict, hidden=16), lambda s: s()["hidden"]),
}


def closing(width: int) -> Callable[[Tensor], Tensor]:
    def rows(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, width).mean(1)

    return rows


class Shaped(nn.Module):
    """A function from elsewhere knows how wide its layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.rows, self.b = nn.Linear(6, 16), closing(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.rows(self.a(x).relu()))


def windows(x: Tensor, size: int) -> Tensor:
    n, h, w, c = x.shape
    x = x.view(n, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, size * size, c)


def windowed(x: Tensor, qkv: nn.Linear, proj: nn.Linear, heads: int) -> Tensor:
    """Attention within windows of two by two, all of its numbers in the arguments of a function."""
    n, h, w, c = x.shape
    part = windows(x, 2)
    flat = F.linear(part, qkv.weight, qkv.bias).reshape(len(part), 4, 3, heads, c // heads)
    q, k, v = flat.permute(2, 0, 3, 1, 4)
    out = ((q * (c // heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(len(part), 4, c)
    out = F.linear(out, proj.weight, proj.bias).view(n, h // 2, w // 2, 2, 2, c)
    return out.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.heads = nn.Conv2d(3, 16, 2, 2), nn.LayerNorm(16), 4
        self.qkv, self.proj, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        return self.head((x + windowed(self.norm(x), self.qkv, self.proj, self.heads)).mean((1, 2)))


@pytest.mark.parametrize("name", KEPT)
def test_a_state_made_by_hand_is_as_wide_as_its_layer(name: str) -> None:
    settings, read = KEPT[name]
    torch.manual_seed(0)
    network, x = Recurrent(settings, read).eval(), torch.randn(4, 5, 4)
    small = compress.prune(network, x, 0.5)
    assert small.pruned == [("rnn", 16, 8)]
    assert read(small.module.settings) == 8
    assert read(network.settings) == read(settings) == 16
    assert small.module(torch.randn(7, 5, 4)).shape == (7, 3)


def test_a_number_in_a_closure_changes_for_one_module() -> None:
    torch.manual_seed(0)
    network, x = Shaped().eval(), torch.randn(4, 5, 6)
    small = compress.prune(network, x, 0.5)
    assert small.pruned == [("a", 16, 8)]
    gone = list(small.removed["a"])
    with torch.no_grad():
        network.a.weight[gone], network.a.bias[gone] = 0.0, 0.0
    assert torch.allclose(forward(small.module, (x,))[0], forward(network, (x,))[0], atol=1e-6)


def test_windows_of_attention_in_functions_are_cut_by_heads() -> None:
    torch.manual_seed(0)
    small = compress.prune(Windows().eval(), torch.randn(2, 3, 16, 16), 0.5)
    assert small.pruned == [("patch:heads", 4, 2)]
    assert small.module.heads == 2


def test_what_is_held_is_copied_not_written_to() -> None:
    settings = Settings()
    assert numbers_held(settings) == {"hidden": 16}
    assert with_number(settings, "hidden", 8) == Settings(hidden=8)
    assert settings == Settings()
    function = closing(16)
    assert numbers_held(function) == {"width": 16}
    assert with_number(function, "width", 8)(torch.ones(2, 4, 4)).shape == (2, 8)
    assert function(torch.ones(2, 4, 4)).shape == (2, 16)
    for other in (nn.Linear(4, 4), torch.ones(3), "text", 5, nn.Module, torch):
        assert numbers_held(other) == {}

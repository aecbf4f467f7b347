"""Numbers written in a module's own methods: found, changed for one module alone, everything else as it was."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.networks.running import forward
from compress.pruning.grouping import find_groups
from compress.pruning.pruning import prune
from compress.pruning.source_numbers import numbers, put

WIDE = 3


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return x * 5


class Written(Base):
    """Parent, closure-free globals, a default, a branch for training, a nested function and two methods."""

    def forward(self, x: Tensor, power: int = 7) -> Tensor:
        x = super().forward(x)
        if self.training:
            x = x + 11
        return self.__rest(x)[:, :4] * power * WIDE

    def __rest(self, x: Tensor) -> Tensor:
        def inner(y: Tensor) -> Tensor:
            return y - 13

        return inner(x)


def test_a_number_is_changed_for_one_module_alone() -> None:
    one, other, x = Written(), Written(), torch.ones(2, 6)
    assert {(method, value) for method, _, value in numbers(Written)} == {
        ("forward", 11), ("forward", 4), ("_Written__rest", 13),
    }  # fmt: skip
    which = {value: (method, place) for method, place, value in numbers(Written)}
    put(one, *which[4], 2)
    put(one, *which[13], 3)
    assert torch.equal(one(x), torch.full((2, 2), (5 + 11 - 3) * 7.0 * WIDE))
    assert torch.equal(one.eval()(x, power=1), torch.full((2, 2), (5 - 3) * 1.0 * WIDE))
    assert torch.equal(other(x), torch.full((2, 4), (5 + 11 - 13) * 7.0 * WIDE))
    assert isinstance(one, Written)
    assert type(one).__name__ == "Written"
    assert type(other) is Written
    assert {value for _, _, value in numbers(type(one))} == {11, 2, 3}


def test_copies_and_pickles_keep_the_number() -> None:
    one, x = Written().eval(), torch.ones(2, 6)
    one.register_buffer("held", torch.ones(2))
    which = {value: (method, place) for method, place, value in numbers(Written)}
    put(one, *which[4], 2)
    for again in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301
        assert torch.equal(again(x), one(x))
        assert again.calls == 0
        assert not again.training
        assert "held" in again.state_dict()
        put(again, *which[4], 3)
        assert again(x).shape == (2, 3)
    assert one(x).shape == (2, 2)


def test_code_without_its_source_is_left_alone() -> None:
    space: dict[str, Any] = {"nn": nn}
    exec("class Made(nn.Module):\n    def forward(self, x):\n        return x.view(-1, 64)", space)
    assert numbers(space["Made"]) == []

    class Decorated(nn.Module):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1, 64)

    assert numbers(Decorated) == []
    assert numbers(nn.Linear) == []

    class Patched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(-1, 64)

    Patched.forward.__code__ = Written.forward.__code__.replace(co_freevars=())
    assert numbers(Patched) == []


class Branches(nn.Module):
    """A number that only training reads, a random skip, and one of each of them where it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(24, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.a(x)))
        if self.training and torch.rand(()) < 0:
            x = x * 12
        return self.b(x.view(-1, 2 * 12))


def test_what_is_pruned_still_trains_as_it_did() -> None:
    torch.manual_seed(0)
    module, x = Branches(), torch.randn(2, 4, 6)
    small = prune(module, x, 0.5).module
    assert isinstance(small, Branches)
    assert small.a.out_features == 6
    assert small.b.in_features == 12
    assert forward(small, (x,))[0].shape == forward(module, (x,))[0].shape
    first, second = small.train()(x), small(x)
    assert not torch.equal(first, second), "dropout is at work"
    first.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    assert torch.equal(small.eval()(x), small(x))


@pytest.mark.parametrize("width", [12, 10])
def test_a_number_that_belongs_to_something_else_stays(width: int) -> None:
    class Pixels(nn.Module):
        """12 channels, and images that are 12 pixels high: only one of the two numbers is the channels'."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Conv2d(2, 12, 1), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x).view(-1, 12, 12, x.shape[-1]).mean((2, 3)))

    module, x = Pixels(), torch.randn(2, 2, 12, width)
    groups = find_groups(module, x)
    [group] = groups.prunable
    first = next(which for _, which, value in numbers(Pixels) if value == 12)
    assert [(knob.attribute, knob.place) for knob in group.knobs] == [("forward", first)]
    small = prune(module, x, 0.5, groups=groups).module
    assert small(torch.randn(3, 2, 12, width)).shape == (3, 3)

"""What stands for a user's function or dataset: what it computes by, and nothing that changes by itself."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.networks.running import seed_all, seeded
from compress.tasks.datasets import Stream, read_train
from compress.tasks.fingerprints import dataset_hash, source_hash

HEAD = "import functools, torch\nfrom torch.nn import functional as F\n"
SCALED = "SCALE = {scale}\ndef loss(outputs, labels):\n    return SCALE * F.cross_entropy(outputs, labels)\n"
HELPED = "def part(x):\n    return x.{how}()\ndef loss(outputs, labels):\n    return part(outputs - labels)\n"
CLASSES = (
    "class Base:\n    power = {power}\n"
    "class Loss(Base):\n    def __call__(self, a, b):\n        return a - b\nloss = Loss()\n"
)
WEIGHTS = "WEIGHTS = torch.tensor([1.0, {last}])\ndef loss(a, b):\n    return F.cross_entropy(a, b, WEIGHTS)\n"
METHODS = (
    "class Loss:\n    @staticmethod\n    def part(x):\n        return x.{how}()\n"
    "    def total(self, a, b):\n        return self.part(a - b)\n"
)
LISTED = "SHARES = [0.5, {last}]\nloss = lambda a, b: sum(s * F.mse_loss(a, b) for s in SHARES)\n"


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Any]:
    """``loss`` of a task file with the given text, always at the same path."""

    def load(text: str) -> Any:
        import linecache

        path = tmp_path / "mytask.py"
        path.write_text(HEAD + text)
        linecache.clearcache()
        names: dict[str, Any] = {"__name__": "mytask"}
        exec(compile(path.read_text(), str(path), "exec"), names)
        return names["loss"]

    return load


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SCALED.format(scale=1.0), SCALED.format(scale=2.0)),
        (HELPED.format(how="abs"), HELPED.format(how="square")),
        (WEIGHTS.format(last=1.0), WEIGHTS.format(last=2.0)),
        (LISTED.format(last=0.5), LISTED.format(last=0.25)),
        (CLASSES.format(power=1), CLASSES.format(power=2)),
        ("def loss(a, b, *, power=1):\n    return a\n", "def loss(a, b, *, power=2):\n    return a\n"),
        (
            "def make(power):\n    def loss(a, b):\n        return (a - b) ** power\n    return loss\nloss = make(1)\n",
            "def make(power):\n    def loss(a, b):\n        return (a - b) ** power\n    return loss\nloss = make(2)\n",
        ),
        (
            "def f(a, b, p):\n    return a\nloss = functools.partial(f, p={'x': [1, 2]})\n",
            "def f(a, b, p):\n    return a\nloss = functools.partial(f, p={'x': [1, 3]})\n",
        ),
        (METHODS.format(how="abs") + "loss = Loss().total\n", METHODS.format(how="square") + "loss = Loss().total\n"),
        ("loss = torch.nn.CrossEntropyLoss()\n", "loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)\n"),
        ("loss = F.mse_loss\n", "loss = F.l1_loss\n"),
    ],
)
def test_what_a_function_computes_by_tells_two_apart(made: Callable[[str], Any], one: str, other: str) -> None:
    first = source_hash(made(one))
    assert first == source_hash(made(one)), "made anew, the same"
    assert first != source_hash(made(other))


def test_what_a_function_changes_itself_is_its_memory(made: Callable[[str], Any]) -> None:
    loss = made(
        "CALLS = []\nCOUNT = 0\nSEEN = {}\n"
        "def loss(a, b):\n    global COUNT\n    COUNT += 1\n    CALLS.append(1)\n    SEEN['x'] = 1\n    return a - b\n"
    )
    before = source_hash(loss)
    loss(1, 2)
    assert source_hash(loss) == before


def test_functions_that_name_each_other_end(made: Callable[[str], Any]) -> None:
    text = "def loss(a, b):\n    return other(a, b) if a else b\ndef other(a, b):\n    return loss(a - 1, b)\n"
    assert source_hash(made(text)) == source_hash(made(text))
    assert source_hash(None) is None


def test_another_process_gives_the_same(tmp_path: Path) -> None:
    text = (
        "import torch\nfrom compress.tasks.fingerprints import source_hash\n"
        "NAMES = {'b', 'a', 'c'}\nTABLE = {'z': 1, 'y': torch.ones(2)}\n"
        "class Part:\n    def __init__(self): self.x = [1, (2, 3)]\nPART = Part()\n"
        "def loss(a, b):\n    return a, NAMES, TABLE, PART\n"
        "print(source_hash(loss))\n"
    )
    (tmp_path / "one.py").write_text(text)
    found = {subprocess.check_output([sys.executable, tmp_path / "one.py"], text=True) for _ in range(2)}
    assert len(found) == 1


# -- datasets


class Noisy:
    """Examples with noise, from torch's generator."""

    def __init__(self, noise: float = 0.1, transform: Any = None, n: int = 40) -> None:
        self._noise, self.transform, self.n = noise, transform, n
        self._cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = self._cache.setdefault(index, torch.full((4,), float(index)))
        x = x + self._noise * torch.randn(4)
        return (x if self.transform is None else self.transform(x)), index % 2


class Flip:
    """A transform with a setting, as libraries have them."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, x: Tensor) -> Tensor:
        return x.flip(0) if torch.rand(()) < self.p else x


class OwnDice(Noisy):
    """Draws from a generator of its own that goes on and on."""

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__(noise)
        self.dice = np.random.default_rng()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((4,), float(index) + self._noise * float(self.dice.normal())), index % 2


MAKERS: list[Callable[[], Any]] = [
    lambda: Noisy(),
    lambda: Noisy(0.2),
    lambda: Noisy(n=41),
    lambda: Noisy(transform=Flip(0.5)),
    lambda: Noisy(transform=Flip(0.3)),
    lambda: Noisy(transform=[Flip(0.5)][0].__call__),
    lambda: Noisy(transform=functools.partial(torch.mul, other=2.0)),
    lambda: Noisy(transform=lambda x: -x),
    lambda: OwnDice(),
    lambda: OwnDice(0.2),
]


def test_another_augmentation_of_equal_length_is_another_stream() -> None:
    found = [read_train(make()) for make in MAKERS]
    assert all(isinstance(one, Stream) for one in found)
    digests = [one.digest for one in found]
    assert len(set(digests)) == len(digests)
    assert digests == [read_train(make()).digest for make in MAKERS], "made anew, the same"


def test_what_a_dataset_draws_tells_apart_what_its_making_does_not() -> None:
    """An object that hides what it is made of still gives itself away from one seed."""

    def hidden(scale: float) -> Any:
        class Slotted:
            __slots__ = ("value",)

        one = Slotted()
        one.value = scale
        return Noisy(transform=torch.jit.script(nn.Linear(1, 1)) and (lambda x, one=one: x * one.value))

    assert dataset_hash(hidden(1.0)) == dataset_hash(hidden(2.0))
    assert read_train(hidden(1.0)).digest != read_train(hidden(2.0)).digest


def test_what_is_seeded_for_a_while_goes_on_where_it_was() -> None:
    def draw() -> list[float]:
        return [float(torch.rand(())), float(np.random.random()), random.random()]

    seed_all(5)
    expected = [draw(), draw()]
    seed_all(5)
    found = [draw()]
    inside = []
    for _ in range(2):
        with seeded(7):
            inside.append(draw())
    found.append(draw())
    assert found == expected
    assert inside[0] == inside[1] != expected[0]

"""What the tests of `compress` share: a tiny task, quick searches on a made-up device, one finished run.

For the stages: one thread, the digits, a small CNN trained on them, and its ONNX file.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import compress
import tiny_task
import zoo
from compress.onnx_files import exporting
from compress.onnx_files.isolation import kept_worker
from compress.pruning.grouping import find_groups
from compress.pruning.groups import Groups
from compress.results import Result
from compress.tasks.datasets import Split, read
from compress.values.candidates import (
    Candidate,
    Drop,
    DropSplits,
    LatencyResult,
    Measured,
    Parity,
    Quality,
    QualitySplits,
)
from targets.runtimes.fake.fake_target import FakeTarget

_TRACED: dict[str, Any] = {}


def _trace_once(trace: Callable[..., Any]) -> Callable[..., Any]:
    """Exporting takes most of a trial's time and does not depend on the weights: do each structure once."""

    def traced(module: torch.nn.Module, example: tuple[torch.Tensor, ...], limits: Any = None) -> Any:
        shapes = [tuple(x.shape[1:]) for x in example] + [tuple(x.shape) for x in module.state_dict().values()]
        key = f"{module}{shapes}{limits}"
        if key not in _TRACED:
            _TRACED[key] = trace(module, example, limits)
        return copy.deepcopy(_TRACED[key])

    return traced


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The tiny task file, as a module."""
    return tiny_task


@pytest.fixture(scope="session")
def task(tiny: ModuleType) -> compress.Task:
    """The tiny task with its model trained."""
    return compress.Task(name="tiny", model=tiny.trained(), **tiny.datasets())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every structure is exported once in the whole session."""
    monkeypatch.setattr(exporting, "trace_graph", _trace_once(exporting.trace_graph))


@pytest.fixture
def search(quick: None, task: compress.Task, tiny: ModuleType, tmp_path: Path) -> Callable[..., Result]:  # noqa: ARG001
    """``compress.search`` of the tiny task on a fake target into ``tmp_path / "run"``; everything can be replaced."""

    def run(**changes: Any) -> Result:
        asked = {"task": task, "target": FakeTarget(), "space": tiny.SPACE, "out": tmp_path / "run", **changes}
        return compress.search(**asked)

    return run


@pytest.fixture(scope="session")
def finished(task: compress.Task, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished run of six trials; tests look at it, none may change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "trace_graph", _trace_once(exporting.trace_graph))
        folder = tmp_path_factory.mktemp("finished") / "run"
        return compress.search(task, FakeTarget(), trials=6, space=tiny.SPACE, out=folder)


@pytest.fixture(scope="session")
def content() -> Callable[[Path], dict[str, str]]:
    """Path -> hash of every file below a folder (or of one file): to show that nothing was touched."""

    def found(folder: Path) -> dict[str, str]:
        paths = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}

    return found


def make_candidate(
    name: str,
    drop: float = 0.0,
    ratio: float = 1.0,
    size: int = 1000,
    *,
    test: float | None = None,
    target: str = "fake",
    half: float = 0.002,
    n: int = 1000,
) -> Candidate:
    """A candidate that lost ``drop`` on val (and ``test`` on test) against an accuracy of 0.9; trial from its name."""

    def quality(lost: float) -> Quality:
        return Quality("accuracy", 0.9 - lost, 0.9 - lost - half, 0.9 - lost + half, n)

    def dropped(lost: float) -> Drop:
        return Drop(lost, lost - half, lost + half)

    measured = Measured(
        QualitySplits(quality(drop), None if test is None else quality(test)),
        DropSplits(dropped(drop), None if test is None else dropped(test)),
        LatencyResult(1e-3 * ratio, 1.1e-3 * ratio, ratio, ratio, ratio, 100),
        memory=4 * size,
    )
    number, _, scheme = name.partition("-")
    config = {"precision": {"scheme": scheme or "fp32"}, "prune": {"ratio": 0.0}, "widths": {}}
    trial = int(number) if number.isdigit() else None
    return Candidate(
        name, f"candidates/{name}/model.onnx", config, size, 10, 20, Parity(0.0, 1.0), {target: measured}, trial
    )


@pytest.fixture(scope="session")
def candidate() -> Callable[..., Candidate]:
    """Makes candidates without files: ``candidate("0001-int8", drop=0.004, ratio=0.5, size=300)``."""
    return make_candidate


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small train no faster with more threads, and many times slower beside other processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits as images (n, 1, 8, 8) in [0, 1] and labels (n,): 1,200 / 300 / 297."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@pytest.fixture(scope="session")
def digits() -> Digits:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = torch.from_numpy(found.images[order] / 16.0).float()[:, None]
    labels = torch.from_numpy(found.target[order]).long()
    cut = [slice(0, 1200), slice(1200, 1500), slice(1500, None)]
    return Digits(*((images[c], labels[c]) for c in cut))


def make_cnn(width: int = 16) -> nn.Sequential:
    """Two convolutions with BatchNorm and a linear layer, for (n, 1, 8, 8)."""
    layers: list[nn.Module] = [
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(width * 16, 10),
    ]  # fmt: skip
    return nn.Sequential(*layers)


def fit(module: nn.Module, data: tuple[Tensor, Tensor], epochs: int = 6, seed: int = 0) -> nn.Module:
    """Train in place with a loop of its own, so that what is tested does not make its own yardstick."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    module.train()
    for _ in range(epochs):
        for chunk in torch.randperm(len(data[0])).split(50):
            optimizer.zero_grad()
            F.cross_entropy(module(data[0][chunk]), data[1][chunk]).backward()
            optimizer.step()
    return module.eval()


@pytest.fixture(scope="session")
def _trained(digits: Digits) -> nn.Module:
    torch.manual_seed(0)
    return fit(make_cnn(), digits.train)


@pytest.fixture
def cnn(_trained: nn.Module) -> nn.Module:
    """A copy of the trained CNN."""
    return copy.deepcopy(_trained)


@pytest.fixture(scope="session")
def few(digits: Digits) -> Split:
    """128 train examples: two batches."""
    return read(TensorDataset(*(x[:128] for x in digits.train)), "train")


@pytest.fixture
def half(cnn: nn.Module, digits: Digits) -> nn.Module:
    """The trained CNN with half of its channels, not trained again."""
    return compress.prune(cnn, digits.val[0][:4], 0.5).module


@pytest.fixture
def bare() -> nn.Module:
    """The same network with other, untrained weights."""
    torch.manual_seed(99)
    return make_cnn().eval()


@pytest.fixture(scope="session")
def exported(_trained: nn.Module, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained CNN as an ONNX file. Read only."""
    path = tmp_path_factory.mktemp("exported") / "cnn.onnx"
    exporting.export(_trained, digits.val[0][:4], path)
    return path


class _Found(dict[str, Groups]):
    """Groups by the name of a network of the zoo, each found when it is first asked for."""

    def __missing__(self, name: str) -> Groups:
        with torch.random.fork_rng(devices=[]):
            self[name] = find_groups(*zoo.made(name))
        return self[name]


@pytest.fixture(scope="session")
def found() -> dict[str, Groups]:
    """The groups of every network of the zoo. Read only."""
    return _Found()


@pytest.fixture(scope="session", autouse=True)
def _one_worker() -> Iterator[None]:
    """One worker process for all that tests do with ONNX files, instead of one for every call."""
    with kept_worker():
        yield

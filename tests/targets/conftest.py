"""What the tests of `targets` share: small models, and a target that goes wrong on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from targets.settings import Setting
from targets.target import Capabilities
from targets.testing import reference_model
from targets.workers.local import LocalTarget

RUNTIMES = Path(__file__).parent / "faulty_runtimes"


class Misbehaving(LocalTarget):
    """Goes wrong as ``how`` says."""

    base = "misbehaving"
    runtime = "misbehaving:Misbehaving"
    settings = {"how": Setting("segfault"), "threads": Setting(1, least=1)}  # noqa: RUF012  as a third party writes it
    install = "pip install onlyhere"

    def capabilities(self) -> Capabilities:
        return Capabilities()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return reference_model(tmp_path / "model.onnx")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, and nothing in the environment that keeps runtimes quiet by itself."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("XDG_CACHE_HOME", "CI", "ORT_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Misbehaving]]:
    """Makes targets whose runtime goes wrong: ``misbehaving("hang", patience=0.5)``."""
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{RUNTIMES}{os.pathsep}{known}" if known else str(RUNTIMES))
    made: list[Misbehaving] = []

    def make(how: str, *, patience: float = 120.0, memory_limit: int | None = None) -> Misbehaving:
        target = Misbehaving(how=how)
        target.patience, target.memory_limit = patience, memory_limit
        made.append(target)
        return target

    yield make
    for target in made:
        target.close()

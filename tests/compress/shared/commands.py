"""Running ``paretopress`` in the tests' own process, a copy of the finished run, and task files to give it."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from compress.commands import command_line
from compress.results import Result

TASK_FILE = Path(__file__).with_name("tiny_task.py")


class Done(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which has to be one JSON document and nothing else."""
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """stderr, which has to be one line, and not a stack trace."""
        [line] = self.err.strip().splitlines()
        assert "Traceback" not in line
        return line


@pytest.fixture
def command(
    quick: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Done]:  # fmt: skip
    """Runs ``paretopress ARGUMENTS`` in this process, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("traces")))
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["paretopress", *map(str, arguments)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                command_line.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        said = capfd.readouterr()
        status = ended.value.code
        assert isinstance(status, int)
        return Done(status, said.out, said.err)

    return run


@pytest.fixture
def run(finished: Result, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return tmp_path / "run"


def task_file(path: Path, *changes: str, before: str = "", inside: str = "") -> Path:
    """A task file: the tiny one, with code put before everything, into ``task()``, and ``Task`` arguments changed."""
    path.write_text(
        f"{before}\nimport importlib.util, torch, compress\n"
        f"spec = importlib.util.spec_from_file_location('tiny_task', {str(TASK_FILE)!r})\n"
        "tiny = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(tiny)\n"
        "SPACE = tiny.SPACE\n"
        "from torch.utils.data import TensorDataset, Subset\n"
        "def task():\n"
        f"    {inside or 'pass'}\n"
        "    sets = tiny.datasets()\n"
        f"    return compress.Task(**{{**dict(name='tiny', model=tiny.trained, **sets), {', '.join(changes)}}})\n"
    )
    return path

"""What the README says can be typed and run: its task file, its commands, its options and its names."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import compress
from compress.commands.command_line import cli
from compress.metrics.metrics import METRICS
from compress.tasks.tasks import Task
from compress.values.configs import SCHEMES, SETTINGS
from compress.values.domains import Choice, Float, Int

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
TASK_FILE = PYTHON[0]
OWN_NETWORK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset


class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.head((x + torch.relu(self.second(x))).mean((2, 3)))


def examples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    bright = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])[labels][:, :, None, None]
    return TensorDataset(bright + 0.1 * torch.randn(count, 2, 8, 8, generator=generator), labels)


train_set, val_set, test_set = examples(300, 0), examples(120, 1), examples(120, 2)
"""
"""A network of nobody's recipe, with a shortcut in it, on three kinds of noise that are easy to tell apart."""


def cells(heading: str) -> list[list[str]]:
    """The rows of the table whose first heading is ``heading``, without the heading itself."""
    table = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[-:|]+\n((?:\|.*\n)+)", README, flags=re.MULTILINE)
    assert table is not None, f"no table headed {heading!r}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[1].splitlines()]


def evaluated(text: str) -> Any:
    """A default as the README writes it, such as ``Float(0.0, 0.9)``."""
    return eval(text.strip("`"), {"Float": Float, "Int": Int, "Choice": Choice})


def train(module: nn.Module, examples: Any, steps: int = 60) -> None:
    torch.manual_seed(0)
    inputs, labels = examples.tensors
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(module(inputs), labels))
        optimizer.step()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the README's task file, a module it can import, and trained weights."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mytask.py").write_text(TASK_FILE)
    (folder / "mynet.py").write_text(OWN_NETWORK)
    scope: dict[str, Any] = {}
    exec(OWN_NETWORK, scope)
    model = scope["MyNet"]()
    train(model, scope["train_set"])
    torch.save(model.state_dict(), folder / "mynet.pt")
    return folder


def test_the_task_file_has_eight_lines() -> None:
    assert len(TASK_FILE.splitlines()) == 8


@pytest.fixture(scope="module")
def searched(folder: Path) -> tuple[Path, str]:
    """The run that the command of the README makes of it (on a target without a device), and its stdout."""
    command = [
        sys.executable,
        "-m",
        "compress.commands.command_line",
        "search",
        "mytask.py",
        "--target",
        "fake",
        "--trials",
        "2",
    ]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder / "runs" / "mynet", done.stdout


def test_the_task_file_makes_a_better_model_of_somebodys_own_network(searched: tuple[Path, str]) -> None:
    run, stdout = searched
    assert f"best model: {Path('runs/mynet/best/model.onnx')}" in stdout
    assert (run / "best" / "model.onnx").is_file()
    report = json.loads((run / "report.json").read_text())
    assert report["constraints"] == ["quality_drop<=0.01", "size<=0.5x"]
    best = json.loads((run / "best" / "manifest.json").read_text())
    baseline = next(one for one in report["candidates"] if one["id"] == report["baseline"])
    assert best["id"] != report["baseline"]
    assert best["measurements"]["size"] <= 0.5 * baseline["size"]


def test_every_file_and_folder_of_a_run_that_it_draws_is_there(searched: tuple[Path, str]) -> None:
    drawn = re.search(r"^runs/NAME/\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    assert drawn is not None
    names = [re.split(r"\s{2,}", line.strip())[0] for line in drawn[1].splitlines()]
    assert len(names) >= 8
    for name in names:
        assert list(searched[0].glob(name.replace("ID/", "*/"))), name


COMMANDS = sorted(set(re.findall(r"`(?:\$ )?paretopress ([a-z]+)", README)))


def test_every_command_is_named() -> None:
    assert set(COMMANDS) == set(cli.commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_is_named_exists(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0, result.output


def test_options_of_search_are_those_that_it_has() -> None:
    has = {name for parameter in cli.commands["search"].params for name in parameter.opts if name.startswith("--")}
    told = {name for row in cells("option of `search`") for name in re.findall(r"`(--[a-z-]+)`", row[0])}
    assert told <= has
    assert has - told <= {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", README)) <= {
        *(name for command in cli.commands.values() for parameter in command.params for name in parameter.opts),
        *("--extra-index-url", "--no-deps"),
    }


def test_fields_of_a_task_are_those_that_it_has() -> None:
    told = {name for row in cells("field of `Task`") for name in re.findall(r"`(\w+)`", row[0])}
    assert told == {field.name for field in dataclasses.fields(Task)}
    (metrics,) = (row[1] for row in cells("field of `Task`") if row[0] == "`metric`")
    assert set(re.findall(r"`([\w-]+)`", metrics)) == set(METRICS)


def test_fields_and_defaults_of_the_search_space_are_those_that_it_has() -> None:
    rows = cells("field of `SearchSpace`")
    assert {row[0].strip("`"): evaluated(row[-1]) for row in rows} == compress.SearchSpace().domains()
    assert {row[0].strip("`"): row[1] for row in rows} == {name: row.setting.text for name, row in SETTINGS.items()}
    assert all(f"`{scheme}`" in README for scheme in SCHEMES)


def names_used(source: str) -> set[tuple[str, str]]:
    """(package, attribute) for every ``compress.NAME`` and ``targets.NAME`` in a piece of Python."""
    return {
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("compress", "targets")
    }


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_every_name_in_python_exists(number: int) -> None:
    used = names_used(PYTHON[number])
    assert used
    for package, name in used:
        assert name in importlib.import_module(package).__all__, f"{package}.{name}"


def test_every_attribute_of_a_result_exists() -> None:
    from compress.results import Result, RunCandidate

    source = next(text for text in PYTHON if "result = compress.search" in text)
    used = re.findall(r"\bresult\.(\w+)", source)
    assert used
    assert all(hasattr(Result, name) for name in used)
    known = {*dir(RunCandidate), *(field.name for field in dataclasses.fields(RunCandidate))}
    assert set(re.findall(r"\bbest\.(\w+)", source)) <= known


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", README))))
def test_every_link_within_the_repository_leads_somewhere(link: str) -> None:
    name, _, anchor = link.partition("#")
    file = REPOSITORY / (name or "README.md")
    assert file.is_file(), link
    if anchor:
        headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link

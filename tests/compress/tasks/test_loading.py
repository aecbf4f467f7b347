"""Task files as users write them, and what is said when they go wrong."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compress.tasks.loading import load_task
from compress.tasks.recipes import recipes
from compress.tasks.user_code import guarded
from compress.values.search_spaces import SearchSpace
from targets.errors import SpaceError, TaskError

GOOD = """
import torch
from compress import Task

def task():
    data = torch.utils.data.TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    return Task("mine", torch.nn.Linear(2, 2), data, data)
"""

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stack traces go to the test's folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Writes a file; what importing leaves behind is taken back."""
    path, modules = list(sys.path), set(sys.modules)

    def made(text: str, name: str = "mine.py") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    yield made
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _refused(spec: object, data: str | None = None) -> str:
    with pytest.raises(TaskError) as caught:
        load_task(str(spec), data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_by_its_name() -> None:
    names = [row["name"] for row in recipes()]
    assert names == sorted(names)
    assert "digits" in names
    assert all(row["description"] for row in recipes())
    assert load_task("digits").task.name == "digits"


def test_a_file(write: Write) -> None:
    found = load_task(str(write(GOOD)))
    assert found.task.name == "mine"
    assert (found.space, found.objectives, found.constraints) == (None, None, None)


def test_a_file_brings_its_defaults(write: Write) -> None:
    text = "from compress import SearchSpace\nSPACE = SearchSpace(epochs=1)\n"
    text += "OBJECTIVES = ['quality', 'size']\nCONSTRAINTS = ('size<=1kB',)\n"
    found = load_task(str(write(text + GOOD)))
    assert found.space == SearchSpace(epochs=1)
    assert found.objectives == ("quality", "size")
    assert found.constraints == ("size<=1kB",)


def test_neighbours_can_be_imported_but_hide_nothing_of_ours(write: Write) -> None:
    write("NAME = 'from-a-neighbour'\n", "my_neighbour.py")
    write("raise RuntimeError('the wrong targets')\n", "targets.py")
    text = GOOD.replace("import torch\n", "import torch, targets, my_neighbour\ntargets.get\n")
    found = load_task(str(write(text.replace('"mine"', "my_neighbour.NAME"))))
    assert found.task.name == "from-a-neighbour"


def test_neighbours_come_after_everything_installed(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    write("raise RuntimeError('the wrong colorsys')\n", "colorsys.py")
    assert load_task(str(write("import colorsys\ncolorsys.rgb_to_hsv\n" + GOOD))).task.name == "mine"


def test_a_module_of_a_package(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("", "my_package_a/__init__.py")
    write(GOOD, "my_package_a/tasks.py")
    monkeypatch.chdir(tmp_path)
    assert load_task("my_package_a.tasks").task.name == "mine"
    assert "no task 'my_package_a.other'" in _refused("my_package_a.other")


def test_a_package_that_raises_is_said_with_its_line(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("x = 1\nraise ValueError('not today')\n", "my_package_b/__init__.py")
    write(GOOD, "my_package_b/tasks.py")
    write("import surely_not_installed\n", "my_package_c/__init__.py")
    monkeypatch.chdir(tmp_path)
    assert re.search(r"ValueError: not today \(.*my_package_b/__init__.py:2\)", _refused("my_package_b.tasks"))
    assert "surely_not_installed" in _refused("my_package_c.tasks"), "not taken for an unknown task"


def test_a_parameter_data_gets_the_path(write: Write) -> None:
    text = GOOD.replace("def task():", "def task(data):\n    name = data").replace('"mine"', "name")
    assert load_task(str(write(text)), "given").task.name == "given"
    assert load_task(str(write(text.replace("(data)", "(data='own')"), "b.py"))).task.name == "own"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", r"has no function task\(\)"),
        ("task = 3\n", r"has no function task\(\)"),
        ("def task():\n    return 5\n", "returned int, not a compress.Task"),
        ("def task():\n    x = 1\n    raise KeyError('gone')\n", r"task\(\) of .* KeyError: 'gone' \(.*mine.py:3\)"),
        ("x = 1\ny = 1 / 0\n", r"raised ZeroDivisionError: division by zero \(.*mine.py:2\)"),
        ("def task(:\n    pass\n", r"raised SyntaxError.*\(.*mine.py:1\)"),
        ("import json\njson.loads('{')\n", r"raised JSONDecodeError.*\(.*mine.py:2\)"),
        ("import torch\n\ntorch.zeros(2) @ torch.zeros(3)\n", r"raised RuntimeError.*\(.*mine.py:3\)"),
        ("import surely_not_installed\n", r"raised ModuleNotFoundError.*surely_not_installed.*\(.*mine.py:1\)"),
        ("import sys\nsys.exit('usage: mine')\n", r"raised SystemExit: usage: mine \(.*mine.py:2\)"),
        ("def task():\n    raise ValueError('one\\ntwo')\n", r"raised ValueError: one \("),
        ("def task(path):\n    pass\n", "missing 1 required positional argument: 'path'"),
        (GOOD + "\nSPACE = {'epochs': 1}\n", "SPACE of .* is dict, not a compress.SearchSpace"),
        (GOOD + "\nOBJECTIVES = 'quality'\n", "OBJECTIVES of .* must be a list of strings"),
        (GOOD + "\nCONSTRAINTS = 5\n", "CONSTRAINTS of .* must be a list of strings"),
        (GOOD + "\nCONSTRAINTS = [5]\n", "CONSTRAINTS of .* must be a list of strings"),
        (GOOD.replace('"mine"', '"a b"'), r"task name 'a b'.*\(.*mine.py:7\)"),
    ],
)  # fmt: skip
def test_files_that_go_wrong_are_said_in_one_line(write: Write, text: str, said: str) -> None:
    assert re.search(said, _refused(write(text)))


def test_a_space_out_of_range_is_said_with_its_line(write: Write) -> None:
    with pytest.raises(SpaceError, match=r"epochs=-1: must be within .* \(.*mine.py:2\)"):
        load_task(str(write("from compress import SearchSpace\nSPACE = SearchSpace(epochs=-1)\n" + GOOD)))


def test_the_stack_trace_is_in_the_file_that_is_named(write: Write) -> None:
    said = _refused(write("def task():\n    return helper()\ndef helper():\n    raise ValueError('deep')\n"))
    trace = Path(said.rpartition("stack trace: ")[2])
    assert "in helper" in trace.read_text()
    assert "ValueError: deep" in trace.read_text()


def test_data_for_a_task_that_takes_none(write: Write) -> None:
    assert "has no parameter 'data'" in _refused(write(GOOD), "somewhere")


@pytest.mark.parametrize("spec", ["absent.py", "no-such-recipe", "no.such.module", ""])
def test_what_is_not_there(spec: str) -> None:
    said = _refused(spec)
    assert "does not exist" in said or "give a recipe" in said


def test_a_typing_error_gets_a_hint() -> None:
    assert "did you mean 'digits'?" in _refused("digit")


def test_what_user_code_prints_goes_to_stderr(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    load_task(str(write("print('while importing')\n" + GOOD.replace("    data =", "    print('in task')\n    data ="))))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "while importing" in captured.err
    assert "in task" in captured.err


def test_what_user_code_refuses_on_purpose_passes_as_it_is() -> None:
    def call() -> None:
        raise TaskError("give --data FOLDER")

    with pytest.raises(TaskError, match=r"^give --data FOLDER$"):
        guarded("task()", call)


def test_an_interrupt_is_no_error_of_the_file() -> None:
    def call() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded("task()", call)

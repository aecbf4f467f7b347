"""The wheel is what people install, so the wheel is tested: what is in it, and that it works outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("compress", "targets", "recipes")
HEAVY = {"torch", "optuna", "onnx", "onnxruntime", "scipy", "sklearn", "plotly", "jinja2"}
NOT_SOURCE = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")


def run(*command: str | Path, cwd: Path) -> str:
    """A command's stdout, without this process's import path; its stderr is in the failure."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves files behind that the next build would pack."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPOSITORY, folder / "source", ignore=NOT_SOURCE)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=folder / "source")
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel installed, and the dependencies of the environment that runs the tests.

    The latter's folder is put on the path by a .pth file. Python does not read the .pth files inside it, so an
    editable install there stays out of sight. The wheel is installed first: pip must not see another one.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    found = folder / "bin" / "python" if os.name != "nt" else folder / "Scripts" / "python.exe"
    run(sys.executable, "-m", "pip", "--python", found, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    [site] = run(found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).split("\n")[:1]
    shared = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    Path(site, "dependencies.pth").write_text("\n".join(shared) + "\n")
    return found


def loaded_by(python: Path, code: str, cwd: Path) -> set[str]:
    """Top-level modules loaded once ``code`` has run (it may exit)."""
    script = (
        "import json, sys\ntry:\n"
        f"    {code}\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    return set(json.loads(run(python, "-c", script, cwd=cwd).splitlines()[-1]))


def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    assert not [name for name in names if "test_" in name or "conftest" in name or "benchmarks" in name]


def test_wheel_holds_every_source_and_data_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        file.relative_to(REPOSITORY).as_posix()
        for package in PACKAGES
        for pattern in ("*.py", "*.c", "*.j2", "*.json", "*.pt", "py.typed")
        for file in (REPOSITORY / package).rglob(pattern)
    }
    assert wanted <= names, sorted(wanted - names)
    assert {f"{package}/py.typed" for package in PACKAGES} | {"recipes/expected.json"} <= names
    assert any(name.startswith("compress/") and name.endswith(".html.j2") for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_packages_are_imported_from_the_wheel(python: Path, tmp_path: Path) -> None:
    code = "import compress, targets, recipes; print(*(m.__file__ for m in (compress, targets, recipes)), sep='\\n')"
    environment = python.parent.parent
    for line in run(python, "-c", code, cwd=tmp_path).splitlines():
        assert Path(line).is_relative_to(environment), f"{line} is not in {environment}"


def test_command_line_is_installed(python: Path, tmp_path: Path) -> None:
    shown = run(python.parent / "paretopress", "--help", cwd=tmp_path)
    for command in ("search", "bench", "check", "front", "pick", "report", "targets", "recipes"):
        assert command in shown


@pytest.mark.parametrize("group", ["paretopress.targets", "paretopress.recipes"])
def test_entry_points_load(python: Path, tmp_path: Path, group: str) -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"][group]
    code = (
        f"from importlib.metadata import entry_points; points = entry_points(group={group!r}); "
        "[point.load() for point in points]; print(*sorted(point.name for point in points), sep='\\n')"
    )
    assert set(declared) <= set(run(python, "-c", code, cwd=tmp_path).splitlines())


def test_importing_targets_loads_no_runtime_and_none_of_the_rest(python: Path, tmp_path: Path) -> None:
    loaded = loaded_by(python, "import targets", tmp_path)
    assert "targets" in loaded
    assert not loaded & {*HEAVY, "compress"}


def test_importing_everything_loads_nothing_heavy(python: Path, tmp_path: Path) -> None:
    assert not loaded_by(python, "import compress, targets, recipes", tmp_path) & HEAVY


def test_help_loads_nothing_heavy(python: Path, tmp_path: Path) -> None:
    code = "sys.argv[1:] = ['--help']; from compress.commands.command_line import main; main()"
    loaded = loaded_by(python, code, tmp_path)
    assert "compress" in loaded
    assert not loaded & HEAVY

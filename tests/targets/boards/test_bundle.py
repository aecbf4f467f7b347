"""What is sent to a device: complete, small, the same every time, and fit for an old Python."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from targets.boards import boot, bundle, remote

ROOT = Path(__file__).resolve().parents[3]
SENT = [bundle.source_file(name) for name in (*bundle.modules(), "targets.boards.boot")]


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    made = bundle.make()
    path = tmp_path / made.name
    path.write_bytes(made.data)
    return path


def test_the_same_sources_give_the_same_bytes():
    bundle.make.cache_clear()
    first = bundle.make()
    bundle.make.cache_clear()
    assert bundle.make() == first
    assert first.name == f"runner-{first.sha256[:16]}.zip"
    assert len(first.data) < 400_000


def test_it_holds_what_the_device_needs_and_nothing_else():
    names = set(zipfile.ZipFile(io.BytesIO(bundle.make().data)).namelist())
    assert names == {"__main__.py", *(path.relative_to(ROOT).as_posix() for path in SENT if path.stem != "boot")}
    sent = {name.rpartition(".")[2] for name in bundle.modules()}
    needed = {"targets", "remote", "worker", "local", "process", "pipes", "measuring", "ort", "ort_cpu", "openvino_cpu"}
    assert needed <= sent
    assert not {"ssh", "bundle", "registry", "comparing", "testing", "fake", "fake_target", "probing"} & sent


def test_every_folder_that_is_sent_is_a_package_there():
    names = set(zipfile.ZipFile(io.BytesIO(bundle.make().data)).namelist())
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents} - {"."}
    assert {f"{folder}/__init__.py" for folder in folders} <= names


def test_it_finds_everything_that_it_imports(runner):
    """Alone on the path, every module can be imported, and comes from there."""
    code = (
        "import importlib, json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps({name: one.__file__ for name, one in sys.modules.items() if name.startswith('targets')}))\n"
    )
    names = bundle.modules()
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(runner), *names], capture_output=True, text=True, check=True, cwd="/"
    )
    found = json.loads(done.stdout)
    assert set(found) == set(names)
    assert all(place.startswith(str(runner)) for place in found.values())


def test_imports_are_found_wherever_they_stand():
    source = (
        "from typing import TYPE_CHECKING\nimport targets.a\nfrom targets import b, c\nfrom targets.d import x\n"
        "from targets.f.g import h as z\nimport numpy\nif TYPE_CHECKING:\n    from targets import unseen\n"
        "def f():\n    from targets.e import y\n"
    )
    found = {name.removeprefix("targets").lstrip(".") for name in bundle.imported_modules(source)}
    assert found == {"", "a", "b", "c", "d", "d.x", "e", "e.y", "f.g", "f.g.h"}


@pytest.mark.parametrize("path", SENT, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_sent_is_fit_for_an_old_python(path):
    """Syntax, what vermin knows of the standard library, and unions that are evaluated."""
    vermin = pytest.importorskip("vermin", reason="pip install vermin")
    source = path.read_text()
    tree = ast.parse(source, feature_version=bundle.OLDEST)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            assert not isinstance(node.args[1], ast.BinOp), f"{path.name}:{node.lineno}: a union in isinstance"
        assert not _evaluated_union(node), f"{path.name}:{node.lineno}: a union outside of an annotation"
    visitor = vermin.visit(source, vermin.Config())
    assert (vermin_3 := visitor.minimum_versions()[1]) is None or vermin_3 <= bundle.OLDEST


def _evaluated_union(node: ast.AST) -> bool:
    """``X = int | None``: an alias, which no future import defers."""
    return isinstance(node, ast.Assign) and any(
        isinstance(part, ast.BinOp)
        and isinstance(part.op, ast.BitOr)
        and isinstance(part.right, ast.Constant)
        and part.right.value is None
        for part in ast.walk(node.value)
    )


def test_the_check_for_an_old_python_sees_something():
    vermin = pytest.importorskip("vermin", reason="pip install vermin")
    assert vermin.visit("for x in zip(a, b, strict=True): pass", vermin.Config()).minimum_versions()[1] == (3, 10)
    assert vermin.visit("import hashlib\nhashlib.file_digest(f, 'x')", vermin.Config()).minimum_versions()[1] == (3, 11)
    assert any(map(_evaluated_union, ast.walk(ast.parse("X = int | None"))))


def test_the_linter_knows_what_is_sent():
    """pyproject.toml tells ruff which files an old Python must understand."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["per-file-target-version"]
    patterns = [key for key, value in lines.items() if value == "py39"]
    named = {path for pattern in patterns for one in _without_braces(pattern) for path in ROOT.glob(one)}
    assert {path for path in SENT if path.stem != "__init__"} - named == set()


def _without_braces(pattern: str) -> list[str]:
    """``a/{b,c}/*.py`` as two patterns: pathlib knows no braces."""
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    words, _, after = rest.partition("}")
    return [whole for word in words.split(",") for whole in _without_braces(f"{before}{word}{after}")]


def test_the_runtimes_a_device_may_use_are_targets_of_this_package():
    for name, place in remote.RUNTIMES.items():
        assert remote.load_target(place).base == name


def boot_with(asked: dict, runner: bytes = b"", before: str = "") -> dict:
    done = subprocess.run(
        [sys.executable, "-c", before + bundle.boot_code(), json.dumps(asked)],
        input=runner,
        capture_output=True,
        check=True,
    )
    text = done.stdout.decode()
    assert text.startswith(boot.MARK)
    found: dict = json.loads(text.removeprefix(boot.MARK))
    return found


def test_boot_says_what_is_missing_and_stores_the_runner(tmp_path):
    made = bundle.make()
    asked = {"cache": str(tmp_path / "a" / "b"), "runner": made.name, "sha256": made.sha256}
    found = boot_with({**asked, "modules": ["numpy", "no_such_module"]})
    assert found["missing"] == ["no_such_module"]
    assert found["python"] == list(sys.version_info[:3])
    assert (found["folder"], found["there"]) == (asked["cache"], False)
    assert boot_with({**asked, "modules": []}, made.data[:-1])["there"] is False
    assert list((tmp_path / "a" / "b").iterdir()) == []
    assert boot_with({**asked, "modules": []}, made.data)["there"] is True
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [made.name]


def test_boot_says_which_old_python_it_met():
    """Before anything is run that such a one would not understand."""
    before = "import sys;sys.version_info=(3,6,9,'final',0);"
    assert boot_with({}, before=before) == {"python": [3, 6, 9]}
    assert ast.parse(bundle.boot_code(), feature_version=(3, 4))

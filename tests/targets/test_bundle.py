"""What is sent to a device: complete, small, the same every time, and fit for an old Python."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from targets import boot, bundle, remote

ROOT = Path(__file__).resolve().parents[2]
SENT = [ROOT / "targets" / f"{name}.py" for name in (*bundle.modules(), "boot")]


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
    names = {name.removesuffix(".py") for name in zipfile.ZipFile(io.BytesIO(bundle.make().data)).namelist()}
    assert names == {"__main__", *(f"targets/{name}" for name in bundle.modules())}
    needed = {"__init__", "remote", "worker", "local", "process", "pipes", "measuring", "ort_cpu", "openvino_cpu"}
    assert needed <= set(bundle.modules())
    assert not {"ssh", "bundle", "registry", "comparing", "testing", "fake", "probing"} & set(bundle.modules())


def test_it_finds_everything_that_it_imports(runner):
    """Alone on the path, every module can be imported, and comes from there."""
    code = (
        "import importlib, json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(f'targets.{name}')\n"
        "print(json.dumps({name: one.__file__ for name, one in sys.modules.items() if name.startswith('targets')}))\n"
    )
    names = [name for name in bundle.modules() if name != "__init__"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(runner), *names], capture_output=True, text=True, check=True, cwd="/"
    )
    found = json.loads(done.stdout)
    assert set(found) == {"targets", *(f"targets.{name}" for name in names)}
    assert all(place.startswith(str(runner)) for place in found.values())


def test_imports_are_found_wherever_they_stand():
    source = (
        "from typing import TYPE_CHECKING\nimport targets.a\nfrom targets import b, c\nfrom targets.d import x\n"
        "import numpy\nif TYPE_CHECKING:\n    from targets import unseen\ndef f():\n    from targets.e import y\n"
    )
    assert sorted(bundle.imported(source)) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("path", SENT, ids=lambda path: path.stem)
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
    (pattern,) = (key for key, value in lines.items() if value == "py39")
    named = set(pattern.removeprefix("targets/{").removesuffix("}.py").split(","))
    assert {path.stem for path in SENT} - named - {"__init__"} == set()


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

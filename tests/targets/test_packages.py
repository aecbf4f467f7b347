"""The guard against a user's own targets.py, and what importing the package costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import targets
from targets.packages import check_not_shadowed

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: str, cwd: Path, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_our_own_packages_pass():
    check_not_shadowed()


def test_a_script_beside_a_compress_file_is_told(tmp_path):
    (tmp_path / "compress.py").write_text("raise SystemExit('imported')")
    (tmp_path / "script.py").write_text("import targets")
    # A checkout without a compress package yet has nothing that could be hidden.
    (ROOT / "compress" / "__init__.py").stat()
    done = python(str(tmp_path / "script.py"), cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("targets.errors.ShadowedError")
    assert str(tmp_path / "compress.py") in last
    assert str(ROOT / "compress") in last
    assert "python -P" in last
    assert python("-P", str(tmp_path / "script.py"), cwd=tmp_path).returncode == 0


GUARD_BY_PATH = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("_guard", {str(ROOT / "targets" / "packages.py")!r})
guard = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guard)
guard.check_not_shadowed(NAMES)
"""


@pytest.mark.parametrize("kind", ["file", "package"])
def test_a_hidden_targets_is_found_without_importing_it(tmp_path, kind):
    mine = tmp_path / "targets.py" if kind == "file" else tmp_path / "targets" / "__init__.py"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("raise SystemExit('imported')")
    (tmp_path / "script.py").write_text(GUARD_BY_PATH.replace("NAMES", "('targets',)"))
    done = python(str(tmp_path / "script.py"), cwd=tmp_path)
    assert "ShadowedError" in done.stderr
    assert str(mine if kind == "file" else mine.parent) in done.stderr
    assert "imported" not in done.stderr


def test_a_folder_without_init_hides_nothing(tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "script.py").write_text(GUARD_BY_PATH.replace("NAMES", "('targets',)"))
    assert python(str(tmp_path / "script.py"), cwd=tmp_path).returncode == 0


EDITABLE = f"""
import importlib.abc, importlib.util, sys
class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("compress", "targets", "recipes"):
            return importlib.util.spec_from_file_location(name, {str(ROOT)!r} + "/" + name + "/__init__.py")
sys.meta_path.append(Hook())
"""
"""What an editable install may be: a hook that is asked after all of the path."""


@pytest.mark.parametrize("name", ["compress", "recipes"])
def test_a_folder_without_init_hides_nothing_in_an_editable_install(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.py").write_text("raise SystemExit('imported')")
    (tmp_path / "script.py").write_text(f"{EDITABLE}\nimport targets, {name}\nprint({name}.__file__)")
    done = python(str(tmp_path / "script.py"), cwd=tmp_path, path="")
    assert (done.returncode, done.stdout.strip()) == (0, str(ROOT / name / "__init__.py")), done.stderr


def test_a_folder_without_init_that_was_imported_is_told_or_no_conflict(tmp_path):
    """Which of the two depends on how the project is installed: a plain path wins over a bare folder."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "script.py").write_text(f"{EDITABLE}\nimport recipes\nimport targets\nprint(recipes.__file__)")
    done = python(str(tmp_path / "script.py"), cwd=tmp_path, path="")
    if done.returncode == 0:
        assert done.stdout.strip() == str(ROOT / "recipes" / "__init__.py")
    else:
        assert "ShadowedError" in done.stderr.strip().splitlines()[-1]
        assert str(tmp_path / "recipes") in done.stderr


@pytest.mark.parametrize("mine", ["targets.py", "recipes.py", "targets/__init__.py", "recipes/__init__.py"])
def test_a_script_that_imports_compress_is_told(tmp_path, mine):
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("raise SystemExit('imported')")
    (tmp_path / "script.py").write_text("import compress")
    done = python(str(tmp_path / "script.py"), cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert (done.returncode, last.startswith("targets.errors.ShadowedError")) == (1, True), done.stderr
    assert str(tmp_path / mine.removesuffix("/__init__.py")) in last


def test_targets_works_alone(tmp_path):
    for file in (ROOT / "targets").rglob("*.py"):
        copy = tmp_path / "alone" / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "compress.py").write_text("")
    code = "import targets; print(targets.get('ort-cpu').name)"
    done = python("-c", code, cwd=tmp_path / "work", path=str(tmp_path / "alone"))
    assert (done.returncode, done.stdout.strip()) == (0, "ort-cpu"), done.stderr


def test_a_worker_is_not_misled_by_files_beside_the_script(tmp_path, model):
    """Run with -P, the script's folder is not searched; the worker must not search it either."""
    for name in ("targets", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    code = (
        f"import targets; targets.get('ort-cpu').run({str(model)!r}, {{'x': __import__('numpy').zeros((1, 3, 8, 8))}})"
    )
    done = python("-P", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_is_light(tmp_path):
    code = "import sys, targets; print(*[m for m in sys.modules if m in sys.argv[1:]])"
    heavy = ("numpy", "onnxruntime", "onnx", "torch", "scipy", "optuna", "importlib.metadata")
    done = python("-c", code, *heavy, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout


def test_measuring_does_not_load_the_runtime_in_our_own_process(tmp_path):
    code = (
        "import sys, targets; t = targets.get(sys.argv[1]); t.capabilities(); t.describe(); t.close();"
        "print(*[m for m in ('torch', 'optuna', 'onnx', 'onnxruntime', 'scipy', 'click', 'rich') if m in sys.modules])"
    )
    done = python("-c", code, "ort-cpu", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_every_public_name_is_there():
    for name in targets.__all__:
        assert getattr(targets, name) is not None
    assert set(targets.__all__) <= set(dir(targets))
    assert sorted(targets.__all__) == targets.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = targets.nothing

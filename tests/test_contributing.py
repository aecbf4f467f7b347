"""CONTRIBUTING shows where things are: the trees are the folders there are, in the order in which they import."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
UPWARDS = {"compress": False, "targets": True}
"""Whether a tree is drawn from the bottom up."""


def tree(package: str) -> list[str]:
    """The names of a package's tree, in their order, without slashes and endings."""
    found = re.search(rf"^```\n{package}/\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert found is not None
    return re.findall(r"^  ([a-z_]+)(?:/|\.py) ", found[1], flags=re.MULTILINE)


def imported(package: str, name: str) -> set[str]:
    """The siblings of a folder or file that it imports."""
    place = REPOSITORY / package / name
    files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
    return {
        sibling
        for path in files
        for sibling in re.findall(rf"^\s*(?:from|import) {package}\.([a-z_]+)", path.read_text(), flags=re.MULTILINE)
        if sibling != name
    }


@pytest.mark.parametrize("package", UPWARDS)
def test_the_tree_is_the_folders_there_are(package: str) -> None:
    folders = {path.parent.name for path in (REPOSITORY / package).glob("*/__init__.py")}
    assert folders <= set(tree(package))
    for name in tree(package):
        assert (REPOSITORY / package / name).is_dir() or (REPOSITORY / package / f"{name}.py").is_file()


@pytest.mark.parametrize("package", UPWARDS)
def test_every_folder_imports_only_what_stands_below_it(package: str) -> None:
    names = tree(package) if UPWARDS[package] else tree(package)[::-1]
    for place, name in enumerate(names):
        above = imported(package, name) & set(names[place + 1 :])
        assert not above, f"{package}/{name} imports {above}"


def test_every_path_that_is_named_exists() -> None:
    paths = set(re.findall(r"\b[a-z_]+/[a-z0-9_/]+\.(?:py|json|toml|md)\b", TEXT))
    assert len(paths) > 20
    for path in paths - {"runs/digits"}:
        assert any((REPOSITORY / root / path).exists() for root in (".", "compress", "targets")), path


STAGES = ("baseline", "profile", "config", "prune", "export", "latency gate", "fine-tune", "quantize", "measure",
          "front", "confirm on test", "report")  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_the_flow_names_the_file_of_every_stage(stage: str) -> None:
    line = re.search(rf"^[ │┌└]*{re.escape(stage)} +([a-z_]+/\S*)", TEXT, flags=re.MULTILINE)
    assert line is not None, stage
    assert (REPOSITORY / "compress" / line[1].rstrip(":,")).exists()


def test_no_folder_is_crowded() -> None:
    for package in UPWARDS:
        for folder in {path.parent for path in (REPOSITORY / package).rglob("*.py")}:
            assert len(list(folder.glob("*.py"))) <= 20, folder

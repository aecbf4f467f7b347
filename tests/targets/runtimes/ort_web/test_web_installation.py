"""What brings ONNX Runtime Web: only what is asked for, by its hash, and one line where something is missing."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from targets import registry
from targets.errors import TargetUnavailable
from targets.runtimes.ort_web import web_installation
from targets.runtimes.ort_web.web_installation import Package

CONTENT = {
    "package/package.json": b"{}",
    "package/dist/a.mjs": b"export {};",
    "package/dist/b.wasm": b"\0asm",
    "package/../../outside.mjs": b"harm",
    "package/postinstall.js": b"harm",
}


def archive(content: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return packed.getvalue()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that is all there is: a Node that says its version, and an npm that copies an archive."""
    folder = tmp_path / "programs"
    folder.mkdir()
    packed = archive(CONTENT)
    (folder / "package.tgz").write_bytes(packed)
    write_program(folder / "node", "echo v20.1.2")
    # The folder to write into comes after --pack-destination.
    write_program(folder / "npm", f'while [ "$1" != --pack-destination ]; do shift; done; /bin/cp {folder}/*.tgz "$2"')
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PARETOPRESS_ORT_WEB_ROOT", str(tmp_path / "root"))
    digest = base64.b64encode(hashlib.sha512(packed).digest()).decode()
    wanted = r"package\.json|dist/[ab]\.(mjs|wasm)|.*outside.*"
    monkeypatch.setattr(web_installation, "PACKAGES", (Package("one", "1.0.0", f"sha512-{digest}", wanted),))
    web_installation._version.cache_clear()
    return folder


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.usefixtures("programs")
def test_what_is_wanted_is_unpacked_and_nothing_else(tmp_path):
    said: list[str] = []
    assert registry.install("ort-web", said.append) == str(tmp_path / "root")
    root = tmp_path / "root"
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    inside = "node_modules/one"
    assert found == {"manifest.json", f"{inside}/package.json", f"{inside}/dist/a.mjs", f"{inside}/dist/b.wasm"}
    assert not list(tmp_path.rglob("outside*"))
    assert web_installation.missing() is None
    assert web_installation.versions() == {"one": "1.0.0", "node": "20.1.2"}
    registry.install("ort-web", said.append)
    assert said == ["one 1.0.0", f"already there; to make it anew, delete {root} first"]


def test_another_archive_than_the_known_one_is_not_used(programs, tmp_path):
    (programs / "package.tgz").write_bytes(archive({**CONTENT, "package/dist/a.mjs": b"harm"}))
    with pytest.raises(
        TargetUnavailable, match=r"^one 1\.0\.0 has the hash sha512-\S+ instead of sha512-\S+; it is not"
    ):
        registry.install("ort-web", print)
    assert not (tmp_path / "root").exists()


@pytest.mark.usefixtures("programs")
def test_a_new_version_is_asked_for_anew(monkeypatch):
    registry.install("ort-web", print)
    (package,) = web_installation.PACKAGES
    monkeypatch.setattr(web_installation, "PACKAGES", (replace(package, version="1.0.1"),))
    with pytest.raises(TargetUnavailable, match=r"needs ONNX Runtime Web of this version in .*root, which is not ins"):
        registry.get("ort-web")


def test_what_npm_complains_of_is_said(programs):
    write_program(programs / "npm", "echo npm error code E404 >&2; echo a log is elsewhere >&2; exit 1")
    with pytest.raises(
        TargetUnavailable, match=r"^one 1\.0\.0 \(from npm's registry\) cannot be had: npm error code E404$"
    ):
        registry.install("ort-web", print)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, r"needs Node 18 or later, which is not installed; run: paretopress targets --install ort-web$"),
        (
            "echo v12.22.12",
            r"needs Node 18 or later \(here it is 12\.22\.12\), which is not installed; run: paretopress",
        ),
        ("exit 1", r"needs Node 18 or later, which is not installed"),
    ],
)
def test_without_node_one_line_says_what_is_missing_and_what_brings_it(programs, script, said):
    (programs / "node").unlink()
    if script is not None:
        write_program(programs / "node", script)
    with pytest.raises(TargetUnavailable, match=said):
        registry.get("ort-web")
    (programs / "npm").unlink()
    row = next(row for row in registry.available() if row["name"] == "ort-web")
    assert (row["available"], row["install"]) == (False, web_installation.COMMAND)
    with pytest.raises(
        TargetUnavailable, match=r"without Node 18 .*apt-get install nodejs.* and npm \(run: apt-get ins"
    ):
        registry.install("ort-web", print)


def test_the_real_packages_are_pinned_by_hash():
    assert all(one.integrity.startswith("sha512-") and len(one.integrity) == 95 for one in web_installation.PACKAGES)

"""What ``paretopress targets --install ort-web`` makes: the files of ONNX Runtime Web that run a model.

    FOLDER/manifest.json                     versions, and the SHA-512 of what was fetched
    FOLDER/node_modules/onnxruntime-web/     its entry for Node and for pages, and the WebAssembly program
    FOLDER/node_modules/onnxruntime-common/  what the entry for Node imports

Packages are fetched by npm from the registry that it is set up for, pinned by version and hash; no script of theirs is
run, and what is for WebGL, WebGPU and debuggers is left out (15 MB instead of 148). FOLDER is made beside its place and
renamed, so that half an installation is none. It is ``paretopress/ort-web`` in the user's data folder
(``$XDG_DATA_HOME``, else ``~/.local/share``), or what ``$PARETOPRESS_ORT_WEB_ROOT`` names. To remove it, delete it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from targets.errors import TargetUnavailable
from targets.machine.folders import installation_folder
from targets.machine.installations import put_in_place, read_manifest, run_program

COMMAND = "paretopress targets --install ort-web"
VARIABLE = "PARETOPRESS_ORT_WEB_ROOT"
FORMAT = 1
"""Of the folder: raised when an older one no longer serves."""
NODE = 18
"""The oldest major version of Node: earlier ones are no longer mended, and have not been tried."""


_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_HEADLESS = (
    "--headless=new", "--disable-gpu", "--no-first-run", "--no-default-browser-check", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-breakpad",
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--mute-audio",
)  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A package of npm: its version, the hash of its archive as npm writes it, and the files that are used."""

    name: str
    version: str
    integrity: str
    wanted: str
    """A regular expression of paths inside the package."""


PACKAGES = (
    Package(
        "onnxruntime-web",
        "1.30.0",
        "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        r"package\.json|dist/(ort\.(node|wasm)\.min\.mjs|ort-wasm-simd-threaded\.(mjs|wasm))",
    ),
    Package(
        "onnxruntime-common",
        "1.30.0",
        "sha512-7fdVWjAID1dVhH/G8qK3APARunV4VkBFoCQAP7qp4Wkab0mrorvmc+sqiT+mKXOzDqdjN5j+/Z9nb4gzNPWcyA==",
        r"package\.json|dist/esm/[\w.-]+\.js|dist/esm/package\.json",
    ),
)

Say = Callable[[str], None]


def place() -> Path:
    """The folder of the installation, whether there is one yet or not."""
    return installation_folder("ort-web", VARIABLE)


def manifest() -> dict[str, Any] | None:
    """What the installation is made of; None where there is none that serves."""
    return read_manifest(place(), format=FORMAT, packages=_asked())


def missing() -> str | None:
    """What has to be installed before a model can be run, in words; None where nothing is missing."""
    return _missing_node() or (None if manifest() else f"ONNX Runtime Web of this version in {place()}")


def library() -> Path:
    """The folder of the library's modules; raises TargetUnavailable, with the command, where it is not installed."""
    lacking = missing()
    if lacking:
        raise TargetUnavailable(f"target 'ort-web' needs {lacking}, which is not installed; run: {COMMAND}")
    return place() / "node_modules" / "onnxruntime-web" / "dist"


def versions() -> dict[str, str]:
    """Versions of the packages and of Node, which a measurement depends on."""
    return {**{one.name: one.version for one in PACKAGES}, "node": node_version() or "none"}


def node() -> str | None:
    """The path of Node; None where there is none."""
    return shutil.which("node") or shutil.which("nodejs")


def node_version() -> str | None:
    """The version of Node, as ``20.20.2``; None where there is none that runs."""
    path = node()
    return None if path is None else _version(path)


def browser() -> str | None:
    """The path of Chromium, or of a browser that is made of it; None where there is none."""
    return next((found for name in _BROWSERS if (found := shutil.which(name))), None)


def browser_version() -> str | None:
    """The version of the browser, as ``156.0.8078.108``; None where there is none that runs."""
    path = browser()
    return None if path is None else _version(path)


def browser_command(address: str) -> list[str]:
    """How a browser shows a page that nobody looks at, and does nothing else meanwhile."""
    # As root, which containers often are, it refuses to start with its sandbox.
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return [str(browser()), *_HEADLESS, *sandbox, address]


@functools.cache
def _version(path: str) -> str | None:
    try:
        done = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\d+\.\d+\.\d+(\.\d+)?", done.stdout)
    return found.group() if found else None


def _missing_node() -> str | None:
    version = node_version()
    if version is None:
        return f"Node {NODE} or later"
    return None if int(version.split(".")[0]) >= NODE else f"Node {NODE} or later (here it is {version})"


def install_library(say: Say = lambda _: None) -> Path:
    """Make the installation unless it is there; returns its folder. Seconds, 33 MB to fetch, 15 MB on disk.

    Raises TargetUnavailable saying what is missing, and what brings it.
    """
    _check_programs()
    folder = place()
    if manifest():
        say(f"already there; to make it anew, delete {folder} first")
        return folder
    return put_in_place(folder, VARIABLE, lambda made: _make(made, say))


def _check_programs() -> None:
    """Raise TargetUnavailable for all programs that are missing, with their commands."""
    lacking = []
    if older := _missing_node():
        lacking.append(f"{older} (run: apt-get install nodejs, or see https://nodejs.org)")
    if shutil.which("npm") is None:
        lacking.append("npm (run: apt-get install npm)")
    if lacking:
        raise TargetUnavailable(f"target 'ort-web' cannot be installed without {' and '.join(lacking)}")


def _make(folder: Path, say: Say) -> None:
    for package in PACKAGES:
        say(f"{package.name} {package.version}")
        with tempfile.TemporaryDirectory(prefix="paretopress-") as fetched:
            _unpack(package, _fetch(package, Path(fetched)), folder / "node_modules" / package.name)
    document = {"format": FORMAT, "packages": _asked()}
    (folder / "manifest.json").write_text(json.dumps(document, indent=1) + "\n")


def _asked() -> dict[str, list[str]]:
    return {one.name: [one.version, one.integrity, one.wanted] for one in PACKAGES}


def _fetch(package: Package, folder: Path) -> Path:
    """The archive of a package, whose hash is the one that is known; raises TargetUnavailable."""
    words = ["npm", "pack", "--ignore-scripts", "--loglevel=error", "--pack-destination", str(folder)]
    words.append(f"{package.name}@{package.version}")
    run_program(words, f"{package.name} {package.version} (from npm's registry)", COMMAND, telling="error")
    archive = next(folder.glob("*.tgz"))
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != package.integrity:
        raise TargetUnavailable(
            f"{package.name} {package.version} has the hash sha512-{digest} instead of {package.integrity}; "
            "it is not used: see which registry npm is set up for"
        )
    return archive


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    """Write the files that are used; those inside lie in one folder, whatever it is called."""
    with tarfile.open(archive) as packed:
        for member in packed:
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if member.isfile() and ".." not in inside.parts and re.fullmatch(package.wanted, str(inside)):
                written = folder / inside
                written.parent.mkdir(parents=True, exist_ok=True)
                content = packed.extractfile(member)
                written.write_bytes(content.read() if content else b"")

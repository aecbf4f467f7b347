"""What ``paretopress targets --install cortex-m`` makes: an interpreter for every core, that runs any ``.tflite`` file.

    FOLDER/manifest.json        what it is made of and with, and where the plugin finds its mark
    FOLDER/sources/             the pinned sources that are used (``sources.lock``)
    FOLDER/programs/            compiler and emulator from Debian's packages, where they are not installed
    FOLDER/libraries/CORE/      the compiled library
    FOLDER/cores/CORE.elf       the program that runs any file on that core
    FOLDER/instruction_plugin.so

It needs no rights: nothing is run as root or registered. It is made beside its place and renamed, so that half an
installation is none. FOLDER is ``paretopress/cortex-m`` in the user's data folder (``$XDG_DATA_HOME``, else
``~/.local/share``), or what ``$PARETOPRESS_CORTEX_M_ROOT`` names. To remove it, delete it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from targets.cortex_m import firmware, sources
from targets.cortex_m.cores import CORES
from targets.cortex_m.operators import REGISTERED
from targets.cortex_m.toolchain import COMPILER, COMPILER_PACKAGES, EMULATOR, EMULATOR_PACKAGES, Toolchain
from targets.documents import file_hash
from targets.emulated_arm import debian
from targets.errors import TargetUnavailable
from targets.machine.folders import cache_folder, installation_folder
from targets.machine.installations import put_in_place, read_manifest

COMMAND = "paretopress targets --install cortex-m"
VARIABLE = "PARETOPRESS_CORTEX_M_ROOT"
MIRROR, SUITE = "https://deb.debian.org/debian", "bookworm"
FORMAT = 1
"""Of the folder: raised when an older one no longer serves."""
PLUGIN = firmware.HERE / "instruction_plugin.c"
_WITHOUT = frozenset({
    "adduser", "debconf", "iso-codes", "libasound2-data", "libpam-modules", "libpam-modules-bin", "passwd",
    "qemu-system-data", "libc6",
})  # fmt: skip
"""Packages that only serve to configure others, hold texts or pictures, or that every machine has."""

Say = Callable[[str], None]


def place() -> Path:
    """The folder of the installation, whether there is one yet or not."""
    return installation_folder("cortex-m", VARIABLE)


def manifest() -> dict[str, Any] | None:
    """What the installation is made of; None where there is none that serves."""
    return read_manifest(place(), format=FORMAT, asked=_asked())


def missing() -> str | None:
    """What has to be installed before anything can be emulated, in words; None where nothing is missing."""
    found = manifest()
    if found is None:
        return f"an interpreter of this version in {place()}"
    return None if found["unpacked"] or shutil.which(EMULATOR) else EMULATOR


def installed() -> dict[str, Any]:
    """The manifest; raises TargetUnavailable, with the command, where nothing is installed."""
    found, lacking = manifest(), missing()
    if found is None or lacking:
        raise TargetUnavailable(f"target 'cortex-m' needs {lacking}, which is not installed; run: {COMMAND}")
    return found


def toolchain(found: dict[str, Any]) -> Toolchain:
    """The compiler and the emulator of an installation."""
    return Toolchain(place() / "programs" if found["unpacked"] else None)


def sizes(found: dict[str, Any], core: str, operators: tuple[str, ...]) -> firmware.Sizes:
    """What a program with these operators takes of a device, linked once; raises TargetUnavailable.

    The model and the arena are not in it.
    """
    key = hashlib.sha256(json.dumps([identity(found), core, operators]).encode()).hexdigest()[:32]
    kept = cache_folder() / "cortex-m" / f"{key}.json"
    try:
        return firmware.Sizes(**json.loads(kept.read_text()))
    except (OSError, ValueError, TypeError):
        pass
    tools, folder = toolchain(found), place()
    library = folder / "libraries" / CORES[core].library
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="paretopress-", dir=kept.parent) as made:
        elf = Path(made) / "program.elf"
        firmware.link_program(tools, core, folder / "sources", library, operators, elf)
        size = firmware.section_sizes(tools, elf)
        beside = Path(made) / "sizes.json"
        beside.write_text(json.dumps({"code": size.code, "static": size.static}))
        os.replace(beside, kept)
    return size


def identity(found: dict[str, Any]) -> dict[str, Any]:
    """All that may change a count or a size: sources, compiler, our own part, the emulator."""
    return {key: found[key] for key in ("asked", "compiler", "emulator")}


def install_interpreter(say: Say = lambda _: None, archive: Path | None = None) -> Path:
    """Make the installation unless it is there; returns its folder. Minutes of every core.

    ``archive``: the sources, where they are not to be fetched from their repositories.
    Raises TargetUnavailable saying what is missing, and what brings it.
    """
    folder = place()
    if manifest() and not missing():
        say(f"already there; to make it anew, delete {folder} first")
        return folder
    if _host_compiler() is None:
        raise TargetUnavailable(
            "target 'cortex-m' cannot be installed without a C compiler for this machine (run: apt-get install gcc)"
        )
    chosen = archive or sources.given_archive()
    return put_in_place(folder, VARIABLE, lambda made: _make(made, chosen, say))


def _make(folder: Path, archive: Path | None, say: Say) -> None:
    folder.mkdir(parents=True)
    sources.put_sources(folder / "sources", archive, say)
    unpacked = shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None
    if unpacked:
        _fetch_programs(folder / "programs", say)
    tools = Toolchain(folder / "programs" if unpacked else None)
    emulator = _version(firmware.run([tools.emulator, "--version"], tools))
    say("building the counting plugin")
    _build_plugin(folder / "instruction_plugin.so", emulator)
    for library in sorted({core.library for core in CORES.values()}):
        firmware.build_library(tools, CORES[library], folder / "sources", folder / "libraries" / library, say)
    (folder / "cores").mkdir()
    marks = {}
    for name, core in CORES.items():
        say(f"linking for {core.title}")
        elf = folder / "cores" / f"{name}.elf"
        library_folder = folder / "libraries" / core.library
        firmware.link_program(tools, name, folder / "sources", library_folder, REGISTERED, elf)
        marks[name] = firmware.mark_address(tools, elf)
    document = {
        "format": FORMAT,
        "asked": _asked(),
        "compiler": firmware.run([tools.cxx, "--version"], tools).splitlines()[0],
        "emulator": emulator,
        "unpacked": unpacked,
        "marks": marks,
    }
    (folder / "manifest.json").write_text(json.dumps(document, indent=1) + "\n")


def _fetch_programs(root: Path, say: Say) -> None:
    """Unpack Debian's compiler and emulator, and the libraries they need, for us alone."""
    if platform.machine() != "x86_64":
        raise TargetUnavailable(
            f"{COMPILER} and {EMULATOR} are not installed; run: "
            f"apt-get install --no-install-recommends {' '.join(EMULATOR_PACKAGES + COMPILER_PACKAGES)}"
        )
    say(f"{COMPILER} and {EMULATOR} are not installed; reading Debian's index ({SUITE}, amd64)")
    release = debian.Release(MIRROR, SUITE, "amd64")
    chosen = debian.closure(release.index, EMULATOR_PACKAGES + COMPILER_PACKAGES, _WITHOUT)
    root.mkdir(parents=True, exist_ok=True)
    for number, package in enumerate(chosen, 1):
        say(f"package {number} of {len(chosen)}: {package.name} {package.version}")
        debian.unpack(release.package(package), root)


def _build_plugin(library: Path, version: str) -> None:
    api = 1 if int(version.split(".")[0]) < 9 else 2
    options = ("-O2", "-shared", "-fPIC", f"-DAPI_VERSION={api}", "-o", str(library), str(PLUGIN))
    firmware.run([str(_host_compiler()), *options], Toolchain())


def _host_compiler() -> str | None:
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def _version(said: str) -> str:
    found = re.search(r"version (\d+(?:\.\d+)*)", said)
    return found.group(1) if found else said[:60]


def _asked() -> str:
    """A hash of what this version of the package makes the installation of."""
    parts = (sources.lock_hash(), firmware.recipe_hash(), file_hash(PLUGIN), repr(REGISTERED))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

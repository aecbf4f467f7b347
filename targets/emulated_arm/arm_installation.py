"""What ``paretopress targets --install arm-emulated`` makes: a small ARM system that qemu's user mode runs programs of.

    FOLDER/manifest.json        what it is made of, with the SHA-256 of every package and wheel
    FOLDER/root/                Python from Debian's arm64 packages; numpy and onnxruntime from their aarch64 wheels
    FOLDER/devices/CPU/         what a program on that CPU sees as its root: links into root/, and its own /proc/cpuinfo
    FOLDER/counting_plugin.so   counts instructions (``counting_plugin.c``)

It needs no rights: nothing is run as root, mounted or registered. It is made beside its place and renamed, so that
half an installation is none. FOLDER is ``paretopress/arm-emulated`` in the user's data folder (``$XDG_DATA_HOME``,
else ``~/.local/share``), or what ``$PARETOPRESS_ARM_ROOT`` names. To remove it, delete it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.documents import file_hash
from targets.emulated_arm import debian
from targets.errors import TargetUnavailable
from targets.machine import environment
from targets.machine.folders import installation_folder
from targets.machine.installations import put_in_place, read_manifest, run_program

COMMAND = "paretopress targets --install arm-emulated"
VARIABLE = "PARETOPRESS_ARM_ROOT"
EMULATOR = "qemu-aarch64"
MIRROR, SUITE = "https://deb.debian.org/debian", "bookworm"
PLUGIN = Path(__file__).with_name("counting_plugin.c")
FORMAT = 1
"""Of the folder: raised when an older one no longer serves."""
PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
WITHOUT = frozenset({"dpkg", "debconf", "install-info", "tzdata", "media-types", "readline-common"})
"""Packages that only serve to configure others, or hold texts."""
NUMPY = "numpy==2.4.6"
WHEELS = "/opt/arm-emulated"
"""Where the wheels lie in the root."""
_PYTHON = "usr/bin/python3.11"
_PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)))
"""Wheels that run with bookworm's C library, 2.36."""
_SECONDS = 600
"""For any one program that is run here."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Cpu:
    """What its MIDR register says: by that, libraries know the core and choose kernels."""

    implementer: int
    variant: int
    part: int
    revision: int


CPUS: Mapping[str, Cpu] = {
    "cortex-a35": Cpu(0x41, 0, 0xD04, 0),
    "cortex-a53": Cpu(0x41, 0, 0xD03, 4),
    "cortex-a57": Cpu(0x41, 1, 0xD07, 0),
    "cortex-a72": Cpu(0x41, 0, 0xD08, 3),
    "cortex-a76": Cpu(0x41, 4, 0xD0B, 1),
    "neoverse-n1": Cpu(0x41, 4, 0xD0C, 1),
}
"""The 64-bit ARM CPUs of qemu 7.2 that are real and common."""
_HWCAP = """
    fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 sm4
    asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg
"""
_HWCAP2 = """
    dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16
"""
"""The kernel's names of the bits with which it tells a program what the CPU can do, from bit 0 on."""
_READ_HWCAP = "import ctypes; f = ctypes.CDLL(None).getauxval; f.restype = ctypes.c_ulong; print(f(16), f(26))"
_COMPILE = """
import os, py_compile, sys
import targets.emulated_arm.counting, targets.workers.worker
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None) or ""
    if file.endswith(".py") and os.path.isfile(sys.argv[1] + file):
        py_compile.compile(sys.argv[1] + file, dfile=file)
"""
_CHECK = """
import targets.emulated_arm.counting
targets.emulated_arm.counting.CountingRuntime({})
"""


def place() -> Path:
    """The folder of the installation, whether there is one yet or not."""
    return installation_folder("arm-emulated", VARIABLE)


def manifest(folder: Path) -> dict[str, Any] | None:
    """What the installation is made of; None where there is none that serves."""
    return read_manifest(folder, format=FORMAT, plugin=file_hash(PLUGIN))


def missing() -> str | None:
    """The first thing that has to be installed before anything can be emulated, in words."""
    if shutil.which(EMULATOR) is None:
        return EMULATOR
    return None if manifest(place()) else f"an ARM system of this version in {place()}"


def emulated_features(found: Mapping[str, Any], cpu: str) -> tuple[str, ...]:
    """The emulated CPU's features, as the kernel spells them."""
    return tuple(found["cpus"][cpu])


def installation_hash(found: Mapping[str, Any]) -> str:
    """A hash of all that may change a count: packages, wheels, plugin, CPUs."""
    parts = {key: found[key] for key in ("packages", "wheels", "plugin", "cpus")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def emulator_version() -> str:
    """The version of qemu, as ``7.2.22``; raises TargetUnavailable where there is no emulator."""
    said = _output([EMULATOR, "--version"], "qemu")
    found = re.search(r"version (\d+(?:\.\d+)*)", said)
    return found.group(1) if found else said[:60]


def command(folder: Path, cpu: str, *arguments: str, counting: bool = True) -> tuple[str, ...]:
    """How the ARM Python is started. Random numbers the kernel hands to a program are the same every time."""
    device = folder / "devices" / cpu
    plugin = ("-plugin", str(folder / "counting_plugin.so")) if counting else ()
    # Named by its path inside: how long the folder's name is must not show anywhere.
    python = ("-0", f"/{_PYTHON}", str(device / _PYTHON), "-P", "-S")
    return (EMULATOR, "-L", str(device), "-cpu", cpu, "-seed", "1", *plugin, *python, *arguments)


def guest_environment() -> dict[str, str]:
    """All that is in the emulated program's environment: nothing of ours, which would move things in its memory."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": f"{WHEELS}:{Path(__file__).resolve().parents[2]}",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # Its thread would run beside what is counted, and take turns with it.
        "ORT_DISABLE_TELEMETRY": "1",
    }


def install_system(say: Say = lambda _: None, fetch: debian.Fetch = debian.fetch) -> Path:
    """Make the installation unless it is there; returns its folder. Minutes, 60 MB to fetch, 190 MB on disk.

    Raises TargetUnavailable saying what is missing, and the command that brings it.
    """
    folder = place()
    _check_programs()
    if manifest(folder):
        say(f"already there; to make it anew, delete {folder} first")
        return folder
    return put_in_place(folder, VARIABLE, lambda made: _make(made, say, fetch))


def _check_programs() -> None:
    """Raise TargetUnavailable for all programs that are missing, with their commands."""
    lacking = []
    if shutil.which(EMULATOR) is None:
        lacking.append(f"{EMULATOR} (run: apt-get install qemu-user)")
    if _compiler() is None:
        lacking.append("a C compiler (run: apt-get install gcc)")
    if lacking:
        raise TargetUnavailable(f"target 'arm-emulated' cannot be installed without {' and '.join(lacking)}")


def _compiler() -> str | None:
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def _make(folder: Path, say: Say, fetch: debian.Fetch) -> None:
    root = folder / "root"
    root.mkdir(parents=True)
    say("building the counting plugin")
    version = emulator_version()
    build_plugin(folder / "counting_plugin.so", version)
    signature, packages = _fetch_packages(root, say, fetch)
    wheels = _fetch_wheels(root / WHEELS.lstrip("/"), say)
    say("describing the CPUs")
    cpus = {name: _make_device(folder, name, cpu) for name, cpu in CPUS.items()}
    say("starting it")
    first = next(iter(CPUS))
    _run(folder, first, "-c", _COMPILE, str(root), counting=False)
    _run(folder, first, "-c", _CHECK)
    document = {
        "format": FORMAT,
        "emulator": version,
        "suite": SUITE,
        "signature": signature,
        "plugin": file_hash(PLUGIN),
        "packages": packages,
        "wheels": wheels,
        "cpus": cpus,
    }
    (folder / "manifest.json").write_text(json.dumps(document, indent=1) + "\n")


def build_plugin(library: Path, version: str) -> None:
    """Compile the plugin for a version of qemu; raises TargetUnavailable with the compiler's last words."""
    api = 1 if int(version.split(".")[0]) < 9 else 2
    options = ("-O2", "-shared", "-fPIC", f"-DAPI_VERSION={api}", "-o", str(library), str(PLUGIN))
    _output([str(_compiler()), *options], "the counting plugin")


def _fetch_packages(root: Path, say: Say, fetch: debian.Fetch) -> tuple[str, dict[str, dict[str, str]]]:
    say(f"reading Debian's index ({SUITE}, arm64)")
    release = debian.Release(MIRROR, SUITE, "arm64", fetch)
    chosen = debian.closure(release.index, PACKAGES, WITHOUT)
    for number, package in enumerate(chosen, 1):
        say(f"package {number} of {len(chosen)}: {package.name} {package.version}")
        debian.unpack(release.package(package), root)
    return release.signature, {one.name: {"version": one.version, "sha256": one.sha256} for one in chosen}


def _fetch_wheels(folder: Path, say: Say) -> dict[str, str]:
    """Unpack the wheels: the runtime in the version that is installed here, so that the same one is measured."""
    version = environment.installed_versions(("onnxruntime",)).get("onnxruntime")
    wanted = (f"onnxruntime=={version}" if version else "onnxruntime", NUMPY)
    say(f"wheels: {', '.join(wanted)}")
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", "311"]
    with tempfile.TemporaryDirectory(prefix="paretopress-") as fetched:
        pip = [sys.executable, "-m", "pip", "download", *options, *platforms, "--dest", fetched, *wanted]
        _output(pip, f"the aarch64 wheels of {' and '.join(wanted)} for Python 3.11 (from PyPI, with pip)")
        wheels = sorted(Path(fetched).glob("*.whl"))
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        return {wheel.name: file_hash(wheel) for wheel in wheels}


def _make_device(folder: Path, name: str, cpu: Cpu) -> list[str]:
    """Write what a program on that CPU sees; returns the CPU's features, as the emulator reports them."""
    device = folder / "devices" / name
    device.mkdir(parents=True)
    for entry in (folder / "root").iterdir():
        (device / entry.name).symlink_to(Path("..", "..", "root", entry.name))
    first, second = map(int, _run(folder, name, "-c", _READ_HWCAP, counting=False).split())
    found = [word for bits, words in ((first, _HWCAP), (second, _HWCAP2)) for word in _named(bits, words)]
    lines = {
        "processor": "0",
        "BogoMIPS": "100.00",
        "Features": " ".join(found),
        "CPU implementer": f"{cpu.implementer:#04x}",
        "CPU architecture": "8",
        "CPU variant": f"{cpu.variant:#x}",
        "CPU part": f"{cpu.part:#05x}",
        "CPU revision": str(cpu.revision),
    }
    (device / "proc").mkdir()
    (device / "proc" / "cpuinfo").write_text("".join(f"{key}\t: {value}\n" for key, value in lines.items()) + "\n")
    # One core, whatever the machine has.
    cores = device / "sys" / "devices" / "system" / "cpu"
    cores.mkdir(parents=True)
    for file in ("possible", "present", "online"):
        (cores / file).write_text("0\n")
    return found


def _named(bits: int, words: str) -> list[str]:
    return [word for bit, word in enumerate(words.split()) if bits >> bit & 1]


def _run(folder: Path, cpu: str, *arguments: str, counting: bool = True) -> str:
    """What an emulated Python prints."""
    ran = command(folder, cpu, *arguments, counting=counting)
    return _output(ran, f"the ARM system on {cpu}", guest_environment())


def _output(words: Sequence[str], what: str, variables: Mapping[str, str] | None = None) -> str:
    """A program's stdout; raises TargetUnavailable with its last words where it fails."""
    return run_program(words, what, COMMAND, variables=variables, seconds=_SECONDS)

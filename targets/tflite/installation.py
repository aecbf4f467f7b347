"""What ``paretopress targets --install litert`` makes: a Python environment that converts and runs ``.tflite`` files.

    FOLDER/manifest.json    the versions of what is in it
    FOLDER/bin/python       a virtual environment of the Python that made it

The converter asks for versions of numpy, onnx and onnxruntime that nobody else has, and for a newer Python than it
needs: in an environment of its own every package has the version that was tested, and the user's stays as it is.
It is made beside its place and renamed, so that half an installation is none. FOLDER is ``paretopress/litert`` in the
user's data folder (``$XDG_DATA_HOME``, else ``~/.local/share``), or what ``$PARETOPRESS_LITERT_ROOT`` names. To
remove it, delete it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from targets.errors import TargetUnavailable
from targets.machine.folders import cache_folder, installation_folder
from targets.machine.installations import put_in_place, read_manifest, run_program
from targets.workers.process import Launch, local_launch

COMMAND = "paretopress targets --install litert"
VARIABLE = "PARETOPRESS_LITERT_ROOT"
FORMAT = 1
"""Of the folder: raised when an older one no longer serves."""
PACKAGES: Mapping[str, str] = {
    "absl-py": "2.5.1",
    "ai-edge-litert": "2.3.0",
    "ai-edge-quantizer": "0.10.0",
    "backports.strenum": "1.2.8",
    "flatbuffers": "25.12.19",
    "immutabledict": "4.3.1",
    "ml-dtypes": "0.6.0",
    "numpy": "2.4.6",
    "onnx": "1.23.2",
    "onnx2tf": "2.6.9",
    "onnxruntime": "1.31.1",
    "protobuf": "7.36.2",
    "psutil": "7.2.2",
    "pyyaml": "6.0.3",
    "scipy": "1.17.1",
    "sng4onnx": "2.0.1",
    "tqdm": "4.70.1",
    "typing-extensions": "4.16.0",
}
"""Everything that is imported, and nothing that is only asked for: no TensorFlow, OpenCV, HDF5 or pytest."""
TFLM: Mapping[str, str] = {"tflite-micro": "0.dev20261023182759"}
"""One of its daily builds. There are wheels for 64-bit x86 with Linux alone; the rest works without."""
_CHECK = """
import ai_edge_litert.interpreter, ai_edge_quantizer.quantizer, onnx2tf.onnx2tf
"""

Say = Callable[[str], None]


def place() -> Path:
    """The folder of the installation, whether there is one yet or not."""
    return installation_folder("litert", VARIABLE)


def manifest() -> dict[str, Any] | None:
    """What the installation is made of; None where there is none that serves."""
    found = read_manifest(place(), format=FORMAT, asked=_asked())
    return found if found and python().exists() else None


def python() -> Path:
    """The environment's Python, whether there is one yet or not."""
    return _python(place())


def missing() -> str | None:
    """What has to be installed before anything can be converted, in words; None where nothing is missing."""
    return None if manifest() else f"an environment of this version in {place()}"


def missing_tflm() -> str | None:
    """The same for the interpreter of microcontrollers."""
    found = manifest()
    if found is None:
        return missing()
    return None if "tflite-micro" in found["packages"] else "tflite-micro, which has no wheel for this machine,"


def installed() -> dict[str, Any]:
    """The manifest; raises TargetUnavailable, with the command, where nothing is installed."""
    found = manifest()
    if found is None:
        raise TargetUnavailable(f"files for LiteRT need {missing()}, which is not installed; run: {COMMAND}")
    return found


def versions() -> dict[str, str]:
    """Version of every package of the environment; raises TargetUnavailable where there is none."""
    return dict(installed()["packages"])


def identity() -> str:
    """A hash of all versions, by which measurements are kept apart; raises TargetUnavailable where there are none."""
    found = installed()
    parts = {key: found[key] for key in ("python", "packages")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def launch(threads: int) -> Launch:
    """How a worker is started with the environment's Python; raises TargetUnavailable where there is none."""
    installed()
    usual = local_launch(threads)
    environment = {**usual.environment, "PYTHONPATH": str(_alone()), "PYTHONDONTWRITEBYTECODE": "1"}
    # Set for another interpreter, it would make this one find its library there.
    environment.pop("PYTHONHOME", None)
    return Launch((str(python()), *usual.command[1:]), environment)


def install_environment(say: Say = lambda _: None) -> Path:
    """Make the installation unless it is there; returns its folder. A minute or two, 450 MB on disk.

    Raises TargetUnavailable saying what is missing, and what brings it.
    """
    folder = place()
    if manifest():
        say(f"already there; to make it anew, delete {folder} first")
        return folder
    return put_in_place(folder, VARIABLE, lambda made: _make(made, say))


def _make(folder: Path, say: Say) -> None:
    say(f"a Python environment in {place()}")
    environment = "a virtual environment (on Debian: apt-get install python3-venv)"
    run_program([sys.executable, "-m", "venv", str(folder)], environment, COMMAND)
    named = ", ".join(f"{name} {PACKAGES[name]}" for name in ("onnx2tf", "ai-edge-quantizer", "ai-edge-litert"))
    say(f"{len(PACKAGES)} packages, among them {named}")
    install_packages(_python(folder), PACKAGES)
    found = dict(PACKAGES)
    say(f"tflite-micro {TFLM['tflite-micro']}")
    try:
        install_packages(_python(folder), TFLM)
        found |= TFLM
    except TargetUnavailable as error:
        say(f"without the target tflm: {error}")
    say("checking")
    run_program([str(_python(folder)), "-I", "-c", _CHECK], "the converter", COMMAND)
    document = {"format": FORMAT, "asked": _asked(), "python": sys.version.split()[0], "packages": found}
    (folder / "manifest.json").write_text(json.dumps(document, indent=1) + "\n")


def install_packages(program: Path, packages: Mapping[str, str], into: Path | None = None) -> None:
    """Install exactly these versions for a Python ``program``, or in a folder; raises TargetUnavailable."""
    words = [str(program), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # onnx2tf says that it needs Python 3.12; its converter runs with 3.11, as the tests show.
    words += ["--ignore-requires-python", "--only-binary=:all:"]
    words += [] if into is None else ["--target", str(into)]
    words += [f"{name}=={version}" for name, version in packages.items()]
    run_program(words, "the packages (from PyPI, with pip)", COMMAND)


def _asked() -> str:
    """A hash of the versions that are asked for."""
    return hashlib.sha256(json.dumps([PACKAGES, TFLM], sort_keys=True, default=dict).encode()).hexdigest()[:16]


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _alone() -> Path:
    """A folder with nothing but this package in it.

    Installed, it lies among the user's packages, which must not be found before those of the environment.
    """
    package = Path(__file__).resolve().parents[1]
    folder = cache_folder() / "alone" / hashlib.sha256(str(package).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (folder / package.name).symlink_to(package)
    return folder

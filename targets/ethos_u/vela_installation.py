"""What ``paretopress targets --install ethos-u`` makes: Arm's compiler Vela, beside the environment of LiteRT's files.

    FOLDER/manifest.json    the versions, and the Python that they are for
    FOLDER/packages/        Vela alone; what it imports (numpy, flatbuffers) is in that environment

FOLDER is ``paretopress/ethos-u`` in the user's data folder (``$XDG_DATA_HOME``, else ``~/.local/share``), or what
``$PARETOPRESS_ETHOS_U_ROOT`` names. To remove it, delete it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from targets.errors import TargetUnavailable
from targets.machine.folders import installation_folder
from targets.machine.installations import put_in_place, read_manifest, run_program
from targets.tflite import installation
from targets.workers.process import Launch

COMMAND = "paretopress targets --install ethos-u"
VARIABLE = "PARETOPRESS_ETHOS_U_ROOT"
FORMAT = 1
"""Of the folder: raised when an older one no longer serves."""
VELA: Mapping[str, str] = {"ethos-u-vela": "5.2.0"}
"""Another version may schedule otherwise, and count other cycles."""
_CHECK = "import ethosu.vela.vela"


def place() -> Path:
    """The folder of the installation, whether there is one yet or not."""
    return installation_folder("ethos-u", VARIABLE)


def missing() -> str | None:
    """What has to be installed before this target can be used, in words; None where nothing is missing."""
    return installation.missing_tflm() or (None if _manifest() else f"Vela {VELA['ethos-u-vela']} in {place()}")


def install_vela(say: installation.Say = lambda _: None) -> Path:
    """Make the installation, and the environment that it lies beside, unless they are there; returns its folder.

    Raises TargetUnavailable saying what is missing, and what brings it.
    """
    installation.install_environment(say)
    if _manifest():
        say(f"already there; to make it anew, delete {place()} first")
        return place()
    return put_in_place(place(), VARIABLE, lambda made: _make(made, say))


def launch() -> Launch:
    """How a worker is started that finds Vela; raises TargetUnavailable, with the command, where there is none."""
    if _manifest() is None:
        raise TargetUnavailable(f"ethos-u needs {missing()}, which is not installed; run: {COMMAND}")
    return _with_packages(installation.launch(1), place())


def _with_packages(usual: Launch, folder: Path) -> Launch:
    path = f"{usual.environment['PYTHONPATH']}{os.pathsep}{folder / 'packages'}"
    return replace(usual, environment={**usual.environment, "PYTHONPATH": path})


def _make(folder: Path, say: installation.Say) -> None:
    say(f"Vela {VELA['ethos-u-vela']}")
    folder.mkdir(parents=True)
    python = installation.python()
    installation.install_packages(python, VELA, folder / "packages")
    say("checking")
    found = _with_packages(installation.launch(1), folder)
    run_program([str(python), "-P", "-c", _CHECK], "Vela", COMMAND, variables=found.environment)
    document = {"format": FORMAT, "asked": dict(VELA), "python": installation.installed()["python"]}
    (folder / "manifest.json").write_text(json.dumps(document, indent=1) + "\n")


def _manifest() -> dict[str, Any] | None:
    """What the installation is made of; None where there is none that serves the Python it is to run in."""
    beside = installation.manifest()
    return beside and read_manifest(place(), format=FORMAT, asked=dict(VELA), python=beside["python"])

"""A ``.tflite`` file compiled by Vela: what a worker process does where Vela is installed.

Vela's summary says how many cycles its model of the NPU takes, and how much SRAM; what it could not place on the NPU
stands in the compiled file as it was.
"""

from __future__ import annotations

import csv
import importlib
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import ModelError
from targets.ethos_u.variants import CONFIGURATION, MEMORY_MODE, VARIANTS
from targets.tflite.native_output import heard
from targets.tflite.tflite_files import read_tflite

_ON_NPU = "CUSTOM:ethos-u"
"""The operator that stands for all that the NPU runs in one go."""
_REASON = re.compile(r"operator: \w+, ofm: '(?P<tensor>[^']*)'\s*Reason: (?P<why>[^\n]*)")


def compile_file(
    arguments: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],  # noqa: ARG001  as every function that a worker calls has them
    say: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Compile ``model`` for ``variant``; replies with ``cycles``, ``sram`` and ``flash`` (bytes), and ``cpu``.

    ``cpu``: of every operator that is left to the CPU the name of its output and why, where Vela says so. Raises
    ModelError with Vela's last words where it cannot compile the file.
    """
    path, variant = Path(arguments["model"]), VARIANTS[arguments["variant"]]
    say(f"compiling {path} with Vela")
    main = importlib.import_module("ethosu.vela.vela").main
    with tempfile.TemporaryDirectory(prefix="paretopress-") as folder:
        words = ["--config", CONFIGURATION, "--system-config", variant.system, "--memory-mode", MEMORY_MODE]
        words += ["--accelerator-config", f"ethos-{arguments['variant']}", "--output-dir", folder, str(path)]
        with heard(1, 2) as native:
            failed = _failure(lambda: main(words))
        made = next(iter(sorted(Path(folder).glob("*_vela.tflite"))), None)
        summary = next(iter(sorted(Path(folder).glob("*_summary_*.csv"))), None)
        if failed is not None or made is None or summary is None:
            raise ModelError(f"{path}: Vela cannot compile it: {failed or _last_line(native.text)}")
        counted = next(csv.DictReader(summary.read_text().splitlines()))
        reasons = {found["tensor"]: found["why"].strip() for found in _REASON.finditer(native.text)}
        file = read_tflite(made)
        left = [file.tensors[one.outputs[0]].name for one in file.operations if one.operator != _ON_NPU]
        return {
            "cycles": int(float(counted["cycles_total"])),
            "sram": round(1024 * float(counted["sram_memory_used"])),
            "flash": made.stat().st_size,
            "cpu": [[name, reasons.get(name, "")] for name in left],
        }, {}


def _failure(compile_: Callable[[], Any]) -> str | None:
    """Why compiling failed, on one line; None where it did not."""
    try:
        status = compile_()
    # Vela ends the program where it does not like its arguments.
    except (Exception, SystemExit) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:250]
    return f"status {status}" if status else None


def _last_line(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1][:250] if lines else "it made no file"

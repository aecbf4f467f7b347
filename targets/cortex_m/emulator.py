"""One run of a program on an emulated core: a model and samples go in, outputs, counts and needs come out."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from targets.cortex_m.cores import Core
from targets.errors import MeasurementError, ModelError

PATIENCE = 900.0
"""Seconds after which a run is taken to hang: of the slowest models, some hundred inferences take as long."""
_REFUSED = 2
"""Exit status of the runner where the interpreter refuses the model."""
_LONGEST = 300
"""Characters of what the interpreter says that are shown."""


@dataclass(frozen=True)
class Emulator:
    """How a program is run, and the plugin that counts; ``mark`` is the address at which it looks at its counter."""

    command: Path | str
    environment: dict[str, str] | None
    core: Core
    program: Path
    plugin: Path
    mark: int


@dataclass(frozen=True)
class OperatorCount:
    """One operator of a model, in the order in which they run."""

    operator: str
    instructions: int


@dataclass(frozen=True)
class Run:
    """What one run found: bytes, and instructions of single inferences."""

    output: bytes
    """All samples in order, each one all outputs of the file in order."""
    instructions: tuple[int, ...]
    """Of each inference; empty where nobody counted or operators were watched."""
    arena: int
    """What the interpreter says that it uses of its arena."""
    stack: int
    """The deepest that the stack got."""
    operators: tuple[OperatorCount, ...] = ()
    """Of the first inference, where they were watched: what they take without what lies between them."""


def execute(emulator: Emulator, model: Path, samples: bytes, *, count: bool = True, watch: bool = False) -> Run:
    """Run ``samples`` (each one all inputs of the file in order) through a ``.tflite`` file.

    ``count``: count the instructions of every inference; ``watch``: those of every operator of the first one instead,
    since what tells them apart is executed as well. Raises ModelError where the interpreter refuses the file, and
    MeasurementError where the emulator fails or takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="paretopress-") as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(model.read_bytes())
        (folder / "input.bin").write_bytes(samples)
        if watch:
            (folder / "profile").touch()
        said = _emulated(emulator, folder, model, counting=count or watch)
        output = (folder / "output.bin").read_bytes()
        marks = [int(line) for line in (folder / "marks").read_text().split()] if count or watch else []
    # Two marks are of the preparation; then there are two of each inference.
    counts = marks[2:]
    operators: tuple[OperatorCount, ...] = ()
    if watch:
        names = [line[1] for line in said if line[0] == "operator"]
        operators = tuple(_operators(names, counts[1 : 1 + 2 * len(names)]))
    pairs = tuple(b - a for a, b in zip(counts[::2], counts[1::2], strict=False)) if not watch else ()
    numbers = {line[0]: int(line[1]) for line in said if line[0] in ("arena", "stack")}
    return Run(output, pairs, numbers["arena"], numbers["stack"], operators)


def _operators(names: Sequence[str], marks: Sequence[int]) -> list[OperatorCount]:
    return [OperatorCount(name, marks[2 * n + 1] - marks[2 * n]) for n, name in enumerate(names)]


def _emulated(emulator: Emulator, folder: Path, model: Path, *, counting: bool) -> list[list[str]]:
    """What the program prints, in words; files go through ``folder``."""
    plugin = f"{emulator.plugin},mark={emulator.mark:#x},out=marks"
    words = [
        str(emulator.command), "-machine", emulator.core.machine, "-kernel", str(emulator.program), "-display", "none",
        "-monitor", "none", "-serial", "none", "-semihosting-config", "enable=on,target=native",
        *(("-plugin", plugin) if counting else ()),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=PATIENCE, env=emulator.environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"{model}: the emulated {emulator.core.title} took more than {PATIENCE:.0f} s") from None
    except OSError as error:
        raise MeasurementError(f"{emulator.command} cannot be started ({error.strerror or error})") from None
    lines = [line.split(maxsplit=1) for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    if done.returncode == 0:
        return [line for line in lines if len(line) == 2]
    text = _plain("; ".join(" ".join(line) for line in lines))[:_LONGEST]
    if done.returncode == _REFUSED:
        raise ModelError(f"{model}: TensorFlow Lite Micro refuses it on {emulator.core.title}: {_why(lines, text)}")
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
    raise MeasurementError(f"{model}: the emulated {emulator.core.title} failed ({how}): {text}")


def _why(lines: Sequence[Sequence[str]], text: str) -> str:
    """What the interpreter said before it gave up: its first complaint; else what the runner says."""
    said = [" ".join(line) for line in lines if line[0] not in ("refused", "arena", "stack", "operator")]
    runner = next((line[1] for line in lines if line[0] == "refused" and len(line) > 1), text)
    return _plain(f"{runner} ({said[0]})" if said else runner)[:_LONGEST]


def _plain(text: str) -> str:
    """Text of a program that ran somebody's file, without what would act on a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)

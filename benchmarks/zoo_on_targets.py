"""Which kinds of network run on which target, and compute there what they should.

    python benchmarks/zoo_on_targets.py --target litert-cpu --target tflm --target cortex-m --target ethos-u

The small networks of ``docs/prunable.md`` (``tests/compress/shared/zoo.py``), with random weights, exported for one
sample. On each target every one is run in fp32 and in int8, on 16 samples. fp32 is right where no output is off by more
than 1e-4 of the largest; of int8 the noise is given, against ONNX Runtime's float outputs (on ``ethos-u`` both are run
by TensorFlow Lite Micro's kernels, after Vela has taken the int8 file). Prints a table for people and what each refusal
says, then one JSON line for programs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import compress
import targets
from compress.precision.converting import write_converted
from compress.precision.noise import noise_share
from compress.precision.schemes import converts

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "compress" / "shared"))
import zoo

TARGETS = ("litert-cpu", "tflm", "cortex-m:cpu=m4", "ethos-u", "ort-web")
SAMPLES = 16
RIGHT = 1e-4
LOSSY = 10.0
"""dB of signal to noise below which an int8 file says something else."""


def samples_like(given: tuple[torch.Tensor, ...], names: list[str]) -> dict[str, np.ndarray]:
    """Random inputs of the example's kinds: numbers of a normal distribution, or its own tokens in another order."""
    rng = np.random.default_rng(0)
    found = {}
    for name, x in zip(names, given, strict=True):
        shape = (SAMPLES, *x.shape[1:])
        whole = not x.is_floating_point()
        found[name] = rng.choice(x.numpy().ravel(), shape) if whole else rng.normal(size=shape).astype(np.float32)
    return found


def tried(
    target: targets.Target, oracle: targets.Target, path: Path, samples: Mapping[str, np.ndarray], folder: Path
) -> dict[str, Any]:
    """What became of one network on one target; ``oracle``: ONNX Runtime here."""
    wanted = oracle.run(path, dict(samples), batch=1)
    row: dict[str, Any] = {}
    try:
        found = target.run(path, dict(samples), batch=1)
        off = max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-9)) for a, b in zip(wanted, found, strict=True))
        row["fp32"] = "right" if off <= RIGHT else f"off by {off:.1g}"
    except Exception as error:
        return {"fp32": _first_line(error)}
    try:
        made = folder / "int8.onnx"
        if not converts(target.capabilities()):
            compress.quantize(path, made, "int8", dict(samples), target=target)
        else:
            made = folder / "int8.tflite"
            write_converted(target, path, "int8", samples, made)
        noise = noise_share(wanted, target.run(made, dict(samples), batch=1))
        row["int8"] = round(-10 * float(np.log10(max(noise, 1e-12))), 1)
    except Exception as error:
        row["int8"] = _first_line(error)
    return row


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def main() -> None:
    """Print a row for each target, and what was refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", action="append")
    parser.add_argument("--only", action="append", help="names of networks; default: all")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as place:
        exported: dict[str, tuple[Path, dict[str, np.ndarray]]] = {}
        for name in asked.only or zoo.ZOO:
            module, inputs = zoo.made(name)
            path = Path(place) / f"{name}.onnx"
            try:
                compress.export(module.eval(), tuple(x[:1] for x in inputs), path)
            except compress.CompressError as error:
                print(f"{name} is not exported: {_first_line(error)}", file=sys.stderr)
                continue
            exported[name] = path, samples_like(inputs, [value.name for value in onnx.load(path).graph.input])
        oracle = targets.get("ort-cpu")
        for spec in asked.target or TARGETS:
            target = targets.get(spec)
            rows[spec] = {}
            for name, (path, samples) in exported.items():
                with tempfile.TemporaryDirectory() as folder:
                    rows[spec][name] = tried(target, oracle, path, samples, Path(folder))
                print(f"{spec} {name}: {rows[spec][name]}", file=sys.stderr, flush=True)
    print("| target | networks | fp32 right | int8 over 10 dB | int8 refused or below |")
    print("|---|--:|--:|--:|---|")
    for spec, found in rows.items():
        good = [name for name, row in found.items() if row["fp32"] == "right"]
        fine = [name for name in good if isinstance(found[name].get("int8"), float) and found[name]["int8"] >= LOSSY]
        low = ", ".join(f"{name}" for name in good if name not in fine)
        print(f"| {spec} | {len(found)} | {len(good)} | {len(fine)} | {low} |")
    for spec, found in rows.items():
        for name, row in found.items():
            if row["fp32"] != "right":
                print(f"{spec} {name}: {row['fp32']}")
    print(json.dumps({"benchmark": "zoo_on_targets", "rows": rows}))


if __name__ == "__main__":
    main()

"""What becomes of YOLOv8n and YOLO11n: cut to half of their channels, exported, quantized, timed.

    python -m venv yolo && yolo/bin/pip install torch torchvision ultralytics && yolo/bin/pip install .
    yolo/bin/python benchmarks/detectors/yolo.py

`ultralytics` is under the AGPL and no dependency of this project: it lives in an environment of its own. Weights are
random (normalization has seen some noise), so that the rows are about structure, numbers and speed, not about what is
detected. *MACs left* is what remains at a ratio of 0.5, after which the cut network has been run and its file held
against it. *dB* are the signal to noise of boxes and of scores in int8, each apart: of all operators, and of
convolutions alone. *Lossy* are operators that a search tries in float. *x* are ratios to the whole network in fp32,
paired, on one thread; of convolutions in int8.
Names of networks as arguments measure those alone. A table for people, then one JSON line for programs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

NETWORKS = ("yolov8n", "yolo11n")
PIXELS, SAMPLES = 96, 16
COLUMNS = (
    "network", "groups", "CPU seconds", "MACs left", "export", "largest difference", "int8, dB", "convolutions, dB",
    "lossy", "pruned, x", "pruned int8, x",
)  # fmt: skip


def detector(name: str) -> Any:
    """The module as ultralytics exports it: one output (batch, 4 + classes, places), boxes before scores."""
    import torch
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    module = DetectionModel(f"{name}.yaml", nc=80, verbose=False).train()
    with torch.no_grad():
        for _ in range(4):
            module(torch.rand(8, 3, PIXELS, PIXELS))
    module.eval()
    module.model[-1].export = True
    return module


def measured(name: str, folder: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    import compress
    import targets
    from compress.networks.counting import macs_and_parameters

    module, images = detector(name), torch.rand(SAMPLES, 3, PIXELS, PIXELS)
    example, target = images[:2], targets.get("ort-cpu")
    macs, _ = macs_and_parameters(module, (example,))
    start = time.process_time()
    groups = compress.find_groups(module, example)
    seconds = time.process_time() - start
    cut = compress.prune(module, example, 0.5, groups=groups)
    whole, small = folder / "whole.onnx", folder / "small.onnx"
    compress.export(module, example, whole)
    parity = compress.export(cut.module, example, small)
    samples = images.numpy()
    expected = _outputs(small, samples)
    noise = {}
    for file, what in (("int8", "all"), ("convolutions", "products")):
        path = folder / f"{file}.onnx"
        compress.quantize(small, path, "int8", samples, operators=what)
        noise[file] = [_decibels(expected[:, part], _outputs(path, samples)[:, part]) for part in _PARTS]
    lossy = _lossy(small, {_input(small): samples}, target)
    files = [str(folder / f"{file}.onnx") for file in ("small", "convolutions")]
    compared = targets.compare([str(whole), *files], target=target)
    target.close()
    return {
        "network": name, "groups": len(groups.prunable), "cpu_s": seconds, "macs_left": cut.macs / macs,
        "kept": [list(one) for one in cut.kept], "free_batch": _is_free(small), "max_abs": parity.max_abs,
        "scale": float(np.abs(expected).max()), "decibels": noise, "lossy": lossy,
        "ratios": [compared.ratio(file).value for file in files],
    }  # fmt: skip


_PARTS = (slice(0, 4), slice(4, None))
"""Boxes and scores."""


def _lossy(path: Path, samples: dict[str, Any], target: Any) -> list[str]:
    """The operators, other than convolutions, that lose so much in int8 that a search tries them in float."""
    from compress.precision import layer_costs, ranges

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ranges.collect_ranges(path, samples, "minmax", folder / "ranges.json")
        of = path, folder / "ranges.json", "minmax", samples, target.capabilities(), folder
        found = layer_costs.operator_errors(*of)
    return [name for name, share in found.items() if share > layer_costs.LOSSY]


def _input(path: Path) -> str:
    import onnx

    return str(onnx.load(path).graph.input[0].name)


def _is_free(path: Path) -> bool:
    import onnx

    return not onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value


def _outputs(path: Path, samples: Any) -> Any:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[0]
    step = size if isinstance(size, int) else len(samples)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: samples[i : i + step]})[0] for i in range(0, len(samples), step)])


def _decibels(expected: Any, found: Any) -> float:
    import numpy as np

    noise, signal = float(np.square(expected - found).sum()), float(np.square(expected).sum())
    return 10 * np.log10(signal / noise) if noise else 200.0


def row(found: dict[str, Any]) -> str:
    """A line of the table, in Markdown, of what was measured."""
    decibels = [" / ".join(f"{x:.0f}" for x in found["decibels"][file]) for file in ("int8", "convolutions")]
    cells = [
        found["network"], found["groups"], f"{found['cpu_s']:.0f}", f"{found['macs_left']:.2f}",
        "free batch" if found["free_batch"] else "fixed batch", f"{found['max_abs'] / found['scale']:.0e}", *decibels,
        ", ".join(found["lossy"]) or "none", *(f"{ratio:.2f}" for ratio in found["ratios"]),
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # It keeps settings in the home folder, and looks for updates, unless it is told otherwise.
        os.environ |= {"YOLO_CONFIG_DIR": folder, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
        import torch

        torch.set_num_threads(1)
        rows = []
        for name in sys.argv[1:] or NETWORKS:
            place = Path(folder) / name
            place.mkdir()
            rows.append(measured(name, place))
    print(f"| {' | '.join(COLUMNS)} |\n|---|{'--:|' * (len(COLUMNS) - 1)}")
    print("\n".join(map(row, rows)))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

"""What becomes of the networks that people use: cut to half of their channels, checked, exported, quantized.

    python -m venv libraries && libraries/bin/pip install -c constraints.txt . torchvision timm transformers \\
        torchaudio segmentation-models-pytorch ultralytics torch_pruning==1.6.1
    rm libraries/lib/python3.11/site-packages/torchaudio/lib/*.so   # of CUDA: beside a torch for CPUs they do not load
    libraries/bin/python benchmarks/architectures/cut_in_half.py [timm/lcnet_050 transformers ...]

The libraries live in an environment of its own; `ultralytics` is under the AGPL. Each network has a fresh process on
one thread. *MACs left* is what remains at a ratio of 0.5 of every group. *Right*: the cut network against the whole one
whose removed channels are held at zero, or read by nothing (heads whose queries are zero still say something); where
something normalises over channels, odd ones are made copies that nothing reads, and removed. *int8* is the signal to
noise of the cut network's file, of the output that is hurt most, with 16 random samples. *Torch-Pruning* are the MACs
that it leaves at the same ratio, with the last layer left alone, if that runs. A table for people, then one JSON line
for programs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "compress" / "shared")]

COLUMNS = ("network", "groups", "MACs left", "right", "export", "int8, dB", "seconds", "GB", "Torch-Pruning")
RIGHT = 1e-3
"""Largest difference, relative to the largest output, that counts as the same numbers in single precision."""
_NOTHING = 1e-2
"""Weights of which none is larger are made random."""


def measured(name: str) -> dict[str, Any]:
    """Measure one network in this process, which ends afterwards."""
    import torch

    import compress
    from benchmarks.architectures.from_libraries import ROWS
    from compress.networks.counting import macs_and_parameters
    from compress.networks.prepared_modules import ready

    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, example = ROWS[name].make()
    module = _warm(module.eval(), example)
    found: dict[str, Any] = {"network": name, "weights": sum(p.numel() for p in module.parameters())}
    start = time.process_time()
    try:
        groups = compress.find_groups(module, example)
        found |= {"groups": len(groups.prunable), "kept": [list(one) for one in groups.kept]}
        macs = macs_and_parameters(*ready(module, example))[0]
        cut = compress.prune(module, example, 0.5, groups=groups)
        found |= {"macs_left": cut.macs / macs, "cpu_s": time.process_time() - start}
    except Exception as error:
        return found | {"cpu_s": time.process_time() - start, "error": f"{type(error).__name__}: {error}"[:300]}
    _tell(found)
    for what, of in (
        ("error_right", lambda: {"difference": _difference(module, example, groups)}),
        ("error_export", lambda: _exported(cut.module, example)),
    ):
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                found |= of()
        except Exception as error:
            found[what] = f"{type(error).__name__}: {error}"[:300]
        _tell(found)
    return found | {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def _tell(found: dict[str, Any]) -> None:
    """Hand on what is known so far: a later step may take too long."""
    print("\n" + json.dumps(found), flush=True)


def peer(name: str) -> dict[str, Any]:
    """What Torch-Pruning leaves of one network, in this process, which ends afterwards."""
    import torch

    from benchmarks.architectures.from_libraries import ROWS
    from compress.networks.counting import macs_and_parameters
    from compress.networks.prepared_modules import ready

    torch.set_num_threads(1)
    torch.manual_seed(0)
    module, example = ROWS[name].make()
    module.eval()
    macs = macs_and_parameters(*ready(module, example))[0]
    try:
        return {"peer_macs_left": _torch_pruning(module, example, macs)}
    except Exception as error:
        return {"error_peer": f"{type(error).__name__}: {error}"[:300]}


def _tensors(example: Any) -> tuple[Any, ...]:
    return tuple(example.values()) if isinstance(example, dict) else (example,)


def _warm(module: Any, example: Any) -> Any:
    """Weights that begin at nothing made random, and normalization that has seen a few samples.

    Branches that are multiplied by zero, or by a millionth, would show no mistake in them; and numbers stay of one size
    from layer to layer.
    """
    import torch

    with torch.no_grad():
        for weight in module.parameters():
            if weight.is_floating_point() and weight.numel() and weight.abs().max() < _NOTHING:
                weight.normal_(0.0, 0.1)
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = None
    with torch.no_grad():
        for _ in range(2 if norms else 0):
            module(**example) if isinstance(example, dict) else module(example)
    for norm in norms:
        norm.momentum = 0.1
    return module.eval()


def _difference(module: Any, example: Any, groups: Any) -> float:
    """The largest of both checks: channels held at zero, or read by nothing, and copies that nothing reads."""
    import torch

    import compress
    from compress.networks.prepared_modules import ready
    from compress.networks.running import forward
    from compress.pruning.cutting import duplicate, zero
    from pruning_oracles import difference, even_sized, masked, odd

    def outputs(network: Any) -> Any:
        return forward(*ready(network, example))

    torch.backends.mha.set_fastpath_enabled(False)  # it passes by the hooks that hold channels at zero
    apart = {group.name: 0.5 for group in groups.prunable if not group.mixed}
    cut = compress.prune(module, example, apart, groups=groups)
    unread = copy.deepcopy(module)
    reading = [replace(g, slots=tuple(s for s in g.slots if s.side == "in")) for g in groups.prunable]
    zero(unread, [(group, cut.removed.get(group.name, ())) for group in reading])
    wholes = (masked(module, groups, cut.removed), unread)
    first = min(difference(outputs(cut.module), outputs(whole)) for whole in wholes)
    chosen = [group for group in even_sized(groups) if group.mixed]
    if not chosen:
        return first
    doubled = copy.deepcopy(module)
    duplicate(doubled, [(group, odd(group)) for group in chosen])
    removed = {group.name: tuple(odd(group)) for group in chosen}
    cut = compress.prune(doubled, example, removed=removed, groups=groups)
    return max(first, difference(outputs(cut.module), outputs(doubled)))


def _exported(module: Any, example: Any) -> dict[str, Any]:
    import numpy as np
    import onnx

    import compress

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.onnx"
        parity = compress.export(module, example, path)
        found["max_abs"] = parity.max_abs
        graph = onnx.load(path).graph
        found["free_batch"] = not graph.input[0].type.tensor_type.shape.dim[0].dim_value
        samples = {
            put.name: np.concatenate([x.numpy() + (np.random.default_rng(k).normal(0, 0.1, x.shape).astype("f4")
                                                   if x.is_floating_point() else 0) for k in range(8)])
            for put, x in zip(graph.input, _tensors(example), strict=True)
        }  # fmt: skip
        try:
            made = compress.quantize(path, Path(folder) / "int8.onnx", "int8", samples)
            found["int8_db"] = min(made.sqnr.values()) if isinstance(made.sqnr, dict) else float(made.sqnr)
        except Exception as error:
            found["error_int8"] = f"{type(error).__name__}: {error}"[:300]
    return found


def _torch_pruning(module: Any, example: Any, macs: int) -> float:
    """MACs left by Torch-Pruning at the same ratio, counted and run as ours are."""
    import torch
    import torch_pruning

    from compress.networks.counting import macs_and_parameters
    from compress.networks.prepared_modules import ready

    layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    pruner = torch_pruning.pruner.MagnitudePruner(
        module, example_inputs=example, importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5, ignored_layers=layers[-1:],
    )  # fmt: skip
    pruner.step()
    return macs_and_parameters(*ready(module, example))[0] / macs


def row(found: dict[str, Any]) -> str:
    """A line of the table, in Markdown, of what was measured."""
    peer = f"{found['peer_macs_left']:.2f}" if "peer_macs_left" in found else found.get("error_peer", "").split(":")[0]
    if "macs_left" not in found:
        return f"| {found['network']} | {found.get('error', 'no answer')} | | | | | | | {peer} |"
    late = found.get("error", "no answer")
    right = found.get("error_right") or (f"{found['difference']:.0e}" if "difference" in found else late)
    export = late
    if "error_export" in found or "free_batch" in found:
        export = found.get("error_export") or ("free batch" if found["free_batch"] else "fixed batch")
    int8 = found.get("error_int8") or (f"{found['int8_db']:.0f}" if "int8_db" in found else "")
    cells = (
        found["network"], found["groups"], f"{found['macs_left']:.2f}", right, export, int8, f"{found['cpu_s']:.0f}",
        f"{found['peak_bytes'] / 1e9:.1f}" if "peak_bytes" in found else "", peer,
    )  # fmt: skip
    return f"| {' | '.join(str(cell).replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def good(found: dict[str, Any]) -> bool:
    """Whether a network is pruned to half of its MACs or less, right, and exported."""
    return (
        found.get("macs_left", 1.0) < 0.5 and found.get("difference", 1.0) <= RIGHT and "free_batch" in found
    )  # fmt: skip


def _in_process(name: str, how: str, seconds: float) -> dict[str, Any]:
    """What a fresh process says of a network in time, as far as it got."""
    command = [sys.executable, __file__, how, name]
    said = b""
    try:
        ended = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        said, why = ended.stdout, f"status {ended.returncode}: " + ended.stderr.decode(errors="replace").strip()[-200:]
    except subprocess.TimeoutExpired as error:
        said, why = error.stdout or b"", f"no answer in {seconds:g} s"
    lines = [line for line in said.splitlines() if line.startswith(b"{")]
    return {"network": name, "error": why} | (json.loads(lines[-1]) if lines else {})


def main() -> None:
    from benchmarks.architectures.from_libraries import ROWS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="networks or libraries; all of them unless said otherwise")
    parser.add_argument("--seconds", type=float, default=300.0, help="the longest that one network may take")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    names = [name for name in ROWS if not asked.names or name in asked.names or name.split("/")[0] in asked.names]
    if asked.one or asked.peer:
        _tell(measured(names[0]) if asked.one else peer(names[0]))
        return
    print(f"| {' | '.join(COLUMNS)} |\n|---|{'--:|' * (len(COLUMNS) - 1)}")
    rows = []
    for name in names:
        rows.append(_in_process(name, "--one", asked.seconds))
        found = _in_process(name, "--peer", asked.seconds / 4)
        rows[-1] |= {"error_peer": found["error"]} if "error" in found and "peer_macs_left" not in found else {}
        rows[-1] |= {key: value for key, value in found.items() if key.endswith(("peer", "left"))}
        print(row(rows[-1]), flush=True)
    print(f"{sum(map(good, rows))} of {len(rows)} are pruned below half of their MACs, right, and exported.")
    print(json.dumps({"benchmark": "cut_in_half", "rows": rows}))


if __name__ == "__main__":
    main()

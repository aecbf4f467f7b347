"""How long it takes, and how much memory, to find what can be pruned.

    python benchmarks/architectures/finding_groups.py

Each network has a fresh process, on one thread. *CPU seconds* are those of ``find_groups`` alone, on two images of 224
pixels; *peak* is the most memory that the process ever had, *network* what it had before the search began. *MACs left*
is what remains at a ratio of 0.5, after which the cut network has been run. Names of networks as arguments measure
those alone. A table for people, then one JSON line for programs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

COLUMNS = ("network", "weights", "groups", "CPU seconds", "network", "peak", "MACs left")


def measured(name: str) -> dict[str, Any]:
    """Measure one network in this process, which ends afterwards."""
    import torch

    import compress
    from benchmarks.architectures.networks import NETWORKS
    from compress.networks.counting import macs_and_parameters

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, images = NETWORKS[name]().eval(), torch.randn(2, 3, 224, 224)
    macs, weights = macs_and_parameters(network, (images,))
    before, start = _peak(), time.process_time()
    groups = compress.find_groups(network, images)
    seconds, peak = time.process_time() - start, _peak()
    left = compress.prune(network, images, 0.5, groups=groups).macs / macs
    return {
        "network": name,
        "weights": weights,
        "groups": len(groups.prunable),
        "cpu_s": seconds,
        "before_bytes": before,
        "peak_bytes": peak,
        "macs_left": left,
    }


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def row(found: dict[str, Any]) -> str:
    """A line of the table, in Markdown, of what was measured."""
    cells = (
        found["network"],
        f"{found['weights'] / 1e6:.1f} M",
        str(found["groups"]),
        f"{found['cpu_s']:.1f}",
        f"{found['before_bytes'] / 1e9:.2f} GB",
        f"{found['peak_bytes'] / 1e9:.2f} GB",
        f"{found['macs_left']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    from benchmarks.architectures.networks import NETWORKS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NETWORKS)}; all of them unless said otherwise")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in NETWORKS]:
        parser.error(f"{unknown[0]!r} is not known: use {', '.join(NETWORKS)}")
    if asked.one:
        print(json.dumps(measured(asked.names[0])))
        return
    print(f"| {' | '.join(COLUMNS)} |\n|---|--:|--:|--:|--:|--:|--:|")
    rows = []
    for name in asked.names or NETWORKS:
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(row(rows[-1]), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

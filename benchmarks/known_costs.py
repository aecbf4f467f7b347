"""Is a cost known before it is measured? ``python -m benchmarks.known_costs digits --targets tflm cortex-m``.

Networks of a space are cut to widths of all sizes, untrained, and measured in fp32 and int8. Each is then predicted
from all others by what a search predicts with; what is shown is how far off that is. Prints a table for people, then
one JSON line for programs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import compress
from compress.pruning.blocks import find_blocks, groups_without, without_blocks
from compress.pruning.grouping import find_groups
from compress.pruning.patterns import network_patterns
from compress.sampling import cost_model
from compress.sampling.cost_model import FeatureTable, Table
from compress.sampling.network_arrays import Patterns, patterns_by_dropped
from compress.sampling.pool import spread
from compress.scanning.arenas import ALIGNMENT, ArenaTable
from compress.scanning.traced_runs import with_runs
from compress.values.networks import Network
from recipes import digits, image_classification, keyword_spotting
from targets import registry
from targets.errors import CompressError
from targets.target import Target

NETWORKS = {
    "keyword-spotting": (keyword_spotting.network, (1, 49, 10)),
    "digits": (digits.network, (1, 8, 8)),
    "image-classification": (image_classification.network, (3, 32, 32)),
}
QUANTITIES = ("memory", "size", "instructions", "cycles")
BITS = {"fp32": 32, "int8": 8}
Costs = dict[tuple[str, str, str], float]
"""(Target, precision, quantity) -> cost of one network."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure networks, predict what they cost, and print how far that is off."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--targets", nargs="+", default=["tflm", "cortex-m"])
    parser.add_argument("--count", type=int, default=22, help="networks that are measured")
    asked = parser.parse_args(arguments)
    found = [
        row for name in asked.names for row in errors(name, [registry.get(one) for one in asked.targets], asked.count)
    ]
    print(
        "| network | target | precision | quantity | networks | error, median | worst |\n|---|---|---|---|--:|--:|--:|"
    )
    for row in found:
        print(f"| {' | '.join(map(str, row[:5]))} | {row[5]:.2%} | {row[6]:.2%} |")
    print(json.dumps(found))


def errors(name: str, targets: Sequence[Target], count: int) -> list[tuple[Any, ...]]:
    """(Network, target, precision, quantity, networks, median error, worst error), each predicted from the others."""
    module, inputs = subject(name)
    groups, blocks = find_groups(module, inputs), find_blocks(module, inputs)
    without = partial(groups_without, module, inputs, groups, blocks)
    found = network_patterns(module, inputs, groups, blocks)
    patterns = patterns_by_dropped(with_runs(found, module, (inputs,), blocks, without))
    measured: dict[Network, Costs] = {}
    for network in spread(patterns, count, 0):
        left = groups_without(module, inputs, groups, blocks, network.dropped)
        whole = without_blocks(module, blocks.named(network.dropped))
        small = compress.prune(whole, inputs, groups=left, widths=network.width_of).module
        try:
            measured[network] = costs(small, inputs, targets)
        except CompressError as error:  # random weights at a few channels are more than int8 can hold
            print(f"{name}: one network is left out: {error}", file=sys.stderr)
    rows = []
    for key in sorted({key for one in measured.values() for key in one}):
        known = {network: one[key] for network, one in measured.items() if key in one}
        values = np.array(list(known.values()))
        model = cost_model.fit(patterns, list(known), values / values.max(), 1, table=table_for(patterns, *key[1:]))
        rows.append((name, *key, len(known), model.median_error, model.worst_error))
    return rows


def subject(name: str) -> tuple[nn.Module, Tensor]:
    """An untrained network, its normalisations as those of a trained one; and some inputs."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    module, inputs = make(), torch.randn(64, *shape)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0.0, 0.3)
            layer.momentum = None
    module.train()(inputs)
    return module.eval(), inputs[:16]


def costs(module: nn.Module, inputs: Tensor, targets: Sequence[Target]) -> Costs:
    """What a network costs on each target, in both precisions where they run there."""
    found: Costs = {}
    with tempfile.TemporaryDirectory() as folder:
        path, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.tflite"
        compress.export(module, inputs, path)
        samples = {onnx.load(path).graph.input[0].name: inputs.numpy()}
        targets[0].convert(path, "int8", samples, int8)
        for target in targets:
            for precision, file in (("fp32", path), ("int8", int8)):
                if precision in target.capabilities().precisions:
                    one = target.measure([file])[0]
                    read = {"memory": one.memory, "size": one.flash or one.size, "instructions": one.instructions,
                            "cycles": one.cycles}  # fmt: skip
                    found |= {(target.name, precision, name): float(value) for name, value in read.items() if value}
    return found


def table_for(patterns: Patterns, precision: str, quantity: str) -> Table:
    """What a search predicts a quantity by."""
    if quantity == "memory":
        return ArenaTable(patterns, ALIGNMENT // BITS[precision])
    return FeatureTable(patterns, 1, places=quantity != "size", counted=quantity == "instructions")


if __name__ == "__main__":
    main()

"""Makes a table of finished trainings: every network of a small space, three lengths, fp32 and int8.

    python -m benchmarks.tabular.make_table digits benchmarks/tabular/digits.json
    python -m benchmarks.tabular.make_table spoken-digits benchmarks/tabular/spoken-digits.json --data fsdd.zip

500 networks: a trunk of 16, 32, 48 or 64 channels, and three residual blocks, each dropped or with as many inside. All
begin with the weights of one baseline; every length is a training of its own, one cosine. What was done is appended
to PATH.rows.jsonl, and done again is only what is missing, so it can be interrupted; how long the rest takes is said
after every network. Latency is measured on ONNX Runtime with one thread, against the baseline. One core; do not run
anything beside it.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

import compress
import targets
from benchmarks.tabular.synthetic import FULL, STEP, all_of, all_patterns
from benchmarks.tabular.tables import Entry, Table, read_entry, save
from compress.onnx_files.exporting import bind, trace_graph
from compress.values.networks import GroupLadder, LayerShape, Network, Pattern

_BLOCKS = 3
_BATCH = 64
_SECONDS = 2.5
"""For which the latency of a network is measured."""


class Residual(nn.Module):
    """Two convolutions whose output is added to their input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(FULL, FULL, 3, padding=1, bias=False), nn.BatchNorm2d(FULL)
        self.b, self.norm_b = nn.Conv2d(FULL, FULL, 3, padding=1, bias=False), nn.BatchNorm2d(FULL)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``."""
        return torch.relu(x + self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))))


def whole_network(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The baseline, untrained; ``shape``: channels, height and width of its input."""
    stride = 1 if shape[1] <= 16 else 2
    parts: list[tuple[str, nn.Module]] = [
        ("stem", nn.Conv2d(shape[0], FULL, 3, stride=stride, padding=1, bias=False)),
        ("norm", nn.BatchNorm2d(FULL)),
        ("relu", nn.ReLU()),
        *((f"block{i}", Residual()) for i in range(_BLOCKS)),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flat", nn.Flatten()),
        ("head", nn.Linear(FULL, classes)),
    ]
    network = nn.Sequential()
    for name, part in parts:
        network.add_module(name, part)
    return network


def cut_from(baseline: nn.Sequential, network: Network, example: Tensor) -> nn.Module:
    """The baseline without some blocks and channels, those of least norm."""
    small = copy.deepcopy(baseline)
    for name in network.dropped:
        setattr(small, name, nn.Identity())
    roots = {name: "stem" if name == "trunk" else f"{name}.a" for name in network.width_of}
    return compress.prune(small, example, widths={roots[name]: width for name, width in network.widths}).module


def train(module: nn.Module, data: tuple[Tensor, Tensor], epochs: int, teacher: Tensor | None, seed: int) -> float:
    """One cosine of AdamW from 3e-3 with a twentieth of warm-up; the seconds that it took."""
    images, labels = data
    torch.manual_seed(seed)
    steps = epochs * -(-len(images) // _BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps + 1, pct_start=0.05)
    module.train()
    begun = time.process_time()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(_BATCH):
            outputs = module(images[batch])
            loss = cross_entropy(outputs, labels[batch])
            if teacher is not None:
                distance = kl_div(log_softmax(outputs / 3, 1), softmax(teacher[batch] / 3, 1), reduction="batchmean")
                loss = 0.4 * loss + 0.6 * 9 * distance
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch says so
            optimizer.step()
            schedule.step()
    module.eval()
    return time.process_time() - begun


def row(
    network: Network, baseline: nn.Sequential, parts: Mapping[str, Any], lengths: tuple[int, ...], folder: Path
) -> Entry:
    """Train one network for every length, export and measure it, and return its entry of the table."""
    images, labels = parts["train"]
    with torch.no_grad():
        teacher = baseline(images)
        on_train = float((teacher.argmax(1) != labels).float().mean())
    found: dict[str, list[list[float]]] = {"val": [[], []], "test": [[], []]}
    train_drops, seconds, template = [], 0.0, None
    files = [folder / "fp32.onnx", folder / "int8.onnx"]
    for i, epochs in enumerate(lengths):
        module = cut_from(baseline, network, images[:1])
        seconds += train(module, parts["train"], epochs, teacher, seed=i)
        with torch.no_grad():
            train_drops.append(float((module(images).argmax(1) != labels).float().mean()) - on_train)
        # Traced once: all lengths have the same shapes.
        template = trace_graph(module, (images[:2],)) if template is None else template
        onnx.save(bind(template, module.state_dict()), files[0])
        compress.quantize(files[0], files[1], precision="int8", calibration=images[:256].numpy())
        for split in found:
            for place, file in enumerate(files):
                found[split][place].append(wrong(file, *parts[split]))
    measured = targets.compare([folder / "baseline.onnx", *files], seconds=2 * _SECONDS)
    costs = {name: measured.ratio(str(file)).value for name, file in zip(("fp32", "int8"), files, strict=True)}
    val, test = ({"fp32": tuple(found[split][0]), "int8": tuple(found[split][1])} for split in ("val", "test"))
    return Entry(network, costs, seconds / sum(lengths), val, test, tuple(train_drops))


def wrong(file: Path, images: Tensor, labels: Tensor) -> float:
    """The share of examples that the file gets wrong."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    return float((np.asarray(outputs).argmax(1) != labels.numpy()).mean())


def read_parts(task: str, data: str | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Read a task's data into memory: name of the split -> (inputs, labels)."""
    if task == "digits":
        from recipes.digits import datasets

        sets = datasets()
    else:
        from recipes.keyword_spotting import task as keyword_spotting

        made = keyword_spotting(data)
        sets = {"train": made.train, "val": made.val, "test": made.test}
    parts = {}
    for split, dataset in sets.items():
        pairs = [dataset[i] for i in range(len(dataset))]
        parts[split] = (torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs]))
    return parts


def patterns_for(shape: tuple[int, ...], classes: int) -> list[Pattern]:
    """The patterns of the synthetic tables, with this task's positions and channels."""
    stride = 1 if shape[1] <= 16 else 2
    positions = -(-shape[1] // stride) * -(-shape[2] // stride)
    found = []
    for pattern in all_patterns(_BLOCKS):
        layers = [LayerShape("stem", "conv", 9, positions, shape[0], FULL, (), (("trunk", 1),))]
        for layer in pattern.layers[1:-1]:
            layers.append(LayerShape(**{**vars(layer), "positions": positions}))
        layers.append(LayerShape("head", "linear", 1, 1, FULL, classes, (("trunk", 1),), ()))
        groups = tuple(GroupLadder(group.name, group.channels, group.widths) for group in pattern.groups)
        found.append(Pattern(pattern.dropped, groups, tuple(layers)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["digits", "spoken-digits"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--networks", type=int, help="of the 500, for a trial")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 12, 40])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    parts = read_parts(asked.task, asked.data)
    images, labels = parts["train"]
    classes, lengths = int(labels.max()) + 1, tuple(asked.lengths)
    patterns = patterns_for(tuple(images.shape[1:]), classes)
    torch.manual_seed(0)
    baseline = whole_network(tuple(images.shape[1:]), classes)
    train(baseline, parts["train"], 2 * lengths[-1], None, seed=0)
    networks = [network for pattern in patterns for network in all_of(pattern)]
    # In no order, so that what is there after some hours is a fair part of the whole.
    networks = [networks[i] for i in np.random.default_rng(0).permutation(len(networks))][: asked.networks]
    rows = asked.path.with_suffix(".rows.jsonl")
    done = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    names = {json.dumps(each["network"]) for each in done}
    missing = [network for network in networks if json.dumps(asdict(network)) not in names]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "baseline.onnx"
        compress.export(baseline, images[:2], file)
        for count, network in enumerate(missing, start=1):
            entry = row(network, baseline, parts, lengths, Path(folder))
            with rows.open("a") as out:
                out.write(json.dumps(asdict(entry)) + "\n")
            done.append(json.loads(json.dumps(asdict(entry))))
            each = (time.monotonic() - begun) / count
            left = each * (len(missing) - count) / 60
            print(f"{count} of {len(missing)}: {each:.1f} s each, {left:.0f} min left", flush=True)
        errors = {split: wrong(file, *parts[split]) for split in ("val", "test")}
    entries = tuple(read_entry(each) for each in done)
    seconds = float(np.median([entry.seconds_per_epoch for entry in entries]))
    table = Table(
        asked.task, STEP, tuple(float(n) for n in lengths), 0.01, 15 * lengths[-1] * seconds, errors["val"],
        errors["test"], len(parts["val"][1]), len(labels), tuple(patterns), entries,
    )  # fmt: skip
    save(table, asked.path)
    print(f"{asked.path}: {len(entries)} networks; of the baseline {errors['val']:.3f} wrong on val")


if __name__ == "__main__":
    main()

"""The careful expert: a sweep of uniform ratios on the runtime's grid, fine-tuned for equal times, then int8.

    python benchmarks/peers/expert.py keyword-spotting --data fsdd.zip --weights subjects/kws.pt --seconds 480 \\
        --out outcomes/expert-0

Five ratios (a quarter to three quarters of the channels), widths rounded to ``--round`` channels (16 on AVX-512, 8 on
AVX2: an expert knows), an equal part of the budget for each training. Every trained network is quantized with ONNX
Runtime's static quantizer (QDQ, per channel, minmax over 256 train samples) as well. ``--only-int8`` leaves the pruning
out: ONNX Runtime's static int8 of the baseline, which takes seconds.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
import torch_pruning
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from plain_optuna import exported, finetuned
from subjects import Subject, load
from torch import nn
from yardstick import Budget, Outcome, Tried, ratios, scored

RATIOS = (0.25, 0.375, 0.5, 0.625, 0.75)


class _Samples(CalibrationDataReader):  # type: ignore[misc] - onnxruntime ships no types
    """256 train samples, one batch at a time."""

    def __init__(self, subject: Subject, path: Path) -> None:
        names = [one.name for one in onnx.load(path).graph.input]
        drawn = next(iter(subject.batches(256, 0)))[0]
        self._rows: Iterator[dict[str, np.ndarray]] = iter(
            [{n: x[i : i + 32].numpy() for n, x in zip(names, drawn, strict=True)} for i in range(0, 256, 32)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch."""
        return next(self._rows, None)


def quantized(subject: Subject, path: Path) -> Path:
    """The file in static int8."""
    made = path.with_suffix(".int8.onnx")
    quantize_static(
        path, made, _Samples(subject, path), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return made


def cut(subject: Subject, ratio: float, grid: int) -> nn.Module:
    """A copy with every width at that share of its channels, rounded to the grid."""
    module = copy.deepcopy(subject.module)
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1:]
    torch_pruning.pruner.MagnitudePruner(
        module, subject.example(), importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=ratio,
        round_to=grid, ignored_layers=last, in_channel_groups={}, out_channel_groups={}, num_heads={},
    ).step()  # fmt: skip
    return module


def main() -> None:
    """Sweep, and write what was tried."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--data")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=int, default=16)
    parser.add_argument("--only-int8", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subject = load(asked.name, asked.data, asked.weights)
    asked.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(asked.seconds)
    baseline = exported(subject, subject.module, asked.out / "baseline.onnx")
    peer = "ONNX Runtime static int8" if asked.only_int8 else "careful expert"
    outcome = Outcome(peer, subject.task.name, asked.seed, asked.seconds, str(baseline), scored(baseline, subject.val))

    def note(path: Path) -> None:
        outcome.tried.append(
            Tried(str(path), ratios([baseline, path], subject)[1], scored(path, subject.val), budget.spent)
        )
        outcome.save(asked.out / "outcome.json")

    note(quantized(subject, baseline))
    for place, ratio in enumerate(() if asked.only_int8 else RATIOS):
        share = Budget(budget.left / (len(RATIOS) - place))
        module = cut(subject, ratio, asked.round)
        seconds = Budget(1e9)
        finetuned(subject, module, 1, 3e-3, 1e-4, asked.seed, share)  # how long an epoch takes
        epochs = int(share.left / max(seconds.spent, 1e-3))
        if epochs > 0:
            finetuned(subject, module, epochs, 3e-3, 1e-4, asked.seed, share)
        outcome.trainings += 1
        path = exported(subject, module.eval(), asked.out / f"{ratio}.onnx")
        note(path)
        note(quantized(subject, path))
    print(f"{peer}: {len(outcome.tried)} files, {outcome.best(0.01)}")


if __name__ == "__main__":
    main()

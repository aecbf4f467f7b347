"""The careful expert: a sweep of uniform ratios on the runtime's grid, fine-tuned for equal times, then int8.

    python benchmarks/peers/expert.py digits --weights digits.pt --seconds 40 --out out/expert

Five ratios (a quarter to three quarters of the channels), widths rounded to ``--round`` channels (16 on AVX-512, 8 on
AVX2: an expert knows), an equal part of the budget for each training. Every trained network is quantized with ONNX
Runtime's static quantizer (QDQ, per channel, minmax over 256 train samples) as well. ``--only-int8`` leaves the pruning
out: ONNX Runtime's static int8 of the baseline, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from plain_optuna import exported, finetuned, pruned
from subjects import Subject, load
from yardstick import Budget, Outcome, Tried, peer_arguments, ratios, scored

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
        """The next 32 samples by input name; None after the last."""
        return next(self._rows, None)


def quantized(subject: Subject, path: Path) -> Path:
    """Quantize the file to static int8 by ONNX Runtime, beside it, and return where it is."""
    made = path.with_suffix(".int8.onnx")
    quantize_static(
        path, made, _Samples(subject, path), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return made


def main() -> None:
    """Sweep, and write what was tried."""
    parser = peer_arguments(__doc__)
    parser.add_argument("--round", type=int, default=16)
    parser.add_argument("--only-int8", action="store_true")
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
        module = pruned(subject, ratio, asked.round)
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

"""The script that a user would write: Optuna's NSGA-II over pruning ratios, Torch-Pruning, fine-tuning, ONNX Runtime.

    python benchmarks/peers/plain_optuna.py digits --weights digits.pt --seconds 40 --out out/plain \\
        [--per-block] [--seed 0]

One ratio for the whole network, or with ``--per-block`` one for each top-level child; epochs, learning rate and weight
decay beside it. Every trial prunes a copy (L2, rounded to 8 channels), fine-tunes it with cross-entropy and
distillation, exports it, times it for a second and reads val. Needs torch-pruning beside paretopress's environment.
"""

from __future__ import annotations

import copy
from pathlib import Path

import optuna
import torch
import torch_pruning
from subjects import Subject, load
from torch import nn
from torch.nn import functional as F
from yardstick import Budget, Outcome, Tried, peer_arguments, ratios, scored

LONGEST = 24
"""Epochs at most."""


def pruned(subject: Subject, ratios_of: dict[nn.Module, float] | float, grid: int = 8) -> nn.Module:
    """A copy with that share of its channels removed, widths rounded to the grid; the classifier keeps its outputs."""
    module = copy.deepcopy(subject.module)
    names = {id(layer): name for name, layer in subject.module.named_modules()}
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1:]
    given: dict[str, object] = {"pruning_ratio": ratios_of if isinstance(ratios_of, float) else 0.0}
    if not isinstance(ratios_of, float):
        given["pruning_ratio_dict"] = {module.get_submodule(names[id(k)]): v for k, v in ratios_of.items()}
    torch_pruning.pruner.MagnitudePruner(
        module, subject.example(), importance=torch_pruning.importance.MagnitudeImportance(p=2), round_to=grid,
        ignored_layers=last, in_channel_groups={}, out_channel_groups={}, num_heads={}, **given,
    ).step()  # fmt: skip
    return module


def finetuned(
    subject: Subject, module: nn.Module, epochs: int, lr: float, decay: float, seed: int, budget: Budget
) -> nn.Module:
    """Trained in place with a cosine, half of the loss from the baseline's outputs, until the budget is spent."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(module.train().parameters(), lr=lr, weight_decay=decay)
    steps = epochs * max(1, len(subject.train) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        for inputs, labels in subject.batches(64, seed * 1000 + epoch):
            with torch.no_grad():
                taught = subject.module(*inputs)
            outputs = module(*inputs)
            soft = F.kl_div(F.log_softmax(outputs / 4, 1), F.softmax(taught / 4, 1), reduction="batchmean") * 16
            loss = 0.5 * F.cross_entropy(outputs, labels) + 0.5 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if budget.left < 0:
            break
    return module.eval()


def exported(subject: Subject, module: nn.Module, path: Path) -> Path:
    """By torch's own exporter, the batch size free."""
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in subject.val.inputs)
    torch.onnx.export(
        module, subject.example(), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False
    )
    return path


def main() -> None:
    """Search until the budget is spent, and write what was tried."""
    parser = peer_arguments(__doc__)
    parser.add_argument("--per-block", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subject = load(asked.name, asked.data, asked.weights)
    asked.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(asked.seconds)
    baseline = exported(subject, subject.module, asked.out / "baseline.onnx")
    peer = "plain Optuna, " + ("per block" if asked.per_block else "uniform")
    outcome = Outcome(peer, subject.task.name, asked.seed, asked.seconds, str(baseline), scored(baseline, subject.val))
    blocks = [child for child in subject.module.children() if any(True for _ in child.parameters())]

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        if asked.per_block:
            shares = {block: trial.suggest_float(f"ratio{i}", 0.0, 0.9) for i, block in enumerate(blocks)}
            module = pruned(subject, shares)
        else:
            module = pruned(subject, trial.suggest_float("ratio", 0.0, 0.9))
        epochs, lr = trial.suggest_int("epochs", 4, LONGEST), trial.suggest_float("lr", 3e-4, 1e-2, log=True)
        decay = trial.suggest_float("decay", 1e-6, 1e-2, log=True)
        finetuned(subject, module, epochs, lr, decay, asked.seed, budget)
        path = exported(subject, module, asked.out / f"{trial.number:04d}.onnx")
        ratio, val = ratios([baseline, path], subject, 1.0)[1], scored(path, subject.val)
        outcome.trainings += 1
        outcome.tried.append(Tried(str(path), ratio, val, budget.spent))
        outcome.save(asked.out / "outcome.json")
        return ratio, outcome.baseline_val - val

    sampler = optuna.samplers.NSGAIISampler(population_size=20, seed=asked.seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    while budget.left > 0:
        study.optimize(objective, n_trials=1, catch=(RuntimeError, ValueError))
    best = outcome.best(0.01)
    print(f"{peer}: {len(outcome.tried)} networks, {best}")


if __name__ == "__main__":
    main()

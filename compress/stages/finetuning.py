"""Finetuning: carried here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compress.baseline.contexts import Context, Say, Training
from compress.pruning.pruning import Pruned
from compress.stages import early_stopping, pruning
from compress.training import distilling, finetuning
from compress.values.configs import Config, FinetuneSettings
from compress.values.constraints import Constraint
from compress.values.serialization import stable_hash, to_json
from targets.documents import file_hash
from targets.errors import StageError, TrainingError


def _as_earned(
    context: Context, training: Training, module: torch.nn.Module, settings: FinetuneSettings,
    constraints: tuple[Constraint, ...], say: Say, train: Callable[..., Path],
) -> tuple[Path, int]:  # fmt: skip
    """(file with the trained weights, which ``module`` then has; epochs saved where a short training left no hope).

    ``train`` trains for some epochs, after an earlier training where its file is given.
    """

    def loaded(weights: Path) -> Path:
        module.load_state_dict(torch.load(weights, weights_only=True))
        return weights

    first = early_stopping.short_epochs(settings)
    if not first:
        return loaded(train(settings.epochs)), 0
    weights = loaded(train(first))
    say("judge")
    quality = _val_quality(context, training, module)
    module.to("cpu")
    zero = context.baseline.measured[context.targets[0].name].quality.val.value
    better = context.metric.higher_is_better
    if early_stopping.is_hopeless(quality, zero, constraints, higher_is_better=better):
        return weights, settings.epochs - first
    return loaded(train(settings.epochs - first, weights)), 0


def _shortened(config: Config, saved: int) -> Config:
    """Of a network that gets no more epochs, in int8 neither."""
    finetune = replace(config.finetune, epochs=config.finetune.epochs - saved)
    return replace(config, finetune=finetune, precision=replace(config.precision, qat_epochs=0))


def _trained(
    context: Context, training: Training, start: pruning.Origin, pruned: Pruned, config: Config, say: Say,
    after: Path | None = None,
) -> Path:  # fmt: skip
    """The file with the fine-tuned weights of a network that was cut from ``start``; ``after``: a first training."""
    task = context.task
    inputs = {
        **training.key.of_trainings(),
        **start.key(),
        **({"after": file_hash(after)[:16]} if after else {}),
        "removed": stable_hash({name: list(indices) for name, indices in pruned.removed.items()}),
        "settings": to_json(config.finetune),
        "val": context.val.digest if config.finetune.patience else None,
    }

    def compute(folder: Path) -> dict[str, Any]:
        module = pruned.module
        if task.finetune is not None:
            trained = finetuning.own_finetune(task.finetune, module, task.train, config.finetune, context.seed)
            history = finetuning.History()
        else:
            trained, history = module, _finetune(context, training, module, config, say)
        torch.save(trained.state_dict(), folder / "weights.pt")
        return {"history": to_json(history)}

    try:
        return context.cache.stage("finetune", finetuning.VERSION, inputs, compute).folder / "weights.pt"
    except (StageError, KeyboardInterrupt):
        raise
    except Exception as error:
        from compress.tasks.user_code import describe

        raise TrainingError(f"fine-tuning failed: {describe(error)}") from error


def _finetune(
    context: Context, training: Training, module: torch.nn.Module, config: Config, say: Say
) -> finetuning.History:
    sign = 1.0 if context.metric.higher_is_better else -1.0
    return finetuning.finetune(
        module,
        training.train,
        config.finetune,
        training.objective,
        mode=training.mode,
        seed=context.seed,
        teacher=training.teacher,
        val_quality=lambda network: sign * _val_quality(context, training, network),
        on_epoch=lambda epoch: say(f"finetune, epoch {epoch} of {config.finetune.epochs}"),
        optimizer=context.task.optimizer,
    )


def _val_quality(context: Context, training: Training, module: torch.nn.Module) -> float:
    found = tuple(x.numpy() for x in distilling.predict(module, context.val.inputs, training.mode))
    return float(context.metric.function(found[0] if len(found) == 1 else found, context.val.labels.numpy()))

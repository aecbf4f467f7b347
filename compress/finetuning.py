"""Training a pruned network again, with the regularization that a config asks for.

Loss = (1 - w) * L(outputs, labels) + w * T^2 * KL(teacher / T, student / T), with the baseline as teacher
(Hinton, Vinyals & Dean 2015); for losses other than cross-entropy the second term is the squared distance to the
teacher's outputs. L2 is decoupled (AdamW); L1 is added to the gradient as its sign. Zero epochs take BatchNorm's
statistics anew and change nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.configs import FinetuneSettings
from compress.data import Split, Stream, batches
from compress.exporting import evaluating, outputs_of
from compress.training_modes import TrainingMode, threads
from targets.errors import TaskError, TrainingError

VERSION = 1
_WARMUP = 0.05
"""Share of the steps in which the learning rate rises: large rates right after a cut would destroy what is left."""
_DIVERGED = 50.0
"""An epoch's mean loss beyond this many times the first step's (and above 10) is divergence."""
_RECALIBRATION_BATCHES = 50

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Objective:
    """What training minimises: a loss, and whether it is cross-entropy (label smoothing and KL apply then)."""

    loss: Loss | None
    kind: str
    """``cross_entropy``, ``mse``, ``l1`` or ``own``."""

    def value(self, outputs: Any, labels: Any, smoothing: float) -> Tensor:
        """The loss of a batch."""
        if self.loss is not None:
            return self.loss(outputs, labels)
        first = outputs_of(outputs)[0].float()
        kind = _likely(first, labels) if self.kind == "own" else self.kind
        if kind == "unknown":
            return first.new_full((), math.nan)
        if kind == "cross_entropy":
            return F.cross_entropy(first, labels.long(), label_smoothing=smoothing)
        labels = labels.float().reshape(first.shape) if labels.numel() == first.numel() else labels.float()
        return F.mse_loss(first, labels) if kind == "mse" else F.l1_loss(first, labels)


def _likely(outputs: Tensor, labels: Tensor) -> str:
    """The usual loss for data of this form: all there is to go by where the user trains, and told us no loss."""
    decisions = outputs.shape[:1] + outputs.shape[2:]
    if outputs.dim() > 1 and outputs.shape[1] > 1 and labels.shape == decisions and not labels.is_floating_point():
        return "cross_entropy"
    return "mse" if labels.numel() == outputs.numel() else "unknown"


@dataclass(frozen=True)
class History:
    """Mean training loss and val quality (where it was asked) per epoch, and the epoch that was kept."""

    loss: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    kept_epoch: int = 0


@dataclass(frozen=True)
class Teacher:
    """The baseline's outputs: looked up where the train set is in memory, else computed."""

    module: nn.Module
    table: tuple[Tensor, ...] | None = None

    def outputs(self, indices: Tensor, inputs: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
        """For the train examples at ``indices``."""
        if self.table is not None:
            return tuple(x[indices].to(device) for x in self.table)
        with evaluating(self.module), torch.no_grad():
            return outputs_of(self.module.to(device)(*inputs))


def make_objective(loss: Loss | None, metric_loss: str | None, metric: str) -> Objective:
    """The task's own loss, else the usual one for its metric; raises TaskError where there is neither."""
    if loss is not None:
        return Objective(loss, "own")
    if metric_loss is None:
        raise TaskError(f"metric {metric!r} has no usual loss to train with; give the task a loss=")
    return Objective(None, metric_loss)


def make_teacher(module: nn.Module, train: Split | Stream, mode: TrainingMode) -> Teacher:
    """Run the baseline over the train set once, where that can be kept."""
    if isinstance(train, Stream):
        return Teacher(module)
    return Teacher(module, predict(module, train.inputs, mode))


def predict(module: nn.Module, inputs: tuple[Tensor, ...], mode: TrainingMode, batch: int = 256) -> tuple[Tensor, ...]:
    """Outputs in eval mode for all of ``inputs`` (samples first), on the CPU."""
    device = torch.device(mode.device)
    module = module.to(device)
    parts: list[tuple[Tensor, ...]] = []
    with threads(mode.threads), evaluating(module), torch.no_grad():
        for start in range(0, len(inputs[0]), batch):
            chunk = tuple(mode.place(x[start : start + batch]) for x in inputs)
            parts.append(tuple(x.float().cpu() for x in outputs_of(module(*chunk))))
    return tuple(torch.cat([part[k] for part in parts]) for k in range(len(parts[0])))


def finetune(
    module: nn.Module,
    train: Split | Stream,
    settings: FinetuneSettings,
    objective: Objective,
    *,
    mode: TrainingMode,
    seed: int,
    teacher: Teacher | None = None,
    val_quality: Callable[[nn.Module], float] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> History:
    """Train ``module`` in place and leave it on the CPU in eval mode.

    ``val_quality``: higher is better; asked after every epoch where ``settings.patience`` is set.
    Raises TrainingError when the loss or a weight becomes NaN or infinite, or the loss diverges.
    """
    _seed(seed)
    device = torch.device(mode.device)
    module.to(device)
    if mode.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(seed)
    try:
        with threads(mode.threads), _dropout(module, settings.dropout):
            if settings.epochs == 0:
                recalibrate(module, train, mode, generator, settings.batch_size)
                return History()
            history = _Loop(module, train, settings, objective, mode, teacher, generator).run(val_quality, on_epoch)
        bad = _not_finite(module)
        if bad is not None:
            raise TrainingError(
                f"{bad} became NaN or infinite in epoch {len(history.loss)} at lr={settings.lr:.2g}; "
                "a lower lr may help"
            )
        return history
    finally:
        module.to("cpu")
        if mode.channels_last:
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        module.eval()


def recalibrate(
    module: nn.Module, train: Split | Stream, mode: TrainingMode, generator: torch.Generator, size: int
) -> None:
    """Take the statistics of every BatchNorm anew, as plain averages over train batches."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    with torch.no_grad():
        for i, (_, inputs, _labels) in enumerate(batches(train, size, generator)):
            if i == _RECALIBRATION_BATCHES:
                break
            module(*(mode.place(x) for x in inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def own_finetune(
    function: Callable[[Any, Any, Any], Any], module: nn.Module, train: Any, settings: FinetuneSettings, seed: int
) -> nn.Module:
    """The user's own loop instead of ours. What it prints goes to stderr; what it raises ends the trial."""
    from compress.loading import describe

    _seed(seed)
    before = {name: x.shape for name, x in module.state_dict().items()}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            returned = function(module, train, settings)
    except (Exception, SystemExit) as error:
        raise TrainingError(f"the task's finetune raised {describe(error)}") from error
    trained = returned if isinstance(returned, nn.Module) else module
    after = {name: x.shape for name, x in trained.state_dict().items()}
    if after != before:
        name = next(n for n in (*before, *after) if before.get(n) != after.get(n))
        raise TrainingError(
            f"the task's finetune gave back another network: {name!r} has shape {after.get(name)}, not "
            f"{before.get(name)}; it must train the one it is given"
        )
    bad = _not_finite(trained)
    if bad is not None:
        raise TrainingError(f"the task's finetune left NaN or infinite values in {bad}")
    return trained.to("cpu").eval()


def _seed(seed: int) -> None:
    """Everything that an augmentation or a training loop may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _not_finite(module: nn.Module) -> str | None:
    """The name of a weight or statistic that is not finite."""
    state = module.state_dict().items()
    return next((n for n, x in state if x.is_floating_point() and not torch.isfinite(x).all()), None)


class _Loop:
    """One training: optimizer, schedule and epochs."""

    def __init__(
        self,
        module: nn.Module,
        train: Split | Stream,
        settings: FinetuneSettings,
        objective: Objective,
        mode: TrainingMode,
        teacher: Teacher | None,
        generator: torch.Generator,
    ) -> None:
        self.module, self.train, self.settings, self.objective, self.mode = module, train, settings, objective, mode
        self.teacher = teacher if settings.distill_weight > 0 else None
        self.generator = generator
        self.weights = [p for p in module.parameters() if p.requires_grad and p.dim() > 1]
        others = [p for p in module.parameters() if p.requires_grad and p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": self.weights, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.lr,
        )
        self.total = settings.epochs * max(1, math.ceil(len(train) / settings.batch_size))
        self.step = 0
        self.first_loss: float | None = None

    def run(self, val_quality: Callable[[nn.Module], float] | None, on_epoch: Callable[[int], None] | None) -> History:
        """All epochs, or until val has not improved for ``patience`` of them."""
        losses: list[float] = []
        scores: list[float] = []
        best: dict[str, Tensor] | None = None
        best_score, kept_epoch = -math.inf, 0
        for epoch in range(1, self.settings.epochs + 1):
            losses.append(self._epoch(epoch))
            if on_epoch is not None:
                on_epoch(epoch)
            if not self.settings.patience or val_quality is None:
                kept_epoch = epoch
                continue
            scores.append(val_quality(self.module))
            if scores[-1] >= best_score:
                best, best_score, kept_epoch = copy.deepcopy(self.module.state_dict()), scores[-1], epoch
            elif epoch - kept_epoch >= self.settings.patience:
                break
        if best is not None:
            self.module.load_state_dict(best)
        return History(losses, scores, kept_epoch)

    def _epoch(self, epoch: int) -> float:
        self.module.train()
        total, count = 0.0, 0
        for indices, inputs, labels in batches(self.train, self.settings.batch_size, self.generator):
            value = self._step(indices, inputs, labels)
            if self.first_loss is None:
                self.first_loss = value
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss became {value} in epoch {epoch} at lr={self.settings.lr:.2g}; a lower lr may help"
                )
            total, count = total + value, count + 1
        mean = total / max(1, count)
        if mean > max(10.0, _DIVERGED * (self.first_loss or 1.0)):
            raise TrainingError(
                f"training diverged: mean loss {mean:.3g} in epoch {epoch}, {self.first_loss:.3g} at the start"
            )
        return mean

    def _step(self, indices: Tensor, inputs: tuple[Tensor, ...], labels: Any) -> float:
        settings, device = self.settings, torch.device(self.mode.device)
        placed = tuple(self.mode.place(x) for x in inputs)
        labels = labels.to(device) if isinstance(labels, Tensor) else labels
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * self._rate()
        self.optimizer.zero_grad(set_to_none=True)
        with self.mode.autocast():
            outputs = self.module(*placed)
        loss = torch.zeros((), device=device)
        if settings.distill_weight < 1.0 or self.teacher is None:
            share = 1.0 - settings.distill_weight if self.teacher is not None else 1.0
            loss = loss + share * self.objective.value(outputs, labels, settings.label_smoothing)
        if self.teacher is not None:
            expected = self.teacher.outputs(indices, placed, device)
            loss = loss + settings.distill_weight * self._distillation(outputs_of(outputs), expected)
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.l1:
            with torch.no_grad():
                for weight in self.weights:
                    if weight.grad is not None:
                        weight.grad.add_(weight.sign(), alpha=settings.l1)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def _distillation(self, outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> Tensor:
        temperature = self.settings.temperature
        terms = []
        for student, teacher in zip(outputs, expected, strict=True):
            student, teacher = student.float(), teacher.float()
            if self.objective.kind == "cross_entropy" and student.dim() > 1 and student.shape[1] > 1:
                log_p = F.log_softmax(student / temperature, dim=1)
                q = F.softmax(teacher / temperature, dim=1)
                # Per decision: one an example, or one a pixel.
                terms.append(F.kl_div(log_p, q, reduction="none").sum(1).mean() * temperature**2)
            else:
                terms.append(F.mse_loss(student, teacher))
        return torch.stack(terms).mean()

    def _rate(self) -> float:
        """The learning rate's factor at this step."""
        warmup = max(1, int(_WARMUP * self.total))
        if self.step < warmup:
            return (self.step + 1) / warmup
        done = min(1.0, (self.step - warmup) / max(1, self.total - warmup))
        if self.settings.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0 - done if self.settings.schedule == "linear" else 1.0


@contextlib.contextmanager
def _dropout(module: nn.Module, rate: float) -> Iterator[None]:
    """Dropout at ``rate`` while training: in the network's own dropout layers, else before its last linear layer."""
    own = [m for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    before = [m.p for m in own]
    for layer in own:
        layer.p = rate
    hook = None
    linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if not own and linear and rate > 0:
        hook = linear[-1].register_forward_pre_hook(
            lambda layer, inputs: (F.dropout(inputs[0], rate, training=layer.training), *inputs[1:]) if inputs else None
        )
    try:
        yield
    finally:
        for layer, p in zip(own, before, strict=True):
            layer.p = p
        if hook is not None:
            hook.remove()

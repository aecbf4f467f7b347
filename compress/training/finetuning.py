"""Training a pruned network again, with the regularization that a config asks for.

Loss = (1 - w) * L(outputs, labels) + w * T^2 * KL(teacher / T, student / T), with the baseline as teacher
(Hinton, Vinyals & Dean 2015); for losses other than cross-entropy the second term is the squared distance to the
teacher's outputs. To it ``feature_weight`` adds the distance of attention maps (see distilling). L2 is decoupled
(AdamW); L1 is added to the gradient as its sign. Zero epochs take BatchNorm's statistics anew and change nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.networks.running import broken_weight, outputs_of, seed_all, threads
from compress.tasks.datasets import Split, Stream, batches, sample
from compress.tasks.labels import on_device
from compress.tasks.user_code import describe
from compress.training import balancing, mixing
from compress.training.averaging import Average
from compress.training.distilling import Features, Layer, matching
from compress.training.distilling import Teacher as Teacher
from compress.training.distilling import make_teacher as make_teacher
from compress.training.distilling import predict as predict
from compress.training.objectives import Objective as Objective
from compress.training.objectives import make_objective as make_objective
from compress.training.optimizers import OptimizerFunction, make_optimizer
from compress.training.training_modes import TrainingMode, suited
from compress.values.configs import FinetuneSettings
from targets.errors import TrainingError

VERSION = 3
_WARMUP = 0.05
"""Share of the steps in which the learning rate rises: large rates right after a cut would destroy what is left."""
_DIVERGED = 50.0
"""An epoch's mean loss beyond this many times the first step's (and above 10) is divergence."""
_RECALIBRATION_BATCHES = 50


@dataclass(frozen=True)
class History:
    """Mean training loss and val quality (where it was asked) per epoch, and the epoch that was kept."""

    loss: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    kept_epoch: int = 0
    features: list[str] = field(default_factory=list)
    """The layers whose attention maps were compared with the teacher's."""


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
    optimizer: OptimizerFunction | None = None,
) -> History:
    """Train ``module`` in place and leave it on the CPU in eval mode.

    ``val_quality``: higher is better; asked after every epoch where ``settings.patience`` is set. ``optimizer``: the
    user's own in place of AdamW. Raises TrainingError when the loss or a weight becomes NaN or infinite, the loss
    diverges, or the data does not allow what ``settings`` ask for.
    """
    if teacher is not None and settings.epochs and settings.distill_weight:
        teacher.prepare()
    seed_all(seed)
    mode = suited(mode, module)
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
            loop = _Loop(module, train, settings, objective, mode, teacher, generator, seed, optimizer)
            with contextlib.closing(loop):
                history = loop.run(val_quality, on_epoch)
        bad = broken_weight(module)
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
        for i, (_, inputs, _labels) in enumerate(batches(train, min(size, mode.at_once or size), generator)):
            if i == _RECALIBRATION_BATCHES:
                break
            module(*(mode.place(x) for x in inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def own_finetune(
    function: Callable[[Any, Any, Any], Any], module: nn.Module, train: Any, settings: FinetuneSettings, seed: int
) -> nn.Module:
    """The user's own loop instead of ours. What it prints goes to stderr; what it raises ends the trial."""

    seed_all(seed)
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
    bad = broken_weight(trained)
    if bad is not None:
        raise TrainingError(f"the task's finetune left NaN or infinite values in {bad}")
    return trained.to("cpu").eval()


class _Loop:
    """One training: optimizer, schedule and epochs. What a config leaves out is None here and costs nothing."""

    def __init__(
        self,
        module: nn.Module,
        train: Split | Stream,
        settings: FinetuneSettings,
        objective: Objective,
        mode: TrainingMode,
        teacher: Teacher | None,
        generator: torch.Generator,
        seed: int,
        optimizer: OptimizerFunction | None,
    ) -> None:
        self.module, self.train, self.settings, self.objective, self.mode = module, train, settings, objective, mode
        self.teacher, self.share = teacher, settings.distill_weight if teacher is not None else 0.0
        self.generator = generator
        self.weights = [p for p in module.parameters() if p.requires_grad and p.dim() > 1]
        self.optimizer = make_optimizer(module, settings, optimizer)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.steps = max(1, math.ceil(settings.part * len(train) / settings.batch_size))
        self.total = settings.epochs * self.steps
        self.step = 0
        self.first_loss: float | None = None
        self.average = Average(module, settings.ema) if settings.ema else None
        self.mixer = mixing.Mixer(settings.mixup, seed) if settings.mixup else None
        self.class_weights: Tensor | None = None
        self.example_weights: Tensor | None = None
        if settings.balance == "loss":
            if objective.loss is not None:
                raise TrainingError("balance='loss' cannot weight a loss of the task's own; use balance='sampler'")
            self.class_weights = balancing.class_weights(train.labels).to(mode.device)
        elif settings.balance == "sampler":
            self.example_weights = balancing.example_weights(train.labels)
        self.layers: tuple[Layer, ...] = ()
        self.features: Features | None = None
        if settings.feature_weight and teacher is not None:
            self.layers = self._matching(teacher)
            self.features = Features(module, teacher.module, self.layers) if self.layers else None

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
            with contextlib.nullcontext() if self.average is None else self.average.shown():
                scores.append(val_quality(self.module))
                if scores[-1] >= best_score:
                    best, best_score, kept_epoch = copy.deepcopy(self.module.state_dict()), scores[-1], epoch
            if epoch - kept_epoch >= self.settings.patience:
                break
        if best is not None:
            self.module.load_state_dict(best)
        elif self.average is not None:
            self.average.take()
        return History(losses, scores, kept_epoch, [layer.name for layer in self.layers])

    def close(self) -> None:
        """Take the hooks off the networks."""
        if self.features is not None:
            self.features.close()

    def _matching(self, teacher: Teacher) -> tuple[Layer, ...]:
        inputs, _ = sample(self.train, 3, 0)
        theirs = teacher.module.to(torch.device(self.mode.device))
        layers = matching(self.module, theirs, tuple(self.mode.place(x) for x in inputs))
        if not layers:
            print("feature_weight: no layer with positions is in both networks; it does nothing", file=sys.stderr)
        return layers

    def _epoch(self, epoch: int) -> float:
        self.module.train()
        total, count = 0.0, 0
        for indices, inputs, labels in batches(
            self.train, self.settings.batch_size, self.generator, self.example_weights
        ):
            value = self._step(indices, inputs, labels)
            if self.first_loss is None:
                self.first_loss = value
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss became {value} in epoch {epoch} at lr={self.settings.lr:.2g}; a lower lr may help"
                )
            total, count = total + value, count + 1
            if count == self.steps:
                break
        mean = total / max(1, count)
        if mean > max(10.0, _DIVERGED * (self.first_loss or 1.0)):
            raise TrainingError(
                f"training diverged: mean loss {mean:.3g} in epoch {epoch}, {self.first_loss:.3g} at the start"
            )
        return mean

    def _step(self, indices: Tensor, inputs: tuple[Tensor, ...], labels: Any) -> float:
        device = torch.device(self.mode.device)
        labels = on_device(labels, device)
        factor = self._rate()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        value = 0.0
        # Labels of a kind of their own can only be taken whole.
        whole = [slice(len(indices))]
        for part in self.mode.parts(len(indices)) if isinstance(labels, Tensor) else whole:
            share = len(indices[part]) / len(indices)
            value += self._add_gradients(
                indices[part], tuple(x[part] for x in inputs), labels if part in whole else labels[part], share
            )
        if self.settings.l1:
            with torch.no_grad():
                for weight in self.weights:
                    if weight.grad is not None:
                        weight.grad.add_(weight.sign(), alpha=self.settings.l1)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update()
        return value

    def _add_gradients(self, indices: Tensor, inputs: tuple[Tensor, ...], labels: Any, share: float) -> float:
        """Run a part of a batch, ``share`` of it, and add what it says to the gradients; gives its part of the loss."""
        placed = tuple(self.mode.place(x) for x in inputs)
        mixed = None if self.mixer is None else self.mixer.mix(placed)
        loss = self._loss(indices if mixed is None else None, placed if mixed is None else mixed.inputs, labels, mixed)
        (loss if share == 1.0 else loss * share).backward()  # type: ignore[no-untyped-call]
        return share * float(loss.detach())

    def _loss(
        self, indices: Tensor | None, inputs: tuple[Tensor, ...], labels: Any, mixed: mixing.Mixed | None
    ) -> Tensor:
        """Of one batch; ``indices`` are None where no table knows what the teacher says of it."""
        settings, device = self.settings, torch.device(self.mode.device)
        watched = contextlib.nullcontext() if self.features is None else self.features.student.recording()
        with watched, self.mode.autocast():
            outputs = self.module(*inputs)
        loss = torch.zeros((), device=device)
        if self.share < 1.0:
            loss = loss + (1.0 - self.share) * self._supervised(outputs, labels, mixed)
        if self.teacher is None:
            return loss
        expected: tuple[Tensor, ...] = ()
        if self.features is not None:
            # The maps take a run of the teacher, which brings its outputs along.
            with self.features.teacher.recording():
                expected = self.teacher.outputs(None, inputs, device)
            loss = loss + settings.feature_weight * self.features.distance()
        elif self.share > 0.0:
            expected = self.teacher.outputs(indices, inputs, device)
        if self.share > 0.0:
            found = self.objective.divergence(outputs_of(outputs), expected, labels, settings.temperature)
            loss = loss + self.share * found
        return loss

    def _supervised(self, outputs: Any, labels: Any, mixed: mixing.Mixed | None) -> Tensor:
        """The loss against the labels; of a mixed batch, against those of both of its sides."""

        def against(wanted: Any) -> Tensor:
            return self.objective.value(outputs, wanted, self.settings.label_smoothing, self.class_weights)

        if mixed is None:
            return against(labels)
        return mixed.share * against(labels) + (1.0 - mixed.share) * against(labels[mixed.partner])

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

"""A config: one point of the search space, as plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field

from targets.errors import SpaceError

SEARCHED = ("fp32", "int8", "mixed", "int8-dynamic")
"""Precisions searched unless told otherwise, simplest first. ``mixed``: int8 but for the most sensitive layers."""
QAT = "int8-qat"
"""Trained in int8; made where ``qat_epochs`` is above 0."""
STORED = ("fp16", "int8-weights", "int4-weights")
"""Weights stored smaller and computed in floats; made where they are asked for, or a target declares that it gains."""
SCHEMES = (*SEARCHED, QAT, *STORED)
CALIBRATIONS = ("minmax", "percentile", "search")
"""How activations get their ranges; ``search``: the percentile that leaves the smallest error."""
REFINEMENTS = ("adaround", "correct_bias")
"""What may be done to the float network before it is quantized (``refining.py``)."""
SCHEDULES = ("cosine", "linear", "constant")
IMPORTANCES = ("l2", "l1", "bn", "fpgm", "random", "taylor")
ALLOCATIONS = ("uniform", "global", "sensitivity")
PENALTIES = ("bn", "group")
BALANCES = ("none", "loss", "sampler")
"""What is done about classes of uneven frequency: nothing, weights in the loss, or examples drawn more often."""
AUTO = "auto"
"""As a space's ``lr``: its range is found by a test at the start of the search."""


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise SpaceError(f"{name}={value}: must be within [{low}, {high}]")


def _count(name: str, value: int, least: int) -> None:
    """Whole numbers only: an epoch and a half cannot be trained."""
    if not isinstance(value, int):
        raise SpaceError(f"{name}={value!r}: must be a whole number")
    _within(name, value, least, 10**6)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SpaceError(f"{name}={value!r}: must be one of {', '.join(allowed)}")


@dataclass(frozen=True)
class PruneSettings:
    """How much is cut, and where: ``ratio`` everywhere, shifted per group.

    A group loses ``share + skew * robustness + delta`` of its channels; ``share`` is what the allocation gives it,
    robustness in [-0.5, 0.5] its rank in the sensitivity scan, so a positive skew cuts more where cutting hurts less.
    """

    ratio: float = 0.0
    skew: float = 0.0
    deltas: dict[str, float] = field(default_factory=dict)
    importance: str = "l2"
    """How channels are ranked (``pruning/importance.py``); ``taylor``: by the change of the loss on train batches."""
    allocation: str = "uniform"
    """Share of each group: the ``ratio`` itself; or such that ``ratio`` of all channels goes: the least important
    wherever they are (``global``), or so that each group's cut by itself costs the same loss (``sensitivity``)."""
    steps: int = 1
    """Cuts on the way to the final widths, the epochs divided among them; 1: in one shot."""
    depth: float = 0.0
    """Share of the removable residual blocks that is dropped, least harmful first."""
    sparsity: float = 0.0
    """Strength of sparsity learning before pruning: the share of an average channel's norm that the penalty takes away
    where nothing holds it up; 0: none."""
    sparsity_kind: str = "bn"
    """``bn``: L1 on BatchNorm scales (Liu et al. 2017); ``group``: group lasso on whole channels (Wen et al. 2016)."""
    sparsity_epochs: int = 4

    def __post_init__(self) -> None:
        _within("prune_ratio", self.ratio, 0.0, 0.99)
        _within("prune_skew", self.skew, -2.0, 2.0)
        for group, delta in self.deltas.items():
            _within(f"prune_delta{'.' * bool(group)}{group}", delta, -1.0, 1.0)
        _one_of("importance", self.importance, IMPORTANCES)
        _one_of("allocation", self.allocation, ALLOCATIONS)
        _count("prune_steps", self.steps, 1)
        _within("depth", self.depth, 0.0, 1.0)
        _within("sparsity", self.sparsity, 0.0, 100.0)
        _one_of("sparsity_kind", self.sparsity_kind, PENALTIES)
        _count("sparsity_epochs", self.sparsity_epochs, 1)


@dataclass(frozen=True)
class FinetuneSettings:
    """How a pruned network is trained again. ``epochs=0``: only BatchNorm statistics are taken anew."""

    epochs: int = 0
    batch_size: int = 64
    lr: float = 1e-3
    schedule: str = "cosine"
    weight_decay: float = 0.0
    """L2, decoupled (AdamW); not applied to biases and normalisation weights."""
    l1: float = 0.0
    """L1 on the same weights."""
    dropout: float = 0.0
    """Replaces the rate of the network's own dropout layers, or acts on the input of its last linear layer."""
    label_smoothing: float = 0.0
    distill_weight: float = 0.0
    """Share of the loss that comes from the baseline's outputs (Hinton et al. 2015)."""
    temperature: float = 4.0
    patience: int = 0
    """Stop after this many epochs without a better value on val; 0: never."""
    short_share: float = 0.0
    """Share of the epochs that make a short training, after which hopeless networks get no more
    (``early_stopping.py``); 0: none."""
    ema: float = 0.0
    """Decay of the average of the weights that is kept in place of the last ones; 0: the last ones."""
    mixup: float = 0.0
    """Alpha of the Beta distribution that pairs of examples are mixed by (Zhang et al. 2018); 0: not mixed."""
    feature_weight: float = 0.0
    """Weight of the distance to the baseline's attention maps (Zagoruyko & Komodakis 2017), added to the loss."""
    balance: str = "none"
    """Rare classes count as much as frequent ones: by weights in the ``loss``, or by the ``sampler``."""

    def __post_init__(self) -> None:
        _count("epochs", self.epochs, 0)
        _count("batch_size", self.batch_size, 1)
        _count("patience", self.patience, 0)
        _within("lr", self.lr, 0.0, 100.0)
        _one_of("schedule", self.schedule, SCHEDULES)
        for name in ("weight_decay", "l1"):
            _within(name, getattr(self, name), 0.0, 10.0)
        for name in ("dropout", "label_smoothing"):
            _within(name, getattr(self, name), 0.0, 0.95)
        for name in ("distill_weight", "short_share"):
            _within(name, getattr(self, name), 0.0, 1.0)
        _within("temperature", self.temperature, 0.1, 100.0)
        _within("ema", self.ema, 0.0, 0.99999)
        for name in ("mixup", "feature_weight"):
            _within(name, getattr(self, name), 0.0, 1000.0)
        _one_of("balance", self.balance, BALANCES)


@dataclass(frozen=True)
class PrecisionSettings:
    """How the trained network is stored and computed."""

    scheme: str = "fp32"
    calibration: str = "minmax"
    float_share: float = 0.0
    """For ``mixed``: share of the quantizable layers that stay in float, most sensitive first."""
    format: str = ""
    """Types of activations and weights, as the target's kernels want them: ``u8s8`` or ``s8s8``; not searched."""
    adaround: bool = False
    """Weights are rounded by what their layer puts out, not each to the nearest (Nagel et al. 2020)."""
    correct_bias: bool = False
    """Biases make up for the shifts of the means that quantization causes (Nagel et al. 2019)."""
    qat_epochs: int = 0
    """Epochs of training in int8, from the fine-tuned network, for a candidate of its own (``int8-qat``); 0: none."""
    qat_lr: float = 0.1
    """Its learning rate, as a share of the fine-tuning's."""

    def __post_init__(self) -> None:
        _one_of("precision", self.scheme, SCHEMES)
        _one_of("calibration", self.calibration, CALIBRATIONS)
        _within("float_share", self.float_share, 0.0, 1.0)
        for name in REFINEMENTS:
            if not isinstance(getattr(self, name), bool):
                raise SpaceError(f"{name}={getattr(self, name)!r}: must be True or False")
        _count("qat_epochs", self.qat_epochs, 0)
        _within("qat_lr", self.qat_lr, 0.0, 100.0)


def is_refined(settings: PrecisionSettings) -> bool:
    """Whether anything is done to the float network before it is quantized."""
    return any(getattr(settings, name) for name in REFINEMENTS)


@dataclass(frozen=True)
class Config:
    """Pruning, fine-tuning and precision together."""

    prune: PruneSettings = PruneSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    precision: PrecisionSettings = PrecisionSettings()

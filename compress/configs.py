"""A config: one point of the search space, as plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field

from targets.errors import SpaceError

SCHEMES = ("fp32", "int8", "mixed", "int8-dynamic")
"""Precisions, simplest first. ``mixed``: int8, with the most sensitive layers left in float."""
CALIBRATIONS = ("minmax", "entropy", "percentile")
SCHEDULES = ("cosine", "linear", "constant")


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

    A group loses ``ratio + skew * robustness + delta`` of its channels; robustness in [-0.5, 0.5] is its rank
    in the sensitivity scan, so a positive skew cuts more where cutting hurts less.
    """

    ratio: float = 0.0
    skew: float = 0.0
    deltas: dict[str, float] = field(default_factory=dict)
    importance: str = "l2"

    def __post_init__(self) -> None:
        _within("prune_ratio", self.ratio, 0.0, 0.99)
        _within("prune_skew", self.skew, -2.0, 2.0)
        for group, delta in self.deltas.items():
            _within(f"prune_delta{'.' * bool(group)}{group}", delta, -1.0, 1.0)


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
        _within("distill_weight", self.distill_weight, 0.0, 1.0)
        _within("temperature", self.temperature, 0.1, 100.0)


@dataclass(frozen=True)
class PrecisionSettings:
    """How the trained network is stored and computed."""

    scheme: str = "fp32"
    calibration: str = "minmax"
    float_share: float = 0.0
    """For ``mixed``: share of the quantizable layers that stay in float, most sensitive first."""
    format: str = ""
    """Types of activations and weights, as the target's kernels want them: ``u8s8`` or ``s8s8``; not searched."""

    def __post_init__(self) -> None:
        _one_of("precision", self.scheme, SCHEMES)
        _one_of("calibration", self.calibration, CALIBRATIONS)
        _within("float_share", self.float_share, 0.0, 1.0)


@dataclass(frozen=True)
class Config:
    """Pruning, fine-tuning and precision together."""

    prune: PruneSettings = PruneSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    precision: PrecisionSettings = PrecisionSettings()

"""The search space: for every setting a domain to search, or a constant.

The space is *guided* (findings: how the space is put beats which sampler walks it): one pruning ratio for the
whole network, a skew along a measured sensitivity scan, and small deltas per group.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from compress.values.configs import (
    AUTO,
    QAT,
    REFINEMENTS,
    SEARCHED,
    Config,
    FinetuneSettings,
    PrecisionSettings,
    PruneSettings,
)
from targets.errors import SpaceError

MOST_DELTAS = 16
"""Groups that get a delta of their own; beyond that the space would be too wide for the trials there are."""
_CHANNELS = ("importance", "allocation", "sparsity", "sparsity_kind", "sparsity_epochs")
"""What says something of a network with channels to prune only, beside all that is called ``prune_...``."""


@dataclass(frozen=True)
class Float:
    """Real numbers from ``low`` to ``high``; ``log``: uniform in the logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not all(isinstance(bound, (int, float)) for bound in (self.low, self.high)):
            raise SpaceError(f"Float({self.low!r}, {self.high!r}): needs numbers")
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise SpaceError(f"Float({self.low}, {self.high}, log={self.log}): needs low <= high, and low > 0 with log")

    def holds(self, value: Any) -> bool:
        """Whether ``value`` lies in the domain."""
        return isinstance(value, (int, float)) and self.low <= value <= self.high


@dataclass(frozen=True)
class Int:
    """Whole numbers from ``low`` to ``high``, both included."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise SpaceError(f"Int({self.low!r}, {self.high!r}): needs whole numbers; Float is for others")
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise SpaceError(f"Int({self.low}, {self.high}, log={self.log}): needs low <= high, and low > 0 with log")

    def holds(self, value: Any) -> bool:
        """Whether ``value`` lies in the domain."""
        return isinstance(value, int) and self.low <= value <= self.high


@dataclass(frozen=True)
class Choice:
    """One of a few named values."""

    values: tuple[bool | float | int | str, ...]

    def __init__(self, *values: Any) -> None:
        flat = tuple(values[0]) if len(values) == 1 and isinstance(values[0], (list, tuple)) else values
        if not flat:
            raise SpaceError("Choice(): needs at least one value")
        object.__setattr__(self, "values", flat)

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is one of the values."""
        return value in self.values


Domain: TypeAlias = Float | Int | Choice | float | int | str


@dataclass(frozen=True)
class SearchSpace:
    """What may vary. Give a domain to search it, a constant to fix it; the names are those of a config."""

    prune_ratio: Domain = Float(0.0, 0.9)
    prune_skew: Domain = Float(-0.8, 0.8)
    prune_delta: Domain = Float(-0.25, 0.25)
    """One for every group, as ``prune_delta.GROUP``."""
    importance: Domain = "l2"
    allocation: Domain = "uniform"
    prune_steps: Domain = 1
    depth: Domain = 0.0
    """Share of the removable residual blocks that is dropped."""
    sparsity: Domain = 0.0
    """Above 0: the network is trained with a penalty on channels first, once for every setting."""
    sparsity_kind: Domain = "bn"
    sparsity_epochs: Domain = 4
    epochs: Domain = Int(4, 16)
    batch_size: Domain = 64
    lr: Domain = Float(3e-4, 1e-2, log=True)
    """``"auto"``: from a range that is found for the network when the search begins."""
    schedule: Domain = "cosine"
    weight_decay: Domain = Float(1e-6, 1e-2, log=True)
    l1: Domain = Float(1e-8, 1e-4, log=True)
    dropout: Domain = Float(0.0, 0.4)
    label_smoothing: Domain = Float(0.0, 0.15)
    distill_weight: Domain = Float(0.0, 1.0)
    temperature: Domain = Float(1.0, 8.0)
    patience: Domain = 0
    short_share: Domain = 0.0
    """Above 0: a short training first, the rest of the epochs for networks that are not hopeless after it."""
    ema: Domain = 0.0
    mixup: Domain = 0.0
    feature_weight: Domain = 0.0
    balance: Domain = "none"
    precision: Domain = Choice(*SEARCHED)
    calibration: Domain = Choice("minmax", "percentile")
    float_share: Domain = Float(0.1, 0.6)
    adaround: Domain = False
    correct_bias: Domain = False
    qat_epochs: Domain = 0
    qat_lr: Domain = 0.1

    def __post_init__(self) -> None:
        for name, domain in self.domains().items():
            if (name, domain) == ("lr", AUTO):
                continue
            for value in corners(domain):
                _check(name, value)
        if QAT in corners(self.precision) and not self._trains_int8():
            raise SpaceError(f"precision has {QAT!r}, but qat_epochs={self.qat_epochs}: set it to 1 or more")

    def domains(self) -> dict[str, Domain]:
        """Field name -> domain or constant."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def dimensions(self, groups: tuple[str, ...], blocks: int = 0) -> dict[str, Float | Int | Choice]:
        """What a sampler chooses: searched fields by name, the delta once per group.

        ``groups``: the prunable ones; ``blocks``: number of removable residual blocks.
        """
        found: dict[str, Float | Int | Choice] = {}
        for name, domain in self.domains().items():
            if not isinstance(domain, (Float, Int, Choice)):
                continue
            if name == "precision":
                found[name] = Choice(*self.schemes())
            elif name == "prune_delta":
                # With one group, a delta is the ratio over again.
                if 1 < len(groups) <= MOST_DELTAS:
                    found.update({f"prune_delta.{group}": domain for group in groups})
            elif (
                (name == "prune_skew" and len(groups) < 2)
                or (name == "depth" and not blocks)
                or ((name.startswith("prune_") or name in _CHANNELS) and not groups)
            ):
                continue
            else:
                found[name] = domain
        return found

    def config(self, params: dict[str, Any]) -> Config:
        """The config that a sampler's ``params`` mean; constants come from the space, the rest is neutral."""
        values = {n: d for n, d in self.domains().items() if not isinstance(d, (Float, Int, Choice))}
        values.update({n: v for n, v in params.items() if not n.startswith("prune_delta.")})
        if values.get("lr") == AUTO:  # not found out (nothing is trained)
            del values["lr"]
        delta = values.pop("prune_delta", 0.0)
        deltas = {n.removeprefix("prune_delta."): float(v) for n, v in params.items() if n.startswith("prune_delta.")}
        channels: dict[str, Any] = {name: values[name] for name in (*_CHANNELS, "depth") if name in values}
        training: dict[str, Any] = {f.name: values[f.name] for f in fields(FinetuneSettings) if f.name in values}
        return Config(
            PruneSettings(
                ratio=min(0.99, max(0.0, float(values.get("prune_ratio", 0.0)) + (0.0 if deltas else float(delta)))),
                skew=float(values.get("prune_skew", 0.0)),
                deltas=deltas,
                steps=int(values.get("prune_steps", 1)),
                **channels,
            ),
            FinetuneSettings(**training),
            PrecisionSettings(
                scheme=str(values.get("precision", "fp32")),
                calibration=str(values.get("calibration", "minmax")),
                float_share=float(values.get("float_share", 0.0)),
                adaround=bool(values.get("adaround", False)),
                correct_bias=bool(values.get("correct_bias", False)),
                qat_epochs=int(values.get("qat_epochs", 0)),
                qat_lr=float(values.get("qat_lr", 0.1)),
            ),
        )

    def schemes(self) -> tuple[str, ...]:
        """The precisions in the space, in its order; training in int8 adds one."""
        values = self.precision.values if isinstance(self.precision, Choice) else (self.precision,)
        found = tuple(str(value) for value in values)
        return (*found, QAT) if self._trains_int8() and QAT not in found else found

    def _trains_int8(self) -> bool:
        return any(value > 0 for value in corners(self.qat_epochs))


def middle(domain: Domain) -> Any:
    """A domain's centre (of the logarithm where it is logarithmic; the first of a choice), or the constant."""
    if isinstance(domain, Choice):
        return domain.values[0]
    if isinstance(domain, (Float, Int)):
        centre = (domain.low * domain.high) ** 0.5 if domain.log else (domain.low + domain.high) / 2
        return round(centre) if isinstance(domain, Int) else centre
    return domain


def nearest(domain: Float | Int | Choice, value: Any) -> Any:
    """``value`` moved into the domain."""
    if isinstance(domain, Choice):
        return value if domain.holds(value) else domain.values[0]
    bounded = min(max(value, domain.low), domain.high)
    return round(bounded) if isinstance(domain, Int) else float(bounded)


def corners(domain: Domain) -> tuple[Any, ...]:
    """The values of a choice, the ends of a range, or the constant."""
    if isinstance(domain, Choice):
        return domain.values
    return (domain.low, domain.high) if isinstance(domain, (Float, Int)) else (domain,)


def _check(name: str, value: Any) -> None:
    """Raise SpaceError if a config with ``name=value`` could not exist."""
    try:
        if name == "prune_ratio":
            PruneSettings(ratio=value)
        elif name == "prune_skew":
            PruneSettings(skew=value)
        elif name == "prune_delta":
            PruneSettings(deltas={"": value})
        elif name == "prune_steps":
            PruneSettings(steps=value)
        elif name in (*_CHANNELS, "depth"):
            PruneSettings(**{name: value})
        elif name == "precision":
            PrecisionSettings(scheme=value)
        elif name in ("calibration", "float_share", "qat_epochs", "qat_lr", *REFINEMENTS):
            PrecisionSettings(**{name: value})
        else:
            FinetuneSettings(**{name: value})
    except TypeError:
        raise SpaceError(f"{name}={value!r}: must be a number, or a Float, Int or Choice to search") from None

"""What a search may vary: a domain, or a constant, for every setting of a config."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from compress.values.configs import (
    QAT,
    SEARCHED,
    Config,
    FinetuneSettings,
    PrecisionSettings,
    PruneSettings,
    row,
)
from compress.values.domains import Choice, Domain, Float, Int, corners
from compress.values.networks import network_of, settings_in
from targets.errors import SpaceError

AUTO = "auto"
"""As a space's ``lr``: its range is found by a test at the start of the search. As ``epochs`` and ``depth``: as many as
the time affords, and any blocks, where networks are chosen by their costs; to other samplers ``Int(4, 16)`` and 0."""
AUTO_EPOCHS = Int(4, 16)
_MAY_BE_AUTO = ("lr", "epochs", "depth")


@dataclass(frozen=True)
class SearchSpace:
    """What may vary. Give a domain to search a setting, a constant to fix it.

    The names are those of the settings; what each means stands in its row above. ``prune_delta`` is searched once for
    every group, as ``prune_delta.GROUP``; ``lr="auto"`` is searched in a range that is found when the search begins.
    Raises SpaceError for a value that no config can have.
    """

    prune_ratio: Domain = Float(0.0, 0.9)
    prune_skew: Domain = Float(-0.8, 0.8)
    prune_delta: Domain = Float(-0.25, 0.25)
    importance: Domain = "l2"
    allocation: Domain = "uniform"
    prune_steps: Domain = 1
    depth: Domain = AUTO
    sparsity: Domain = 0.0
    sparsity_kind: Domain = "bn"
    sparsity_epochs: Domain = 4
    epochs: Domain = AUTO
    batch_size: Domain = 64
    lr: Domain = Float(3e-4, 1e-2, log=True)
    schedule: Domain = "cosine"
    weight_decay: Domain = Float(1e-6, 1e-2, log=True)
    l1: Domain = Float(1e-8, 1e-4, log=True)
    dropout: Domain = Float(0.0, 0.4)
    label_smoothing: Domain = Float(0.0, 0.15)
    distill_weight: Domain = Float(0.0, 1.0)
    temperature: Domain = Float(1.0, 8.0)
    patience: Domain = 0
    short_share: Domain = 0.0
    ema: Domain = 0.0
    mixup: Domain = 0.0
    feature_weight: Domain = 0.0
    balance: Domain = "none"
    precision: Domain = Choice(*SEARCHED)
    calibration: Domain = Choice("minmax", "percentile")
    float_share: Domain = Float(0.1, 0.9)
    int8_operators: Domain = Choice("all", "products")
    adaround: Domain = False
    correct_bias: Domain = False
    qat_epochs: Domain = 0
    qat_lr: Domain = 0.1

    def __post_init__(self) -> None:
        for name, domain in self.domains().items():
            if name in _MAY_BE_AUTO and domain == AUTO:
                continue
            for value in corners(domain):
                row(name).setting.values.check(name, value)
        if QAT in corners(self.precision) and not self._trains_int8():
            raise SpaceError(f"precision has {QAT!r}, but qat_epochs={self.qat_epochs}: set it to 1 or more")

    def domains(self) -> dict[str, Domain]:
        """Setting's name -> its domain, or the constant it is fixed to."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def dimensions(
        self, groups: tuple[str, ...], blocks: int = 0, lossy_operators: int = 0
    ) -> dict[str, Float | Int | Choice]:
        """What a sampler chooses: searched settings by name, the delta once per group.

        ``groups``: names of the prunable ones; ``blocks``: number of removable blocks; ``lossy_operators``: of
        operators, other than products, that lose much in int8. What the network has nothing for is no dimension.
        """
        found: dict[str, Float | Int | Choice] = {}
        for name, domain in self.domains().items():
            needs = row(name).setting.needs
            if (name, domain) == ("epochs", AUTO):
                domain = AUTO_EPOCHS
            if not isinstance(domain, (Float, Int, Choice)) or not needs.met(len(groups), blocks, lossy_operators):
                continue
            if name == "precision":
                found[name] = Choice(*self.schemes())
            elif name == "prune_delta":
                found.update({f"prune_delta.{group}": domain for group in groups})
            else:
                found[name] = domain
        return found

    def config(self, params: dict[str, Any]) -> Config:
        """The config that a sampler's ``params`` mean; constants come from the space, the rest is neutral.

        ``params`` may name one exact network (``networks.params_of``), which then stands in place of ratios.
        """
        network, params = network_of(params), settings_in(params)
        values = {n: d for n, d in self.domains().items() if not isinstance(d, (Float, Int, Choice))}
        values.update({n: v for n, v in params.items() if not n.startswith("prune_delta.")})
        # Not found out (nothing is trained), or left to whoever chooses networks.
        values = {n: v for n, v in values.items() if not (n in _MAY_BE_AUTO and v == AUTO)}
        delta, part = values.pop("prune_delta", 0.0), float(values.pop("part", 1.0))
        deltas = {n.removeprefix("prune_delta."): float(v) for n, v in params.items() if n.startswith("prune_delta.")}
        parts: dict[type, dict[str, Any]] = {PruneSettings: {}, FinetuneSettings: {}, PrecisionSettings: {}}
        for name, value in values.items():
            one = row(name)
            parts[one.part][one.field] = one.setting.values.cast(value)
        prune = parts[PruneSettings]
        parts[FinetuneSettings] |= {} if part == 1.0 else {"part": part}
        if network is not None:
            prune |= {"widths": network.width_of, "dropped": network.dropped, "depth": 0.0}
        # A constant delta is the same for all groups, so it moves the ratio.
        ratio = float(prune.pop("ratio", 0.0)) + (0.0 if deltas else float(delta))
        return Config(
            PruneSettings(ratio=min(0.99, max(0.0, ratio)), deltas=deltas, **prune),
            FinetuneSettings(**parts[FinetuneSettings]),
            PrecisionSettings(**parts[PrecisionSettings]),
        )

    def schemes(self) -> tuple[str, ...]:
        """The precisions in the space, in its order; training in int8 adds one."""
        values = self.precision.values if isinstance(self.precision, Choice) else (self.precision,)
        found = tuple(str(value) for value in values)
        return (*found, QAT) if self._trains_int8() and QAT not in found else found

    def _trains_int8(self) -> bool:
        return any(value > 0 for value in corners(self.qat_epochs))

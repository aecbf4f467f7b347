"""A config: every setting of a search, each said once.

A setting is a field of one of the config's three parts, with its row beside it (``settings.py``): what it may be,
what it needs, whether it changes what a network costs. Its neutral value is the field's default. What is searched
unless told otherwise is the field of the same name in ``SearchSpace`` (``search_spaces.py``). To add a setting, add the
two, use it in its stage, and test that.
"""

from __future__ import annotations

from dataclasses import dataclass

from compress.values.settings import (
    BLOCKS,
    GROUPS,
    LARGEST,
    LOSSY_OPERATORS,
    SEVERAL_GROUPS,
    ForEachGroup,
    Needs,
    OneOf,
    Row,
    Whole,
    Within,
    YesNo,
    check_all,
    rows_of,
    setting,
    unsearched,
)
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
OPERATORS = ("all", "products", "convolutions")
"""Which operators static int8 quantizes: all that have integer kernels, convolutions and matrix products, or the former
alone; with the products, also what moves their values and loses nothing (ReLU, Reshape, MaxPool)."""
REFINEMENTS = ("adaround", "correct_bias")
"""What may be done to the float network before it is quantized (``refining.py``)."""
SCHEDULES = ("cosine", "linear", "constant")
IMPORTANCES = ("l2", "l1", "bn", "fpgm", "random", "taylor")
ALLOCATIONS = ("uniform", "global", "sensitivity")
PENALTIES = ("bn", "group")
BALANCES = ("none", "loss", "sampler")
"""What is done about classes of uneven frequency: nothing, weights in the loss, or examples drawn more often."""
MOST_DELTAS = 16
"""Groups that get a delta of their own; beyond that the space would be too wide for the trials there are."""


@dataclass(frozen=True)
class PruneSettings:
    """How much is cut, and where: ``ratio`` everywhere, shifted per group.

    A group loses ``share + skew * robustness + delta`` of its channels; ``share`` is what the allocation gives it,
    robustness in [-0.5, 0.5] its rank in the sensitivity scan, so a positive skew cuts more where cutting hurts less.
    Raises SpaceError for a value that is not allowed.
    """

    ratio: float = setting(
        0.0,
        Within(0.0, 0.99),
        "share of channels removed, over the whole network",
        name="prune_ratio",
        needs=GROUPS,
        changes_cost=True,
        steady=0.5,
    )
    skew: float = setting(
        0.0,
        Within(-2.0, 2.0),
        "how much more is cut where a scan of the baseline found that cutting hurts less",
        name="prune_skew",
        needs=SEVERAL_GROUPS,
        changes_cost=True,
        steady=0.0,
    )
    deltas: dict[str, float] = setting(
        dict,
        # With one group, a delta is the ratio over again.
        ForEachGroup(Within(-1.0, 1.0)),
        "added to the ratio, once for each group of layers",
        name="prune_delta",
        needs=Needs(groups=2, most_groups=MOST_DELTAS),
        changes_cost=True,
        steady=0.0,
    )
    importance: str = setting(
        "l2",
        # Where the allocation is global, the widths follow from the importance of channels.
        OneOf(IMPORTANCES),
        "how channels are ranked: `l2`, `l1`, `bn`, `fpgm`, `taylor` or `random`",
        needs=GROUPS,
        changes_cost=True,
    )
    allocation: str = setting(
        "uniform",
        OneOf(ALLOCATIONS),
        "the same share of every group (`uniform`), the least important wherever they are (`global`), or so that "
        "every group's cut hurts alike (`sensitivity`)",
        needs=GROUPS,
        changes_cost=True,
    )
    steps: int = setting(
        1,
        Whole(1),
        "cuts on the way to the final widths, the epochs divided among them",
        name="prune_steps",
        needs=GROUPS,
        steady=1,
    )
    depth: float = setting(
        0.0,
        Within(0.0, 1.0),
        "share of the removable blocks (residual ones, repeats of equal layers) that is dropped, the least harmful "
        'first; `"auto"`: any of them to `cost-aware`, none to other samplers',
        needs=BLOCKS,
        changes_cost=True,
        steady=0.0,
    )
    sparsity: float = setting(
        0.0,
        # The share of an average channel's norm that the penalty takes away where nothing holds it up. Where the
        # allocation is global, the widths follow from what the penalty leaves.
        Within(0.0, 100.0),
        "strength of a penalty on channels with which the network is trained before it is cut; 0: off",
        needs=GROUPS,
        changes_cost=True,
        steady=0.0,
    )
    sparsity_kind: str = setting(
        "bn",
        # Liu et al. 2017; Wen et al. 2016.
        OneOf(PENALTIES),
        "L1 on batch-norm scales (`bn`), or a group lasso on whole channels (`group`)",
        needs=GROUPS,
        changes_cost=True,
    )
    sparsity_epochs: int = setting(4, Whole(1), "epochs of that training", needs=GROUPS, changes_cost=True)
    widths: dict[str, int] = unsearched(dict, omitted=True)
    """One exact network: group -> channels left, the others staying whole. Where it is given, ratio, skew, deltas and
    allocation are not looked at. The groups are those of the network without the blocks that are dropped."""
    dropped: tuple[str, ...] = unsearched((), omitted=True)
    """Blocks that are dropped by their names, beside those that ``depth`` drops."""

    def __post_init__(self) -> None:
        check_all(self)
        for name, width in self.widths.items():
            Whole(1).check(f"widths.{name}", width)
        if isinstance(self.dropped, str) or not all(isinstance(name, str) for name in self.dropped):
            raise SpaceError(f"dropped={self.dropped!r}: must be a tuple of blocks' names")


@dataclass(frozen=True)
class FinetuneSettings:
    """How a pruned network is trained again. ``epochs=0``: only BatchNorm statistics are taken anew.

    Raises SpaceError for a value that is not allowed.
    """

    epochs: int = setting(
        0,
        # Training in int8 has epochs of its own.
        Whole(0),
        'epochs of fine-tuning; `"auto"`: as many as the time affords to `cost-aware`, `Int(4, 16)` to other samplers',
        steady=LARGEST,
        in_int8_training=False,
    )
    batch_size: int = setting(64, Whole(1), "examples in one step of training")
    lr: float = setting(
        1e-3,
        Within(0.0, 100.0),
        'the optimizer\'s learning rate; `"auto"`: from a range that a test finds when the search begins',
        steady=3e-3,
    )
    schedule: str = setting("cosine", OneOf(SCHEDULES), "how the learning rate falls: `cosine`, `linear` or `constant`")
    weight_decay: float = setting(
        0.0,
        # Not applied to biases and normalisation weights.
        Within(0.0, 10.0),
        "strength of L2 regularization, decoupled from the gradient as in AdamW",
        steady=1e-4,
    )
    l1: float = setting(
        0.0, Within(0.0, 10.0), "strength of L1 regularization of the same weights", steady=0.0, in_int8_training=False
    )
    dropout: float = setting(
        0.0,
        Within(0.0, 0.95),
        "rate of the network's own dropout layers, or on the input of its last linear layer",
        steady=0.0,
        in_int8_training=False,
    )
    label_smoothing: float = setting(
        0.0, Within(0.0, 0.95), "share of a label that is spread over all classes", steady=0.0
    )
    distill_weight: float = setting(
        0.0,
        # Hinton et al. 2015.
        Within(0.0, 1.0),
        "share of the loss that comes from the baseline's outputs",
        steady=0.7,
    )
    temperature: float = setting(
        4.0,
        Within(0.1, 100.0),
        "temperature of the distillation: how much outputs are softened before they are compared",
        steady=4.0,
    )
    patience: int = setting(
        0, Whole(0), "stop after so many epochs without a gain on val; 0: never", in_int8_training=False
    )
    short_share: float = setting(
        0.0,
        Within(0.0, 1.0),
        "share of the epochs after which a network is judged, and a hopeless one trained no further; 0: off",
        in_int8_training=False,
    )
    ema: float = setting(
        0.0,
        Within(0.0, 0.99999),
        "decay of an average of the weights, which is kept in place of the last ones; 0: off",
        in_int8_training=False,
    )
    mixup: float = setting(
        0.0,
        # Zhang et al. 2018.
        Within(0.0, 1000.0),
        "alpha of the Beta distribution by which pairs of examples are mixed; 0: off",
        in_int8_training=False,
    )
    feature_weight: float = setting(
        0.0,
        # Zagoruyko & Komodakis 2017.
        Within(0.0, 1000.0),
        "weight of the distance between attention maps of inner layers and the baseline's; 0: off",
        in_int8_training=False,
    )
    part: float = unsearched(1.0, omitted=True)
    """Share of the train set that is an epoch, where whole ones take too long."""
    balance: str = setting(
        "none",
        OneOf(BALANCES),
        "rare classes count as much as frequent ones: `none`, by weights in the `loss`, by the `sampler`",
    )

    def __post_init__(self) -> None:
        check_all(self)


@dataclass(frozen=True)
class PrecisionSettings:
    """How the trained network is stored and computed. Raises SpaceError for a value that is not allowed."""

    scheme: str = setting(
        "fp32",
        OneOf(SCHEMES),
        "`fp32`, `int8`, `mixed` (int8, the most sensitive layers in float), `int8-dynamic`; when asked for, weights "
        "alone: `fp16`, `int8-weights`, `int4-weights` (matrix products)",
        name="precision",
        changes_cost=True,
    )
    calibration: str = setting(
        "minmax",
        OneOf(CALIBRATIONS),
        "how int8 ranges are found: `minmax`, `percentile` (99.99), or a `search` for the best percentile",
    )
    float_share: float = setting(
        0.0,
        Within(0.0, 1.0),
        "for `mixed`: share of layers that stay in float, the most sensitive first",
        changes_cost=True,
        steady=0.2,
    )
    int8_operators: str = setting(
        "all",
        # Searched only where int8 takes much from an operator that is no product.
        OneOf(OPERATORS),
        "what static int8 quantizes: `all` operators, convolutions and matrix `products`, or `convolutions` alone; "
        "searched where others lose much",
        needs=LOSSY_OPERATORS,
        changes_cost=True,
        steady="products",
    )
    format: str = unsearched("")
    """Types of activations and weights, as the target's kernels want them: ``u8s8`` or ``s8s8``; not searched."""
    adaround: bool = setting(
        False,
        # Nagel et al. 2020.
        YesNo(),
        "round each weight up or down so that its layer's output changes least, instead of to the nearest value",
    )
    correct_bias: bool = setting(
        False,
        # Nagel et al. 2019. A layer without a bias gets one.
        YesNo(),
        "correct biases by what rounding the weights adds to the mean of each channel",
        changes_cost=True,
    )
    qat_epochs: int = setting(
        0, Whole(0), "epochs of quantization-aware training, which gives a candidate of its own (`int8-qat`); 0: off"
    )
    qat_lr: float = setting(0.1, Within(0.0, 100.0), "its learning rate, as a share of `lr`")

    def __post_init__(self) -> None:
        check_all(self)


SETTINGS = rows_of(PruneSettings, FinetuneSettings, PrecisionSettings)
"""Name in a search space -> row, for every setting."""


def row(dimension: str) -> Row:
    """The row of a search's dimension; ``prune_delta.GROUP`` is one of ``prune_delta``."""
    return SETTINGS[dimension.partition(".")[0]]


def is_refined(settings: PrecisionSettings) -> bool:
    """Whether anything is done to the float network before it is quantized."""
    return any(getattr(settings, name) for name in REFINEMENTS)


@dataclass(frozen=True)
class Config:
    """Pruning, fine-tuning and precision together: one point of a search space."""

    prune: PruneSettings = PruneSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    precision: PrecisionSettings = PrecisionSettings()

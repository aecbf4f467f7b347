"""What the stages of a search work with: made once at the start, never changed.

A stage is handed the parts that it uses; ``Context`` holds them together for the trial and for stages that use most.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compress.pruning.blocks import find_blocks, groups_without

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import onnx
    from torch import Tensor, nn

    from compress.measurement.scoring import Scorer
    from compress.metrics.metrics import Metric
    from compress.onnx_files.limits import VersionLimits
    from compress.precision.schemes import Variant
    from compress.pruning.blocks import Blocks
    from compress.pruning.groups import Groups
    from compress.run_folder.caching import Cache
    from compress.run_folder.runs import Run
    from compress.tasks.datasets import Split, Stream
    from compress.tasks.tasks import Task
    from compress.training.distilling import Teacher
    from compress.training.objectives import Objective
    from compress.training.optimizers import OptimizerFunction
    from compress.training.training_key import TrainingKey
    from compress.training.training_modes import TrainingMode
    from compress.values.candidates import Candidate, LayerDamage
    from compress.values.configs import FinetuneSettings
    from compress.values.search_spaces import SearchSpace
    from targets.target import Capabilities, Protocol, Target

Say = Callable[[str], None]


@dataclass(frozen=True)
class Profile:
    """What was found out about the baseline once: where to cut, and what int8 costs each layer."""

    groups: Groups
    int8_order: tuple[int | str, ...]
    """Positions of the quantizable layers, and names of other operators that lose much in int8; the one that is kept in
    float first comes first."""
    int8_damage: tuple[LayerDamage, ...] = ()
    """What int8 takes from each layer and operator, the worst first."""
    lossy_operators: tuple[str, ...] = ()
    """Operators, other than products, that lose much in int8."""
    scan: Callable[[], Mapping[str, float]] = dict
    """Gives group -> loss on train examples with half of that group cut alone; it runs the network for each group."""

    @cached_property
    def robustness(self) -> dict[str, float]:
        """Group -> rank in the sensitivity scan, from -0.5 (cutting hurts most) to 0.5; scanned when asked for."""
        losses = self.scan()
        ranked = sorted(losses, key=lambda name: -losses[name])
        last = max(1, len(ranked) - 1)
        return {name: i / last - 0.5 for i, name in enumerate(ranked)}


@dataclass(frozen=True)
class TargetSet:
    """The targets of a search, and what follows from what they can do."""

    all: tuple[Target, ...]
    """The first one decides what ships."""
    describe: Mapping[str, Any]
    """Target's name -> its description: part of every measurement's key."""
    abilities: Mapping[str, Capabilities]
    """Target's name -> what it can do, as measured."""
    limits: VersionLimits
    """What every target's runtime accepts."""
    step: int
    """Widths are multiples of this: good for all targets."""
    variants: tuple[Variant, ...]
    """The files every network is written as."""

    @property
    def first(self) -> Target:
        """The target that decides feasibility and what is shipped."""
        return self.all[0]


@dataclass(frozen=True)
class Baseline:
    """The task's model as it came, in the run."""

    candidate: Candidate
    path: Path
    """Its ONNX file."""
    structure: str
    """Hash of its graph, weights left out."""
    names: tuple[str, ...]
    """Its input names."""
    module: nn.Module | None = None
    """The task's own, never changed; None where it brings a file."""


@dataclass(frozen=True)
class Calibration:
    """Samples that int8 ranges come from, by input name, and their hash."""

    samples: Mapping[str, np.ndarray]
    digest: str


@dataclass(frozen=True)
class Instruments:
    """What files are measured and scored with."""

    cache: Cache
    scorer: Scorer
    describe: Mapping[str, Any]
    """Target's name -> its description."""
    baseline_path: Path
    sample: Mapping[str, np.ndarray]
    """One real example by input name, so that realistic numbers are timed."""
    metric: Metric
    seed: int
    """Of bootstrap intervals."""
    protocol: Protocol
    """How candidates are timed while searching."""


@dataclass(frozen=True)
class Context:
    """A task made ready: data in memory, baseline measured and scored, network profiled."""

    task: Task
    run: Run
    cache: Cache
    space: SearchSpace
    val: Split
    test: Split | None
    targets: TargetSet
    baseline: Baseline
    profile: Profile
    calibration: Calibration
    instruments: Instruments
    training: Training | None
    """None where the model is an ONNX file that torch cannot rebuild, and while first candidates are made."""

    @property
    def metric(self) -> Metric:
        """How the quality of a network is measured."""
        return self.instruments.metric


@dataclass(frozen=True)
class Training:
    """What only a network that can be trained has, and what it is trained with."""

    module: nn.Module
    """The baseline, never changed."""
    key: TrainingKey
    """What determines every training: the keys of what is stored are made from it."""
    train: Split | Stream
    example: tuple[Tensor, ...]
    objective: Objective
    teacher: Teacher
    mode: TrainingMode
    template: onnx.ModelProto
    """The baseline's raw exported graph."""
    optimizer: OptimizerFunction | None
    """The task's own, in place of ours."""
    loop: Callable[[nn.Module, FinetuneSettings], nn.Module] | None
    """The task's own training loop on its own train set, seeded and checked: gives the trained module."""

    @property
    def digest(self) -> str:
        """Hash of the baseline's weights, as it stands in keys."""
        return self.key.baseline

    @cached_property
    def blocks(self) -> Blocks:
        """Blocks that can be dropped; looked for where they are asked for."""
        return find_blocks(self.module, self.example)

    @cached_property
    def _remaining(self) -> dict[tuple[str, ...], Groups]:
        """What ``groups_without`` found, by what is dropped."""
        return {}

    def groups_without(self, groups: Groups, dropped: Collection[str]) -> Groups:
        """The groups that are left without blocks of these names; ``groups``: those of the whole baseline.

        Found once in a session for each set of blocks. Raises SpaceError for a name that is no removable block.
        """
        names = tuple(block.name for block in self.blocks.named(dropped)) if dropped else ()
        if names not in self._remaining:
            self._remaining[names] = groups_without(self.module, self.example, groups, self.blocks, names)
        return self._remaining[names]

"""What every stage of a search works with: made once at the start, never changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

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
    from compress.training.training_key import TrainingKey
    from compress.training.training_modes import TrainingMode
    from compress.values.candidates import Candidate
    from compress.values.configs import SearchSpace
    from targets.target import Capabilities, Target

Say = Callable[[str], None]


@dataclass(frozen=True)
class Profile:
    """What was found out about the baseline once: where to cut, and what int8 costs each layer."""

    groups: Groups
    robustness: dict[str, float]
    """Group -> rank in the sensitivity scan, from -0.5 (cutting hurts most) to 0.5."""
    losses: dict[str, float]
    """Group -> loss on train examples with half of that group cut alone: what the ranks come from."""
    int8_order: tuple[int, ...]
    """Positions of the quantizable layers, the one that int8 hurts most first."""


@dataclass(frozen=True)
class Context:
    """A task made ready: data in memory, baseline measured and scored, network profiled."""

    task: Task
    run: Run
    cache: Cache
    targets: tuple[Target, ...]
    space: SearchSpace
    seed: int
    metric: Metric
    val: Split
    test: Split | None
    names: list[str]
    """The ONNX file's input names."""
    baseline: Candidate
    baseline_path: Path
    baseline_structure: str
    profile: Profile
    calibration: dict[str, np.ndarray]
    calibration_digest: str
    step: int
    """Widths are multiples of this: good for all targets."""
    abilities: Mapping[str, Capabilities]
    """Target's name -> what it can do, as measured."""
    variants: tuple[Variant, ...]
    """The files every network is written as."""
    limits: VersionLimits
    """What every target's runtime accepts."""
    scorer: Scorer
    training: Training | None
    """None where the model is an ONNX file."""
    describe: dict[str, Any]
    """Target name -> its description: part of every measurement's key."""


@dataclass(frozen=True)
class Training:
    """What only a torch model has."""

    module: nn.Module
    key: TrainingKey
    """What determines every training: the keys of what is stored are made from it."""
    train: Split | Stream
    example: tuple[Tensor, ...]
    objective: Objective
    teacher: Teacher
    mode: TrainingMode
    template: onnx.ModelProto
    """The baseline's raw exported graph."""

    @property
    def digest(self) -> str:
        """Hash of the baseline's weights."""
        return self.key.baseline

    @cached_property
    def blocks(self) -> Blocks:
        """Residual blocks that can be dropped; looked for where they are asked for."""
        from compress.pruning.blocks import find_blocks

        return find_blocks(self.module, self.example)

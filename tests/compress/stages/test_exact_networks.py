"""A config that names its network exactly: blocks by name, widths by group; and repeats dropped in a search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import compress
from compress.baseline.contexts import Profile, Training
from compress.onnx_files import exporting
from compress.onnx_files.limits import VersionLimits
from compress.onnx_files.parity import check_parity
from compress.pruning.grouping import find_groups
from compress.results import Result
from compress.run_folder.caching import Cache
from compress.stages import pruning
from compress.stages.exporting import Shape, make_template
from compress.values.configs import PruneSettings
from compress.values.domains import Choice
from compress.values.search_spaces import SearchSpace
from recipes.keyword_spotting import network as keyword_spotter
from targets.errors import SpaceError

NOTHING: Any = None
"""What these functions do not look at here."""


@pytest.fixture(scope="module")
def training() -> Training:
    torch.manual_seed(0)
    module, example = keyword_spotter(32).eval(), (torch.randn(2, 1, 49, 10),)
    key: Any = SimpleNamespace(baseline="digest")
    return Training(module, key, NOTHING, example, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)


@pytest.fixture(scope="module")
def profile(training: Training) -> Profile:
    return Profile(find_groups(training.module, training.example), ())


def test_blocks_and_widths_are_taken_as_asked(training: Training, profile: Profile) -> None:
    settings = PruneSettings(
        ratio=0.9, skew=1.0, allocation="global", widths={"0": 8, "15": 32, "24": 20}, dropped=("9..14",)
    )
    origin = pruning.make_origin(NOTHING, training, profile, settings)
    assert origin.dropped == ("9..14",)
    assert [group.name for group in origin.groups.prunable] == ["0", "6", "18", "24"]
    left = pruning.realised_widths(NOTHING, training, profile, 16, origin, settings)
    assert left == {"0": 8, "24": 20}, "no share is looked at, and no step"


def test_a_layer_stands_for_its_group(training: Training, profile: Profile) -> None:
    for settings, left in (
        (PruneSettings(widths={"3": 8}), {"0": 8}),
        (PruneSettings(widths={"12": 32}, ratio=0.5), {}),
        (PruneSettings(ratio=0.5), {"0": 16, "6": 16, "12": 16, "18": 16, "24": 16}),
    ):
        origin = pruning.make_origin(NOTHING, training, profile, settings)
        assert pruning.realised_widths(NOTHING, training, profile, 16, origin, settings) == left


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (PruneSettings(dropped=("4..5",)), "'4..5' is no removable residual block"),
        (PruneSettings(widths={"0": 33}), "width of '0' is 33: it must be a multiple of 1 up to 32"),
        (PruneSettings(widths={"30": 5}), "'30' cannot be pruned: output layer"),
        (PruneSettings(widths={"0": 8, "3": 16}), "of another layer of the group '0' differ"),
    ],
)
def test_what_the_network_cannot_be_is_refused(
    training: Training, profile: Profile, settings: PruneSettings, why: str
) -> None:
    def widths() -> None:
        origin = pruning.make_origin(NOTHING, training, profile, settings)
        pruning.realised_widths(NOTHING, training, profile, 1, origin, settings)

    with pytest.raises(SpaceError, match=why):
        widths()


def test_repeats_go_in_a_search_and_the_candidate_is_rebuilt(
    search: Callable[..., Result], tiny: ModuleType, tmp_path: Any
) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    data = tiny.datasets()
    task = compress.Task(name="repeats", model=model, **data)
    space = SearchSpace(
        epochs=0, precision="fp32", prune_ratio=Choice(0.5), depth=0.67, prune_skew=0.0, prune_delta=0.0
    )
    result = search(task=task, space=space, trials=1, constraints=["quality_drop<=1"], out=tmp_path / "run")
    [found] = [c for c in result.candidates() if c.id != "baseline"]
    dropped = found.config["dropped"]
    assert len(dropped) == 2
    assert set(dropped) < {"2..4", "5..7", "8..10"}
    stored = json.loads((found.path.parent / "candidate.json").read_text())
    assert {name: 8 - len(gone) for name, gone in stored["removed"].items()} == found.config["widths"]
    images = data["val"].tensors[0][:16]
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    [outputs] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    module = found.module()
    assert sum(isinstance(layer, nn.Conv2d) for layer in module.modules()) == 3
    with torch.no_grad():
        np.testing.assert_allclose(outputs, module(images).numpy(), atol=1e-4)


# -- one trace for all widths


def test_a_pattern_is_traced_once_and_its_widths_not_at_all(
    training: Training, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[int] = []
    trace = exporting.trace_graph

    def counting(module: nn.Module, inputs: tuple[torch.Tensor, ...], limits: Any = None) -> onnx.ModelProto:
        traced.append(sum(p.numel() for p in module.parameters()))
        return trace(module, inputs, limits)

    monkeypatch.setattr(exporting, "trace_graph", counting)
    events: list[tuple[str, bool]] = []
    cache = Cache(tmp_path, lambda name, cached, _: events.append((name, cached)))
    for times, widths in enumerate(({"0": 8}, {"6": 16, "24": 4}, {"0": 8}, {})):
        settings = PruneSettings(widths=widths, dropped=("9..14",))
        origin = pruning.make_origin(cache, training, profile, settings)
        left = pruning.realised_widths(cache, training, profile, 16, origin, settings)
        pruned = pruning.prune_to(cache, training, origin, left, "l2")
        shape = Shape("graph", left, origin.dropped, VersionLimits())
        template = make_template(cache, training, origin.module, pruned, shape)
        onnx.save(exporting.bind(template, pruned.module.state_dict()), tmp_path / "m.onnx")
        check_parity(tmp_path / "m.onnx", pruned.module, training.example)
        assert len(traced) == 1, times
    exports = [cached for name, cached in events if name == "export"]
    assert exports == [False, False, True, False, True, True], "the pattern, each width once, both known again"


def test_where_a_graph_cannot_be_fitted_the_network_is_traced(
    training: Training, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "retargeted", lambda *_: None)
    cache = Cache(tmp_path, lambda *_: None)
    settings = PruneSettings(widths={"0": 8}, dropped=("3..8", "9..14", "15..20"))
    origin = pruning.make_origin(cache, training, profile, settings)
    left = pruning.realised_widths(cache, training, profile, 16, origin, settings)
    pruned = pruning.prune_to(cache, training, origin, left, "l2")
    template = make_template(cache, training, origin.module, pruned, Shape("g", left, origin.dropped, VersionLimits()))
    exporting.bind(template, pruned.module.state_dict())  # its own shapes: nothing is raised

"""One trace serves all widths: a retargeted graph is what a fresh export would be, or there is none."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import zoo
from compress.onnx_files import exporting, graphs
from compress.onnx_files.exporting import bind, retargeted, trace_graph
from compress.onnx_files.parity import check_parity, open_session
from compress.onnx_files.retargeting import retarget
from compress.onnx_files.width_arithmetic import NotRetargetable
from compress.pruning.blocks import find_blocks, groups_without, without_blocks
from compress.pruning.grouping import find_groups
from compress.pruning.groups import Groups
from compress.pruning.pruning import prune
from compress.pruning.widths import ladder
from recipes.keyword_spotting import network as keyword_spotter
from targets.errors import ExportError


def _cut(module: nn.Module, inputs: tuple[Tensor, ...], groups: Groups, rng: random.Random) -> nn.Module:
    widths = {g.name: rng.choice([*ladder(g.channels, 1, g.multiple), g.channels]) for g in groups.prunable}
    return prune(module, inputs, widths=widths, groups=groups).module.eval()


def _outputs(model: onnx.ModelProto, module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> list[Any]:
    onnx.save(bind(model, module.state_dict()), path)
    session = open_session(path)
    names = [node.name for node in session.get_inputs()]
    return list(session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)}))


@pytest.mark.parametrize(
    "name", ["resnet", "mobilenet", "resnext", "unet", "groupnorm", "chunk", "shuffle", "lstm", "conv-gru", "cnn-1d"]
)
def test_a_retargeted_graph_is_a_fresh_export(name: str, tmp_path: Path) -> None:
    module, inputs = zoo.made(name)
    groups, template = find_groups(module.eval(), inputs), trace_graph(module, inputs)
    before = template.SerializeToString(deterministic=True)
    small = _cut(module, inputs, groups, random.Random(0))
    model = retargeted(template, small, inputs)
    assert model is not None
    found = _outputs(model, small, inputs, tmp_path / "retargeted.onnx")
    fresh = _outputs(trace_graph(small, inputs), small, inputs, tmp_path / "fresh.onnx")
    for a, b in zip(found, fresh, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    files = [tmp_path / "retargeted.onnx", tmp_path / "fresh.onnx"]
    assert len({graphs.structure_hash(path) for path in files}) == 1, "nothing but weights could differ"
    assert template.SerializeToString(deterministic=True) == before


def test_many_widths_of_a_network_without_some_repeats(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, inputs, rng = keyword_spotter(16).eval(), (torch.randn(2, 1, 49, 10),), random.Random(0)
    blocks = find_blocks(module, inputs)
    whole = without_blocks(module, blocks.named(["3..8", "15..20"]))
    groups = groups_without(module, inputs, find_groups(module, inputs), blocks, ["3..8", "15..20"])
    template = trace_graph(whole, inputs)
    for _ in range(5):
        small = _cut(whole, inputs, groups, rng)
        model = retargeted(template, small, inputs)
        assert model is not None
        for layer in small.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight)
        onnx.save(bind(model, small.state_dict()), tmp_path / "trained.onnx")
        check_parity(tmp_path / "trained.onnx", small, inputs)


@pytest.mark.parametrize("group", ["attention.q:heads", "attention.q:width", "up"])
def test_whether_heads_or_their_width_were_cut_is_found_out(group: str) -> None:
    module, inputs = zoo.made("vit")
    groups, template = find_groups(module.eval(), inputs), trace_graph(module, inputs)
    small = prune(module, inputs, {group: 0.5}, groups=groups).module.eval()
    assert retargeted(template, small, inputs) is not None


def test_what_is_not_certain_is_left_to_a_fresh_export() -> None:
    module, inputs = zoo.made("uneven-split")
    template = trace_graph(module.eval(), inputs)
    groups = find_groups(module, inputs)
    part = next(group for group in groups.prunable if group.name.endswith(":part"))
    small = prune(module, inputs, widths={part.name: part.channels - 1}, groups=groups).module.eval()
    with pytest.raises(NotRetargetable):
        retarget(template, small)
    assert retargeted(template, small, inputs) is None


def test_a_wrong_graph_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = zoo.made("plain")
    template = trace_graph(module.eval(), inputs)

    def wrong(template: onnx.ModelProto, module: nn.Module, *, first: bool) -> onnx.ModelProto:
        model = retarget(template, module, first=first)
        node = next(node for node in model.graph.node if node.op_type == "Relu")
        node.op_type = "Abs"
        return model

    assert retargeted(template, module, inputs) is not None
    monkeypatch.setattr(exporting, "retarget", wrong)
    assert retargeted(template, module, inputs) is None


def test_weights_of_another_shape_are_never_kept_in_silence() -> None:
    module, inputs = zoo.made("plain")
    template = trace_graph(module.eval(), inputs)
    small = prune(module, inputs, 0.5).module
    with pytest.raises(ExportError, match=r"weight '0.0.weight' is \(4, 3, 3, 3\), the graph was traced for \(8, 3"):
        bind(template, small.state_dict())

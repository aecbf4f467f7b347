"""Every kind of network that people bring: pruned right, or left alone and said why.

The oracle is the network it came from with the removed channels held at zero. Where something normalises over the
channels, zeros would count as channels: there the odd channels are made copies of the even ones that nothing reads,
and pruning them must not move the output.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compress
import zoo
import zoo_table
from compress.networks.counting import macs_and_parameters
from compress.networks.running import forward
from compress.onnx_files.parity import open_session
from compress.precision.quantizer import has_matmul
from compress.pruning.cutting import duplicate, zero
from compress.pruning.groups import Groups
from compress.pruning.narrow_attention import NarrowAttention
from compress.pruning.pruning import prune
from pruning_oracles import difference, even_sized, masked, odd
from targets.errors import QuantizeError

NAMES = list(zoo.ZOO)
LEFT_ALONE = {"vit-scaled-by-width": "patch"}
"""Networks of which so much stays that half of their MACs do, too, and a layer that the reason is given for."""
NO_OUTPUT_LAYER = ("functional", "tied-convs", "cosine")
"""What makes their outputs is no layer of its own."""
SLOWER = ("vit", "bert", "lstm", "gru", "transformer", "multihead", "attention", "encoder")
FAST = ("mlp", "split", "conv-gru", "vit-chunk")
"""Rows whose export and int8 are checked in the quick suite."""


@pytest.fixture(scope="module", autouse=True)
def no_fast_path() -> Iterator[None]:
    """It would pass by the hooks of the oracle."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


BY_WEIGHTS = ("tied-convs",)
"""Layers whose weights are used by others, too: there all weights that make or read the channels are zero."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", [pytest.param(0.3, marks=pytest.mark.slow), 0.6])
def test_pruned_network_equals_the_masked_one(name: str, ratio: float, found: dict[str, Groups]) -> None:
    module, inputs = zoo.made(name)
    ratios = {group.name: ratio for group in found[name].prunable if not group.mixed}
    pruned = prune(module, inputs, ratios, groups=found[name])
    network = masked(module, found[name], pruned.removed)
    if name in BY_WEIGHTS:
        network = copy.deepcopy(module)
        zero(network, [(group, pruned.removed.get(group.name, ())) for group in found[name].prunable])
    expected = forward(network, inputs)
    assert difference(forward(pruned.module, inputs), expected) < 1e-4
    assert not pruned.removed or difference(expected, forward(module, inputs)) > 1e-3, "the masks do matter"


@pytest.mark.parametrize("name", NAMES)
def test_odd_channels_that_nothing_needs_can_go(name: str, found: dict[str, Groups]) -> None:
    module, inputs = zoo.made(name)
    chosen = [group for group in even_sized(found[name]) if group.mixed]
    if not chosen:
        return
    before = forward(module, inputs)
    duplicate(module, [(group, odd(group)) for group in chosen])
    full = forward(module, inputs)
    pruned = prune(module, inputs, removed={group.name: tuple(odd(group)) for group in chosen}, groups=found[name])
    assert difference(forward(pruned.module, inputs), full) < 1e-4
    assert difference(full, before) > 1e-2  # the copies do differ from what was there


@pytest.mark.parametrize("name", NAMES)
def test_it_is_really_pruned(name: str, found: dict[str, Groups]) -> None:
    module, inputs = zoo.made(name)
    pruned = prune(module, inputs, 0.6, groups=found[name])
    assert all(why for _, why in pruned.kept)
    if name in LEFT_ALONE:
        assert dict(found[name].kept)[LEFT_ALONE[name]]
        assert "kept" not in dict(found[name].kept)[LEFT_ALONE[name]]
        return
    left = pruned.macs / macs_and_parameters(module, inputs)[0]
    assert left <= (0.6 if any(word in name for word in SLOWER) else 0.5)
    outputs = [layer for layer, why in found[name].kept if why == "output layer"]
    assert outputs or name in NO_OUTPUT_LAYER


ATTENTION = {
    "vit-separate": ("block.attention", "num_heads"),
    "vit-chunk": ("block.attention", "num_heads"),
    "vit-index": ("block.attention", "num_heads"),
    "vit-unbind": ("block.attention", "num_heads"),
    "vit-fused": ("block.attention", "num_heads"),
    "multihead": ("attention", "num_heads"),
    "cross-attention": ("attention", "num_heads"),
    "transformer": ("encoder.layers.1.self_attn", "num_heads"),
    "bert": ("attention", "num_attention_heads"),
    "nanogpt": ("attn", "n_head"),
    "gpt-deep": ("h.2.attention", "n_head"),
    "gpt-own-layers": ("h.2.attention", "n_head"),
    "vit-from-scratch": ("blocks.1.attention", "heads"),
    "vit-own-products": ("blocks.0.attention", "heads"),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_whole_heads_are_removed(name: str, found: dict[str, Groups]) -> None:
    module, inputs = zoo.made(name)
    heads = [group for group in found[name].prunable if group.name.endswith(":heads")]
    assert heads
    pruned = prune(module, inputs, {group.name: 0.25 for group in heads}, groups=found[name])
    place, attribute = ATTENTION[name]
    assert getattr(pruned.module.get_submodule(place), attribute) == 3
    assert getattr(module.get_submodule(place), attribute) == 4


def test_unequal_parts_lose_channels_each_on_their_own(found: dict[str, Groups]) -> None:
    module, inputs = zoo.made("uneven-split")
    parts = [group for group in found["uneven-split"].prunable if ":part" in group.name]
    assert [group.channels for group in parts] == [6, 10]
    small = prune(module, inputs, widths={"stem.0:part": 5, "stem.0:part2": 3}, groups=found["uneven-split"]).module
    assert small.get_parameter("a.0.weight").shape[1] == 5
    assert small.get_parameter("b.0.weight").shape[1] == 3
    assert small(*inputs).shape == (2, 10)


def test_weights_that_are_computed_become_ordinary_ones(found: dict[str, Groups]) -> None:
    module, inputs = zoo.made("weight-norm")
    small = prune(module, inputs, 0.5, groups=found["weight-norm"]).module
    assert small.get_parameter("a.weight").shape == (4, 6)
    assert "a.parametrizations.weight.original0" in dict(module.named_parameters())


def test_recurrent_layers_stay_torchs_own(found: dict[str, Groups]) -> None:
    module, inputs = zoo.made("bi-gru-stacked")
    small = prune(module, inputs, 0.5, groups=found["bi-gru-stacked"]).module
    gru = small.get_submodule("gru")
    assert isinstance(gru, nn.GRU)
    assert (gru.hidden_size, gru.input_size, small.size) == (6, 6, 6)
    assert gru.weight_ih_l1_reverse.shape == (18, 12)
    small.train()(*inputs).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_an_attention_that_may_lose_heads_computes_what_torchs_does() -> None:
    torch.manual_seed(0)
    for kdim, first in ((None, True), (5, False)):
        whole = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=first).eval()
        narrow = NarrowAttention(whole)
        x, y = torch.randn(3, 4, 8), torch.randn(3, 4, kdim or 8)
        hidden = torch.zeros((3, 4) if first else (4, 3), dtype=torch.bool)
        hidden[0, 2:] = True
        mask = torch.triu(torch.ones(4 if first else 3, 4 if first else 3, dtype=torch.bool), 1)
        for average in (True, False):
            settings = {"key_padding_mask": hidden, "attn_mask": mask, "average_attn_weights": average}
            for a, b in zip(narrow(x, y, y, **settings), whole(x, y, y, **settings), strict=True):
                torch.testing.assert_close(a, b)
        if kdim is None:
            torch.testing.assert_close(narrow(x, x, x)[0], whole(x, x, x)[0])
            torch.testing.assert_close(narrow(x[0], x[0], x[0])[0], whole(x[0], x[0], x[0])[0])


ROUGH = 0.15
"""Largest distance of int8 from float, as a share of the output's length; tiny random networks average nothing out."""
ROUGHER = {"nanogpt": 0.3, "gpt-deep": 0.3}
"""Rows with another bound."""


def fed(session: Any, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    return {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)}


def drawn(inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """As many samples like ``inputs``; integers are those of the example, again and again."""
    torch.manual_seed(1)
    times = -(-count // len(inputs[0]))
    return tuple(torch.randn(count, *t.shape[1:]) if t.is_floating_point() else torch.cat([t] * times)[:count]
                 for t in inputs)  # fmt: skip


def exported(name: str, groups: Groups, folder: Path) -> None:
    """Prune, export, compare with torch at two batch sizes (export does, too), and both kinds of int8 with float."""
    module, inputs = zoo.made(name)
    small, path = prune(module, inputs, 0.6, groups=groups).module, folder / "small.onnx"
    compress.export(small, inputs, path)
    session = open_session(path)
    for batch in (1, 2):
        few = tuple(t[:batch] for t in inputs)
        for got, wanted in zip(session.run(None, fed(session, few)), forward(small, few), strict=True):
            assert np.abs(got - wanted.numpy()).max() <= 1e-4 * max(1.0, float(wanted.abs().max()))
    samples = fed(session, drawn(inputs, 32))
    expected = session.run(None, samples)
    for precision in ("int8", "int8-dynamic"):
        if precision == "int8-dynamic" and not has_matmul(path):
            with pytest.raises(QuantizeError, match="no matrix product"):
                compress.quantize(path, folder / "none.onnx", precision, samples)
            continue
        found = compress.quantize(path, folder / f"{precision}.onnx", precision, samples)
        assert found.int8
        outputs = open_session(found.path).run(None, samples)
        offs = [
            float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
            for got, wanted in zip(outputs, expected, strict=True)
        ]
        assert 0 < max(offs) <= ROUGHER.get(name, ROUGH), (precision, offs)


@pytest.mark.parametrize("name", FAST)
def test_pruned_network_runs_in_onnx_runtime(name: str, found: dict[str, Groups], tmp_path: Path) -> None:
    exported(name, found[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in FAST])
def test_every_pruned_network_runs_in_onnx_runtime(name: str, found: dict[str, Groups], tmp_path: Path) -> None:
    exported(name, found[name], tmp_path)


def test_the_table_in_the_docs_is_current(found: dict[str, Groups]) -> None:
    assert zoo_table.PATH.read_text() == zoo_table.table(found), "run: python tests/compress/shared/zoo_table.py"

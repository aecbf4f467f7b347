"""One export, then only weights change; a file is what the network computes, and says nothing about this machine."""

from __future__ import annotations

import copy
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import compress
from compress.networks.running import evaluating
from compress.onnx_files import graphs
from compress.onnx_files.exporting import bind, export, trace_graph
from compress.onnx_files.parity import TOLERANCE, check_parity, open_session
from compress.pruning.pruning import prune
from targets.errors import ExportError, ModelError, ParityError, RequestError, StageError


class TwoByTwo(nn.Module):
    """Two inputs, two outputs, of them one a dict's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        h = self.a(x) + self.b(y)
        return {"sum": h, "first": torch.relu(h)[:, :2]}


class Squeezes(nn.Module):
    """Loses the batch dimension of a single sample: an ordinary mistake, seen at batch 1 only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, :, None].squeeze())


class Masks(nn.Module):
    """Minus infinity is a value like others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return torch.where(torch.arange(4) == 2, torch.tensor(float("-inf")), y)


def _run(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return list(session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)}))


@pytest.fixture(scope="module")
def template(digits: Any) -> onnx.ModelProto:
    """The raw graph of an untrained CNN of the same form. Read only."""
    torch.manual_seed(7)
    return trace_graph(_like(digits), (digits.val[0][:4],))


def _like(_: Any) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_dynamic(exported: Path, cnn: nn.Module, digits: Any, batch: int) -> None:
    x = digits.test[0][:batch]
    with torch.no_grad():
        assert np.allclose(_run(exported, x)[0], cnn(x).numpy(), atol=1e-4)


def test_parity_is_said(exported: Path, cnn: nn.Module, digits: Any) -> None:
    found = check_parity(exported, cnn, (digits.test[0],))
    assert 0.0 <= found.max_abs < 1e-3
    assert found.agreement == 1.0


def test_nothing_about_this_machine_is_in_the_file(exported: Path, cnn: nn.Module, template: onnx.ModelProto) -> None:
    secrets = [
        str(Path(compress.__file__).parent.parent), str(Path(__file__).parent), "site-packages", str(Path.home()) + "/",
        sysconfig.get_path("purelib"), "test_exporting", "conftest", os.sep + "lib" + os.sep, ".py",
    ]  # fmt: skip
    bound = bind(template, cnn.state_dict()).SerializeToString()
    for content in (exported.read_bytes(), template.SerializeToString(), bound):
        for secret in secrets:
            assert secret.encode() not in content, secret


def test_the_module_is_left_as_it_was(tmp_path: Path, digits: Any) -> None:
    module = _like(digits).train()
    module[4].eval()
    state, modes = copy.deepcopy(module.state_dict()), [m.training for m in module.modules()]
    export(module, digits.val[0][:4], tmp_path / "m.onnx")
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(x, state[name]) for name, x in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())


def test_trained_weights_in_an_untrained_graph_are_a_fresh_export(
    tmp_path: Path, template: onnx.ModelProto, cnn: nn.Module, exported: Path, digits: Any
) -> None:
    """BatchNorm is folded into the convolutions after the swap, with the trained statistics."""
    path = tmp_path / "bound.onnx"
    onnx.save(bind(template, cnn.state_dict()), path)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}
    assert np.array_equal(_run(path, digits.test[0])[0], _run(exported, digits.test[0])[0])
    assert check_parity(path, cnn, (digits.test[0],)).agreement == 1.0
    assert graphs.structure_hash(path) == graphs.structure_hash(exported)


def test_the_template_can_be_bound_again(template: onnx.ModelProto, cnn: nn.Module) -> None:
    before = template.SerializeToString(deterministic=True)
    bind(template, cnn.state_dict())
    assert template.SerializeToString(deterministic=True) == before


def test_a_pruned_network_is_bound_as_well(tmp_path: Path, cnn: nn.Module, digits: Any) -> None:
    example = digits.val[0][:4]
    small = prune(cnn, example, 0.5).module
    raw = trace_graph(small, (example,))
    for layer in small.modules():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
            nn.init.normal_(layer.weight)
    onnx.save(bind(raw, small.state_dict()), tmp_path / "small.onnx")
    assert check_parity(tmp_path / "small.onnx", small, (example,)).max_abs < 1e-2
    assert _run(tmp_path / "small.onnx", digits.val[0][:7])[0].shape == (7, 10)


def test_weights_of_another_network_are_noticed(
    tmp_path: Path, template: onnx.ModelProto, cnn: nn.Module, digits: Any
) -> None:
    path = tmp_path / "other.onnx"
    onnx.save(bind(template, {}), path)
    with pytest.raises(ParityError, match=r"other.onnx differs from the network by .* where .* is allowed"):
        check_parity(path, cnn, (digits.val[0][:4],))
    found = check_parity(path, cnn, (digits.val[0],), enforce=False)
    assert found.max_abs > TOLERANCE
    assert found.agreement < 0.9


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "8.bias"])
def test_a_nan_in_the_file_is_noticed(
    tmp_path: Path, template: onnx.ModelProto, cnn: nn.Module, digits: Any, name: str
) -> None:
    state = copy.deepcopy(cnn.state_dict())
    state[name].view(-1)[0] = float("nan")
    onnx.save(bind(template, state), tmp_path / "nan.onnx")
    with pytest.raises(ParityError, match="differs from the network by nan"):
        check_parity(tmp_path / "nan.onnx", cnn, (digits.val[0][:4],))


def test_an_export_that_fails_its_check_leaves_the_old_file(
    tmp_path: Path, cnn: nn.Module, bare: nn.Module, digits: Any, template: onnx.ModelProto, monkeypatch: Any
) -> None:
    monkeypatch.setattr("compress.onnx_files.exporting.trace_graph", lambda *_: template)
    monkeypatch.setattr("compress.onnx_files.exporting.bind", lambda *_: bind(template, cnn.state_dict()))
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ParityError):
        export(bare, digits.val[0][:4], path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    with pytest.raises(RequestError, match="does not exist"):
        export(cnn, digits.val[0][:4], tmp_path / "absent" / "m.onnx")


def test_a_file_that_does_not_load_is_a_parity_error(tmp_path: Path, cnn: nn.Module, digits: Any) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(ParityError, match=r"bad.onnx does not load in ONNX Runtime") as caught:
        check_parity(tmp_path / "bad.onnx", cnn, (digits.val[0][:4],))
    assert "\n" not in str(caught.value)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    module, path = TwoByTwo(), tmp_path / "two.onnx"
    assert export(module, (torch.randn(1, 3), torch.randn(1, 2)), path).max_abs < 1e-4
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    expected = module(x, y)
    found = _run(path, x, y)
    assert len(found) == 2
    assert np.allclose(found[0], expected["sum"].detach().numpy(), atol=1e-5)
    assert np.allclose(found[1], expected["first"].detach().numpy(), atol=1e-5)


def test_equal_infinities_do_not_differ(tmp_path: Path) -> None:
    assert export(Masks(), torch.randn(2, 3), tmp_path / "m.onnx").max_abs < 1e-4


def test_a_single_sample_is_checked_as_well(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"output is \(1, 2\) at batch 1, the network gives \(2,\)"):
        export(Squeezes(), torch.randn(2, 3), tmp_path / "m.onnx")


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path: Path) -> None:
    module = nn.Linear(5, 2)
    with pytest.raises(ExportError, match="cannot be exported to ONNX") as caught:
        export(module, torch.randn(2, 3), tmp_path / "m.onnx")
    assert type(module).__name__ in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, StageError)
    assert list(tmp_path.iterdir()) == []


def test_the_exporter_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: Any) -> None:
    export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []


def test_every_submodule_gets_its_own_mode_back(cnn: nn.Module) -> None:
    cnn.train()
    cnn[1].eval()

    def body() -> None:
        with evaluating(cnn):
            assert not any(m.training for m in cnn.modules())
            raise KeyError

    with pytest.raises(KeyError):
        body()
    assert cnn[0].training
    assert not cnn[1].training


def test_structure_does_not_depend_on_weights(
    tmp_path: Path, exported: Path, bare: nn.Module, digits: Any, fixed_copy: Callable[[Path], Path]
) -> None:
    """Latency is cached under it: two trainings of one architecture are one structure, other widths another."""
    with torch.no_grad():
        for p in bare.parameters():
            p += 0.1 * torch.randn_like(p)  # a bias of exactly zero would be left out
    export(bare, digits.val[0][:4], tmp_path / "bare.onnx")
    assert graphs.structure_hash(tmp_path / "bare.onnx") == graphs.structure_hash(exported)
    small = prune(bare, digits.val[0][:4], 0.5).module
    export(small, digits.val[0][:4], tmp_path / "small.onnx")
    assert graphs.structure_hash(tmp_path / "small.onnx") != graphs.structure_hash(exported)
    assert graphs.structure_hash(fixed_copy(exported)) != graphs.structure_hash(exported)


@pytest.fixture
def fixed_copy(tmp_path: Path) -> Callable[[Path], Path]:
    """The same model with its batch fixed at 1."""

    def made(path: Path) -> Path:
        model = onnx.load(path)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(model, tmp_path / "fixed.onnx")
        return tmp_path / "fixed.onnx"

    return made


def test_parameters_and_operations_are_counted(exported: Path) -> None:
    """Against the closed form; BatchNorm is folded: a bias for each channel is left of it."""
    assert graphs.count_parameters(exported) == (16 * 9 + 16) + (16 * 16 * 9 + 16) + (256 * 10 + 10)
    assert graphs.count_macs(exported) == 64 * 16 * 9 + 64 * 16 * 16 * 9 + 2560


@pytest.mark.parametrize("keep", [0.0, 0.4, 0.95])
def test_truncated_files_are_model_errors(tmp_path: Path, exported: Path, keep: float) -> None:
    content = exported.read_bytes()
    (tmp_path / "t.onnx").write_bytes(content[: int(keep * len(content))])
    for read in (graphs.load_model, graphs.structure_hash, graphs.count_parameters, graphs.count_macs):
        for name in ("t.onnx", "absent.onnx"):
            with pytest.raises(ModelError, match=name) as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)


def test_a_buffer_may_be_called_what_the_exporter_calls_a_result(tmp_path: Path) -> None:
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.randn(3, 1))
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear((x - self.mean).mean(2), self.weight)

    compress.export(Standardised(), torch.randn(4, 3, 5), tmp_path / "m.onnx")  # parity is checked


class BiasedAttention(nn.Module):
    """Patches, a token before them, and fused attention with a bias for every pair, its heads joined by ``reshape``."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 2, 2), nn.Parameter(torch.randn(1, 1, 16))
        self.qkv, self.out, self.table = nn.Linear(16, 48), nn.Linear(16, 16), nn.Parameter(torch.randn(4, 25))
        self.register_buffer("places", torch.arange(25).reshape(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        """Takes images of (N, 3, 4, 4) and gives (N, 5, 16)."""
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.patches(x).flatten(2).transpose(1, 2)], 1)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.table[:, self.places][None])
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


def test_fused_attention_with_a_bias_is_exported_for_any_batch(tmp_path: Path) -> None:
    module = BiasedAttention().eval()
    export(module, torch.rand(3, 3, 4, 4), tmp_path / "m.onnx")
    x = torch.rand(7, 3, 4, 4)
    [found] = open_session(tmp_path / "m.onnx").run(None, {"x": x.numpy()})
    assert np.abs(found - module(x).detach().numpy()).max() < 1e-5

"""What models look like in the wild: each is handled, or refused in one clear line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, remove_weight_norm, spectral_norm, weight_norm
from torch.utils.data import TensorDataset

import compress
from compress.networks.plain_copies import unwrap
from compress.results import Result
from compress.tasks.onnx_tasks import onnx_task
from targets.errors import CompressError, ExportError, ModelError, TaskError
from targets.runtimes.fake.fake_target import FakeTarget
from targets.testing import reference_model

Search = Callable[..., Result]
SPACE = compress.SearchSpace(epochs=1, precision=compress.Choice("fp32", "int8"))
pytestmark = pytest.mark.usefixtures("quick")
RANDOM = np.random.default_rng(0)
IMAGES = (RANDOM.standard_normal((60, 3, 8, 8)) + 4 * RANDOM.standard_normal((60, 3, 1, 1))).astype(np.float32)
"""Of different colours, so that the reference model decides on several classes."""


def searched(model: Path, folder: Path, **arrays: np.ndarray) -> dict[str, Any]:
    """The report of a search of two trials from a file and samples."""
    np.savez(folder / "data.npz", x=IMAGES, **arrays)
    task = onnx_task(model, folder / "data.npz")
    return compress.search(task, FakeTarget(channel_step=2), trials=2, space=SPACE, out=folder / "run").report


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def refused(error: type[CompressError], said: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


class Bessel(nn.Module):
    """An operator that ONNX has not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(self.linear(x))


class Branch(Bessel):
    """Does something else for other values."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Bessel(), "Bessel cannot be exported to ONNX: .*bessel_j0"),
        (Branch(), "Branch cannot be exported to ONNX: .*data-dependent"),
    ],
)
def test_a_forward_that_onnx_cannot_say(module: nn.Module, said: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    refused(ExportError, said, lambda: compress.export(module, x, tmp_path / "m.onnx"))
    assert not (tmp_path / "m.onnx").exists()
    rows = TensorDataset(torch.randn(40, 3), torch.arange(40) % 2)
    task = compress.Task("odd", module, rows, rows, rows)
    refused(ExportError, said, lambda: compress.search(task, FakeTarget(), trials=1, out=tmp_path / "run"))


def _with_operator(kind: str, domain: str = "") -> Callable[[onnx.ModelProto], None]:
    """In front of the output."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "scores"
        model.graph.node.append(helper.make_node(kind, ["scores"], ["y"], domain=domain))
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def test_an_operator_that_torch_has_not_is_left_alone_with_the_reason(tmp_path: Path) -> None:
    path = changed(reference_model(tmp_path / "m.onnx"), _with_operator("Hardmax"))
    report = searched(path, tmp_path)
    assert "m.onnx is quantized, not pruned: operator Hardmax not covered" in report["environment"]["warnings"]
    assert {c["config"]["precision"]["scheme"] for c in report["candidates"]} == {"fp32", "int8"}
    assert all(not c["config"]["widths"] for c in report["candidates"])


def test_an_operator_that_the_runtime_has_not(tmp_path: Path) -> None:
    path = changed(reference_model(tmp_path / "m.onnx"), _with_operator("Magic", "my.own"))
    refused(ModelError, "Magic", lambda: searched(path, tmp_path))


def _with_branch(model: onnx.ModelProto) -> None:
    branches = [
        helper.make_graph(
            [helper.make_node(kind, ["scores"], [kind])], kind, [], [helper.make_tensor_value_info(kind, 1, None)]
        )
        for kind in ("Relu", "Neg")
    ]
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.extend([
        helper.make_node("ReduceSum", ["scores"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ])  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))


def test_control_flow_is_left_alone_with_the_reason(tmp_path: Path) -> None:
    report = searched(changed(reference_model(tmp_path / "m.onnx"), _with_branch), tmp_path)
    assert "m.onnx is quantized, not pruned: it has control flow (If)" in report["environment"]["warnings"]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_size_that_is_declared_is_set_free(tmp_path: Path, batch: int) -> None:
    report = searched(reference_model(tmp_path / "m.onnx", batch=batch), tmp_path)
    [warning] = [text for text in report["environment"]["warnings"] if "batch" in text]
    assert warning == f"m.onnx: its batch size of {batch} was baked in; it is worked with as a model for any batch"
    kept = onnx.load(tmp_path / "run" / "baseline" / "model.onnx").graph
    assert [v.type.tensor_type.shape.dim[0].dim_param for v in (*kept.input, *kept.output)] == ["batch", "batch"]
    assert any(c["config"]["widths"] for c in report["candidates"]), "pruned as well"


def _reshaped(first: int, rest: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        flatten = next(node for node in model.graph.node if node.op_type == "Flatten")
        flatten.CopyFrom(helper.make_node("Reshape", [flatten.input[0], "shape"], list(flatten.output)))
        model.graph.initializer.append(numpy_helper.from_array(np.array([first, rest]), "shape"))

    return change


def test_a_batch_size_that_is_hidden_in_a_shape(tmp_path: Path) -> None:
    path = reference_model(tmp_path / "m.onnx")
    channels = onnx.load(path).graph.initializer[1].dims[0]
    report = searched(changed(path, _reshaped(1, channels)), tmp_path)
    assert any("batch size of 1 was baked in" in text for text in report["environment"]["warnings"])


def test_a_batch_size_that_cannot_be_set_free(tmp_path: Path) -> None:
    path = reference_model(tmp_path / "m.onnx")
    channels = onnx.load(path).graph.initializer[1].dims[0]
    refused(ModelError, "its batch size is baked in", lambda: searched(changed(path, _reshaped(5, channels)), tmp_path))


def _sparse(path: Path, name: str, count: int) -> Path:
    """A model whose weight lies in a file beside it, which takes no room on the disk."""
    model = onnx.load(reference_model(path))
    tensor = onnx.TensorProto(name="big", data_type=TensorProto.FLOAT, dims=[count])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", "0"), ("length", str(4 * count))):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_of_more_than_two_gigabytes(tmp_path: Path) -> None:
    count = 600_000_000
    path = _sparse(tmp_path / "m.onnx", "weights.bin", count)
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(4 * count)
    refused(ModelError, r"weights take 2.4 GB; files of up to 2 GB", lambda: searched(path, tmp_path))
    module = nn.Linear(1, 1)
    module.weight = nn.Parameter(torch.zeros(1, 1).expand(1, count))
    rows = TensorDataset(torch.randn(40, 3), torch.arange(40) % 2)
    task = compress.Task("big", module, rows, rows)
    refused(TaskError, r"weights take 2.4 GB", lambda: compress.search(task, FakeTarget(), out=tmp_path / "run"))


def test_weights_in_a_file_beside_the_model_are_taken_in(tmp_path: Path) -> None:
    model = onnx.load(reference_model(tmp_path / "plain.onnx"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    report = searched(tmp_path / "m.onnx", tmp_path)
    kept = onnx.load(tmp_path / "run" / "baseline" / "model.onnx", load_external_data=False)
    assert all(t.data_location != TensorProto.EXTERNAL for t in kept.graph.initializer)
    assert any(c["config"]["widths"] for c in report["candidates"])


@pytest.mark.parametrize(
    ("name", "said"),
    [("../weights.bin", "outside the model's folder"), ("/etc/passwd", "outside"), ("absent.bin", "is not beside it")],
)
def test_weights_in_another_folder_are_not_read(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 400)
    folder = tmp_path / "model"
    folder.mkdir()
    path = _sparse(folder / "m.onnx", name, 100)
    refused(ModelError, said, lambda: searched(path, folder))
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    path = _sparse(folder / "m.onnx", "link.bin", 100)
    refused(ModelError, "outside the model's folder", lambda: searched(path, folder))


def test_weights_that_are_not_numbers(search: Search, task: compress.Task, tmp_path: Path) -> None:
    broken: Any = copy.deepcopy(task.model)
    with torch.no_grad():
        broken[0].weight[0, 0, 0, 0] = float("nan")
    refused(TaskError, "weight '0.weight' holds NaN", lambda: search(task=replace(task, model=broken)))

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        array = numpy_helper.to_array(tensor).copy()
        array.flat[3] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    path = changed(reference_model(tmp_path / "m.onnx"), change)
    refused(ModelError, r"m.onnx: weight 'kernel' holds NaN", lambda: searched(path, tmp_path))


def test_labels_that_the_model_has_no_output_for(
    search: Search, quick: None, task: compress.Task, tmp_path: Path  # noqa: ARG001
) -> None:  # fmt: skip
    images, labels = task.val.tensors
    shifted = replace(task, val=TensorDataset(images, labels + 5))
    refused(TaskError, "labels run from 5 to 14, but the model has 10 outputs", lambda: search(task=shifted))
    path = reference_model(tmp_path / "m.onnx")
    refused(
        TaskError,
        "labels go from 0 to 6; output .* has 5 classes",
        lambda: searched(path, tmp_path, labels=np.arange(60) % 7),
    )


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_with_in_float(
    search: Search, task: compress.Task, capsys: pytest.CaptureFixture[str], kind: torch.dtype
) -> None:
    model: Any = copy.deepcopy(task.model).to(kind)  # type: ignore[union-attr]
    sets = {name: TensorDataset(getattr(task, name).tensors[0].to(kind), getattr(task, name).tensors[1])
            for name in ("train", "val", "test")}  # fmt: skip
    report = search(task=replace(task, model=model, **sets), trials=1).report
    assert report["trials"]["finished"] == 1
    rounded, (images, labels) = copy.deepcopy(model).float().eval(), sets["val"].tensors
    with torch.no_grad():
        expected = float((rounded(images.float()).argmax(1) == labels).float().mean())
    found = report["candidates"][0]["measured"]["fake"]["quality"]["val"]["value"]
    assert found == pytest.approx(expected, abs=1.5 / len(labels)), "of the rounded weights, computed in float"
    assert "half precision" in capsys.readouterr().err
    assert next(model.parameters()).dtype == kind, "the user's own is as it was"


def test_a_file_in_half_precision_is_worked_with_in_float(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16

    report = searched(changed(reference_model(tmp_path / "m.onnx"), change), tmp_path)
    assert any("half precision" in text for text in report["environment"]["warnings"])
    assert any(c["config"]["widths"] for c in report["candidates"])


def test_a_model_without_values_is_refused(task: compress.Task, search: Search, tmp_path: Path) -> None:
    model: Any = copy.deepcopy(task.model).to("meta")  # type: ignore[union-attr]
    refused(TaskError, "weight '0.weight' is on the meta device", lambda: search(task=replace(task, model=model)))
    x = task.val.tensors[0][:4]
    refused(CompressError, "meta", lambda: compress.prune(model, x))
    refused(CompressError, "", lambda: compress.export(model, x, tmp_path / "m.onnx"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: a machine with one runs it as it is")
def test_a_model_on_a_gpu_is_moved(task: compress.Task, search: Search) -> None:
    model: Any = copy.deepcopy(task.model).to("cuda")  # type: ignore[union-attr]
    assert search(task=replace(task, model=model), trials=1, device="cpu").report["trials"]["finished"] == 1
    assert next(model.parameters()).is_cuda


def _masked(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.3)
    return layer


@pytest.mark.parametrize(
    "wrap", [weight_norm, parametrizations.weight_norm, spectral_norm, parametrizations.spectral_norm, _masked]
)
@pytest.mark.filterwarnings("ignore")
def test_computed_weights_become_plain_ones(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    plain = {name: x.shape for name, x in model.state_dict().items()}
    wrap(model[0])
    wrap(model[3])
    model.eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    before = dict(model.state_dict())
    unwrapped = unwrap(model, "mine")
    assert {name: x.shape for name, x in unwrapped.state_dict().items()} == plain
    assert torch.allclose(unwrapped(x), expected, atol=1e-6)
    unwrapped[0].weight.data.zero_()
    assert torch.equal(model(x), expected), "the user's own is as it was"
    assert dict(model.state_dict()).keys() == before.keys()


def test_weight_norm_is_no_obstacle_to_a_search(search: Search, task: compress.Task, tmp_path: Path) -> None:
    model: Any = copy.deepcopy(task.model)
    weight_norm(model[0])
    parametrizations.weight_norm(model[3])
    with torch.no_grad():
        model(task.val.tensors[0][:4])
    report = search(task=replace(task, model=model), trials=2).report
    assert report["trials"]["finished"] == 2
    assert {"0", "3", "6"} & {name for c in report["candidates"] for name in c["config"]["widths"]}
    remove_weight_norm(model[0])  # raises where there is none any more
    compress.export(model, task.val.tensors[0][:4], tmp_path / "m.onnx")


def test_a_wrapper_for_several_devices_is_taken_off(search: Search, task: compress.Task, tmp_path: Path) -> None:
    inner: Any = copy.deepcopy(task.model)
    wrapped = nn.DataParallel(inner)
    report = search(task=replace(task, model=wrapped), trials=2).report
    assert {"0", "3", "6"} & {name for c in report["candidates"] for name in c["config"]["widths"]}, (
        "under its own names"
    )
    x = task.val.tensors[0][:4]
    assert compress.export(wrapped, x, tmp_path / "m.onnx").max_abs < 1e-4
    assert compress.prune(wrapped, x).parameters < sum(p.numel() for p in inner.parameters())


def test_wrappers_inside_and_compiled_modules_are_taken_off() -> None:
    inner = nn.Sequential(nn.DataParallel(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    unwrapped = unwrap(torch.compile(inner), "mine")  # type: ignore[arg-type]
    assert [type(m) for m in unwrapped] == [nn.Linear, nn.ReLU, nn.Linear]
    x = torch.randn(2, 3)
    assert torch.equal(unwrapped(x), inner(x))
    assert isinstance(inner[0], nn.DataParallel)

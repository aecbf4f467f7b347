"""Files whose batch size is meant, or that do not load: said with the file's name and what would help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto
from torch import nn

from compress.onnx_files import isolation
from compress.onnx_files.limits import VersionLimits, fit_to_limits
from compress.onnx_files.normalizing import NormalizedModel, with_free_batch
from compress.onnx_files.opsets import raised_opset
from compress.onnx_files.parity import check_parity
from compress.onnx_files.sessions import open_session
from onnx_models import f32, i64, node, write
from targets.errors import ExportError, ModelError, QuantizeError, TargetError

X = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)


def _freed(path: Path, nodes: list[NodeProto], batch: str | int = "n", **constants: np.ndarray) -> NormalizedModel:
    write(path, nodes, {"x": X}, constants, batch=batch)
    return with_free_batch(NormalizedModel(onnx.load(path)), path, {"x": X})


def test_a_batch_that_is_baked_in_is_set_free_where_nothing_else_changes(tmp_path: Path) -> None:
    nodes = [node("Reshape", "x one", "r"), node("MatMul", "r w")]
    found = _freed(tmp_path / "m.onnx", nodes, one=i64(1, 6), w=f32(6, 3))
    assert found.notes == ("its batch size of 1 was baked in; it is worked with as a model for any batch",)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (
            [node("Reshape", "x five", "r"), node("MatMul", "r w")],
            r"^m\.onnx does not run on several samples at once \(",
        ),
        (
            [node("ReduceMean", "x", keepdims=0)],
            r"at once \(an output has shape \(\) for 3 samples\): its batch size is",
        ),
        ([node("Magic", "x", domain="my.own")], r"^m\.onnx does not load in ONNX Runtime: "),
    ],
)
def test_a_file_for_one_batch_alone_is_refused(tmp_path: Path, nodes: list[NodeProto], said: str) -> None:
    used = {name for one in nodes for name in one.input}
    constants = {name: array for name, array in {"five": i64(5, 6), "w": f32(6, 3)}.items() if name in used}
    with pytest.raises(ModelError, match=said) as caught:
        _freed(tmp_path / "m.onnx", nodes, **constants)
    assert str(tmp_path) not in str(caught.value), "the file's name is enough"


def test_operators_that_came_later_do_not_go_back(tmp_path: Path) -> None:
    write(tmp_path / "m.onnx", [node("Gelu", "x")], {"x": X}, opset=20)
    model = onnx.load(tmp_path / "m.onnx")
    assert fit_to_limits(model, VersionLimits(20, 10)) is model
    said = r"the network needs opset 20, the target's runtime knows up to 17, and it cannot be converted \(.*Gelu"
    with pytest.raises(TargetError, match=said) as caught:
        fit_to_limits(model, VersionLimits(17, 10))
    assert str(caught.value).endswith("; install a newer runtime there")


def test_operators_of_somebody_elses_do_not_go_forward(tmp_path: Path) -> None:
    write(tmp_path / "m.onnx", [node("Upsample", "x", scales=[1.0, 2.0], mode="odd")], {"x": X}, opset=7)
    model = onnx.load(tmp_path / "m.onnx")
    assert raised_opset(model, 7, "m.onnx") is model
    model.graph.node[0].op_type = "Magic"
    with pytest.raises(QuantizeError, match=r"^m\.onnx is of opset 7, 13 is needed, and it cannot be converted \(\S"):
        raised_opset(model, 13, "m.onnx")


class TwoAtMost(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise ValueError("two at most")
        return x.relu()


def test_a_network_for_few_samples_is_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "m.onnx", [node("Relu", "x")], {"x": X})
    assert check_parity(tmp_path / "m.onnx", nn.ReLU(), (torch.from_numpy(X),)).max_abs == 0.0
    said = r"TwoAtMost cannot be exported to ONNX: it does not run on a batch of 8 \(ValueError: two at most\); let"
    with pytest.raises(ExportError, match=said):
        check_parity(tmp_path / "m.onnx", TwoAtMost(), (torch.from_numpy(X),))


@pytest.mark.parametrize(("error", "kind"), [(MemoryError("9 GB"), MemoryError), (RuntimeError("9 axes"), ModelError)])
@pytest.mark.parametrize("step", ["load", "run"])
def test_memory_that_is_used_up_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception, kind: type[Exception]
) -> None:
    """In the worker; outside, it becomes what may be tried again."""
    import onnxruntime

    write(tmp_path / "m.onnx", [node("Relu", "x")], {"x": X})
    monkeypatch.setattr(isolation, "_INSIDE", True)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    if step == "load":
        monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
        with pytest.raises(kind, match="9"):
            open_session(tmp_path / "m.onnx")
        return
    session = open_session(tmp_path / "m.onnx")
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    with pytest.raises(kind, match="9"):
        session.run(None, {"x": X})

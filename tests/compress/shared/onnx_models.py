"""Small ONNX models written node by node, with random numbers that are the same in every test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)
IMAGE, ROWS, WORDS = (3, 6, 8, 8), (3, 5, 6), (3, 7)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers, whichever tests ran before."""
    RANDOM.bit_generator.state = np.random.default_rng(0).bit_generator.state


def f32(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> NodeProto:
    """Inputs and outputs are names between spaces; ``_`` is one that is left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    domain = attributes.pop("domain", "")
    return helper.make_node(kind, names, outputs.split(), domain=domain, **attributes)


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
    batch: str | int = "n",
) -> tuple[Path, tuple[torch.Tensor, ...]]:
    """A model of these nodes, and its inputs as tensors. Outputs bear no shape: ONNX Runtime infers it."""
    made = helper.make_graph(
        list(nodes),
        "g",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(x.dtype), [batch, *x.shape[1:]])
            for k, x in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name, type=onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=kind)))
         for name, kind in (((o, TensorProto.FLOAT) if isinstance(o, str) else o) for o in outputs)],
        [numpy_helper.from_array(x, name) for name, x in (constants or {}).items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(made, opset_imports=imports, ir_version=9), path)
    return path, tuple(torch.from_numpy(x) for x in inputs.values())

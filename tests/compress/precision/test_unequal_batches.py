"""Files that fit into memory in batches of unequal size: what is compared is of the same samples all the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.precision import activations, quantizer, ranges, refining
from compress.values.configs import PrecisionSettings
from targets.target import Capabilities

FLOAT = TensorProto.FLOAT


@pytest.mark.parametrize("method", ["minmax", "percentile", "search"])
@pytest.mark.parametrize("refined", [{}, {"adaround": True}, {"correct_bias": True}])
def test_files_that_fit_into_memory_in_batches_of_unequal_size_are_compared_on_the_same_samples(
    method: str, refined: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that is made often takes more or less room than its source."""
    sizes = itertools.cycle([32, 16, 8])
    for module in (activations, quantizer, ranges):
        monkeypatch.setattr(module, "fitting", lambda *_: next(sizes))
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm"), helper.make_node("Relu", ["y"], ["z"])]
    weights = {"w": rng.normal(size=(6, 4)), "b": rng.normal(size=4)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("z", FLOAT, ["n", 4])],
        [numpy_helper.from_array(x.astype(np.float32), name) for name, x in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    samples = {"x": rng.normal(size=(75, 6)).astype(np.float32)}
    settings = PrecisionSettings(calibration=method, **refined)
    model = refining.refine(tmp_path / "m.onnx", samples, Capabilities(), settings, ())
    onnx.save(model, tmp_path / "r.onnx")
    ranges.collect_ranges(tmp_path / "r.onnx", samples, method, tmp_path / "ranges.json", Capabilities())
    found = quantizer.outputs(tmp_path / "r.onnx", model, samples)
    assert found[0].shape == (75, 4)

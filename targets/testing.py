"""The conformance suite every target passes, for those who write one.

    from targets.testing import TargetConformance

    class TestMine(TargetConformance):
        def make(self) -> Target:
            return MyTarget(threads=1)

pytest runs the inherited tests. Needs the onnx package. Timing itself is not tested: only what must hold on any
machine, however busy.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from targets.errors import CompressError, ModelError, StageError
from targets.registry import parse
from targets.target import Measurement, Protocol, Target

QUICK = Protocol(width=0.5, seconds=0.2, rounds=3, block=0.002, warmup=0.002)
"""Just enough measuring to see that it works."""
_SHAPE = (3, 8, 8)
_CLASSES = 5


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of the reference model: 3x3 convolution (8x3), its bias, and a dense layer (5x8)."""
    random = np.random.default_rng(seed)
    shapes = {"kernel": (8, 3, 3, 3), "bias": (8,), "dense": (_CLASSES, 8), "offset": (_CLASSES,)}
    return {name: (0.3 * random.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def reference_model(path: Path, *, batch: int | None = None, seed: int = 0) -> Path:
    """Write conv + relu + mean + gemm on 3x8x8 inputs, with a dynamic batch unless one is given."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "dense", "offset"], ["y"], name="gemm", transB=1),
    ]
    axis: Any = "batch" if batch is None else batch
    graph = helper.make_graph(
        nodes,
        "reference",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [axis, *_SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [axis, _CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights(seed).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def reference_output(x: np.ndarray, seed: int = 0) -> np.ndarray:
    """What the reference model computes, in float64: (n, 3, 8, 8) -> (n, 5)."""
    own = {name: value.astype(np.float64) for name, value in weights(seed).items()}
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    conv = np.einsum("nchwij,ocij->nohw", windows, own["kernel"]) + own["bias"][None, :, None, None]
    pooled = np.maximum(conv, 0.0).mean(axis=(2, 3))
    result: np.ndarray = pooled @ own["dense"].T + own["offset"]
    return result


def samples(count: int, seed: int = 1) -> np.ndarray:
    """Inputs for the reference model, (count, 3, 8, 8) float32."""
    return np.random.default_rng(seed).standard_normal((count, *_SHAPE)).astype(np.float32)


class TargetConformance:
    """Inherit it, implement ``make``, and pytest does the rest."""

    tolerance: float = 1e-4
    """Largest absolute difference to the reference output, whose values are around 1."""

    def make(self) -> Target:
        """Make the target under test anew; every test closes the one that it was given."""
        # An abstract method would not do: pytest passes over a class that cannot be made, and nothing would be tested.
        raise TypeError(f"{type(self).__name__} must say in make() which target it is about")

    def make_crashing(self) -> Target | None:
        """A target whose runtime process dies on every request; None where there is no such process."""
        return None

    def thread_count(self, target: Target, model: Path) -> int | None:  # noqa: ARG002  for those who override it
        """Threads that ``target`` really uses to run ``model``; None where that cannot be seen."""
        return None

    def asked_threads(self) -> int:
        """The thread count that ``make`` asks for."""
        return 1

    def test_matches_the_reference_output(self, tmp_path: Path) -> None:
        """The numbers are those of the model, for a batch that does not divide the number of samples."""
        target, x = self.make(), samples(7)
        try:
            (y,) = target.run(reference_model(tmp_path / "m.onnx"), {"x": x}, batch=3)
        finally:
            target.close()
        assert y.shape == (7, _CLASSES)
        np.testing.assert_allclose(y, reference_output(x), atol=self.tolerance)

    def test_batch_size_does_not_change_the_result(self, tmp_path: Path) -> None:
        """Samples run one at a time, all at once, or in a batch larger than their number give the same outputs."""
        target, x = self.make(), samples(5)
        path = reference_model(tmp_path / "m.onnx")
        try:
            results = [target.run(path, {"x": x}, batch=batch)[0] for batch in (1, 5, 64)]
        finally:
            target.close()
        for one in results[1:]:
            np.testing.assert_allclose(one, results[0], atol=self.tolerance)

    def test_static_batch_is_padded_and_cut(self, tmp_path: Path) -> None:
        """A model exported at batch 4 still scores seven samples."""
        target, x = self.make(), samples(7)
        try:
            (y,) = target.run(reference_model(tmp_path / "m.onnx", batch=4), {"x": x})
        finally:
            target.close()
        np.testing.assert_allclose(y, reference_output(x), atol=self.tolerance)

    def test_follows_a_file_that_changes(self, tmp_path: Path) -> None:
        """No result of an old file is given for a new one at the same path."""
        target, x, path = self.make(), samples(2), tmp_path / "m.onnx"
        try:
            target.run(reference_model(path), {"x": x})
            (y,) = target.run(reference_model(path, seed=5), {"x": x})
        finally:
            target.close()
        np.testing.assert_allclose(y, reference_output(x, seed=5), atol=self.tolerance)

    def test_rejects_a_broken_file(self, tmp_path: Path) -> None:
        """Truncated, empty, not a model, not there: ModelError on one line that names the file."""
        whole = reference_model(tmp_path / "whole.onnx").read_bytes()
        (tmp_path / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "empty.onnx").write_bytes(b"")
        (tmp_path / "text.onnx").write_bytes(b"hello " * 100)
        target = self.make()
        try:
            for name in ("truncated.onnx", "empty.onnx", "text.onnx", "missing.onnx"):
                error = _raised(target, tmp_path / name)
                assert isinstance(error, ModelError), f"{name}: {error!r}"
                assert name in str(error)
                assert "\n" not in str(error)
        finally:
            target.close()

    def test_works_after_a_broken_file(self, tmp_path: Path) -> None:
        """After a broken file was refused, the same target measures a good one."""
        (tmp_path / "text.onnx").write_bytes(b"hello")
        target = self.make()
        try:
            assert isinstance(_raised(target, tmp_path / "text.onnx"), ModelError)
            assert len(target.measure([reference_model(tmp_path / "m.onnx")], protocol=QUICK)) == 1
        finally:
            target.close()

    def test_measures_a_model_against_itself(self, tmp_path: Path) -> None:
        """Structure of the result: order, sizes, a reference of exactly 1, intervals around values."""
        paths = [reference_model(tmp_path / name) for name in ("a.onnx", "b.onnx")]
        target = self.make()
        try:
            measured = target.measure(paths, protocol=QUICK)
        finally:
            target.close()
        assert [one.path for one in measured] == paths
        for one in measured:
            _check_measurement(one, target)
        if measured[0].latency:
            assert (measured[0].latency.ratio, measured[0].latency.low, measured[0].latency.high) == (1, 1, 1)

    def test_name_is_canonical(self) -> None:
        """``NAME[:KEY=VALUE,...]`` with sorted keys, and the same again from a second one."""
        first, second = self.make(), self.make()
        _, settings = parse(first.name)
        assert list(settings) == sorted(settings)
        assert first.name == second.name

    def test_describes_itself_as_json_twice_the_same(self) -> None:
        """The description is part of a cache key: JSON, and stable."""
        target = self.make()
        assert json.loads(json.dumps(target.describe())) == target.describe()

    def test_capabilities_make_sense(self) -> None:
        """Formats, steps and opsets are within what the rest of the project understands."""
        target = self.make()
        try:
            can = target.capabilities()
        finally:
            target.close()
        assert can.int8_format in ("u8s8", "s8s8", "tflite", "tflite-float-io")
        assert can.channel_step >= 1
        assert can.opset >= 13
        # What does not run floats says so: then a float file is measured as what is made of it.
        assert "fp32" in (*can.precisions, *can.refuses)

    def test_honours_its_thread_count(self, tmp_path: Path) -> None:
        """Where it can be seen, no more threads run than were asked for."""
        target = self.make()
        try:
            seen = self.thread_count(target, reference_model(tmp_path / "m.onnx"))
        finally:
            target.close()
        assert seen is None or seen == self.asked_threads()

    def test_survives_a_crash_of_its_process(self, tmp_path: Path) -> None:
        """A crash is an error of the stage, said again at the next request, and never a hang."""
        target = self.make_crashing()
        if target is None:
            return
        path = reference_model(tmp_path / "m.onnx")
        try:
            for _ in range(2):
                error = _raised(target, path)
                assert isinstance(error, StageError), repr(error)
        finally:
            target.close()


def _raised(target: Target, path: Path) -> CompressError | None:
    try:
        target.measure([path], protocol=QUICK)
    except CompressError as error:
        return error
    return None


def _check_measurement(one: Measurement, target: Target) -> None:
    assert one.target == target.name
    assert one.size == one.path.stat().st_size
    if target.counted:
        assert one.latency is None
        assert (getattr(one, target.cost_quantity) or 0) > 0
        return
    assert one.latency is not None
    found = one.latency
    assert 0 < found.p50 <= found.p95 < math.inf
    assert 0 < found.low <= found.ratio <= found.high < math.inf
    assert 0 <= found.load <= 1
    assert one.samples
    assert found.runs >= sum(len(part.runs) for part in one.samples) > 0

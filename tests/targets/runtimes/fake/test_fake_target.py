"""The public fake: conformance, costs with the right shape, faults where they were asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import targets.testing
from targets.errors import MeasurementError, ModelError, TransientError
from targets.runtimes.fake import costs
from targets.runtimes.fake.fake_target import FakeClock, FakeTarget
from targets.target import Protocol, Target
from targets.testing import TargetConformance, reference_model


class TestFake(TargetConformance):
    def make(self) -> Target:
        return FakeTarget()

    def make_crashing(self) -> Target | None:
        return FakeTarget(faults={"measure": MeasurementError("killed by SIGSEGV while loading m.onnx")})


class TestCounted(TargetConformance):
    def make(self) -> Target:
        return FakeTarget(instructions=True)


def conv_model(path: Path, width: int, *, quantized: bool = False) -> Path:
    """One 3x3 convolution from 8 to ``width`` channels on 6x6, its weights behind a DequantizeLinear if asked."""
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.ones((width, 8, 3, 3), np.int8 if quantized else np.float32)
    initializers = [numpy_helper.from_array(kernel, "q" if quantized else "k")]
    nodes = [helper.make_node("Conv", ["x", "k"], ["y"], pads=[1, 1, 1, 1])]
    if quantized:
        initializers.append(numpy_helper.from_array(np.float32(0.1), "scale"))
        nodes.insert(0, helper.make_node("DequantizeLinear", ["q", "scale"], ["k"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width, 6, 6])],
        initializers,
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


def test_the_default_cost_is_counted_from_the_graph(tmp_path):
    path = conv_model(tmp_path / "m.onnx", 16)
    expected = costs.RUN_SECONDS + costs.NODE_SECONDS + costs.MAC_SECONDS * 16 * 8 * 9 * 36
    assert costs.inference_seconds(path) == pytest.approx(expected)


def test_widths_cost_in_steps_and_int8_costs_half(tmp_path):
    fixed = costs.RUN_SECONDS + costs.NODE_SECONDS

    def macs(width: int, **options: bool) -> float:
        return costs.inference_seconds(conv_model(tmp_path / "m.onnx", width, **options)) - fixed

    assert macs(9) == macs(16) > macs(8)
    assert macs(16, quantized=True) == pytest.approx(macs(16) * costs.INT8_FACTOR)


def test_costs_may_be_a_table_or_a_function(tmp_path):
    a, b = (reference_model(tmp_path / name) for name in ("a.onnx", "b.onnx"))
    by_name = FakeTarget(cost={"a.onnx": 2.0, "b.onnx": 1.0}).measure([a, b])
    by_function = FakeTarget(cost=lambda path: 2.0 if path == a else 1.0).measure([a, b])
    for measured in (by_name, by_function):
        assert measured[1].latency is not None
        assert measured[1].latency.ratio == 0.5
        assert measured[1].latency.p50 == 1.0
    with pytest.raises(ModelError, match=r"no cost for 'a\.onnx'"):
        FakeTarget(cost={}).measure([a])


def test_noise_is_drawn_from_the_seed(tmp_path):
    paths = [reference_model(tmp_path / name) for name in ("a.onnx", "b.onnx")]
    first, same, other = (FakeTarget(noise=0.1, seed=seed).measure(paths)[1].latency for seed in (0, 0, 1))
    assert first == same != other
    assert first is not None
    assert 0.9 < first.low < first.ratio < first.high < 1.1


def test_faults_strike_once_by_number_and_always_by_operation(model):
    target = FakeTarget(faults={2: TransientError("device gone"), "run": MeasurementError})
    target.measure([model])
    with pytest.raises(TransientError, match="device gone"):
        target.measure([model])
    target.measure([model])
    for _ in range(2):
        with pytest.raises(MeasurementError):
            target.run(model, {})
    assert [operation for operation, _ in target.calls] == ["measure", "measure", "measure", "run", "run"]


def test_a_fault_may_be_something_to_do(model):
    struck: list[int] = []
    FakeTarget(faults={"measure": lambda: struck.append(1)}).measure([model])
    assert struck == [1]


def test_a_given_function_answers_run(model):
    target = FakeTarget(run=lambda _, inputs: [inputs["x"] * 2])
    np.testing.assert_array_equal(target.run(model, {"x": np.ones(3)})[0], 2 * np.ones(3))


def test_counted_costs_have_no_latency(model):
    target = FakeTarget(instructions=True, cost={"model.onnx": 1e-6})
    (measured,) = target.measure([model])
    assert (measured.latency, measured.instructions) == (None, 1000)


def test_a_given_clock_drives_the_real_loop(tmp_path):
    """Time is the test's: rounds, estimates and the time that is spent follow from the costs alone."""
    paths = [reference_model(tmp_path / name) for name in ("a.onnx", "b.onnx")]
    clock, told = FakeClock(), []
    target = FakeTarget(cost={"a.onnx": 1e-3, "b.onnx": 5e-4}, clock=clock, noise=0.2)
    one, other = target.measure(paths, protocol=Protocol(width=0.05, seconds=60.0, rounds=20), watch=told.append)
    assert other.latency is not None
    assert other.latency.ratio == pytest.approx(0.5, rel=0.02)
    assert other.settled
    assert clock.now() > 20 * 2 * 0.02 * 1e9, "twenty rounds of two blocks, and the warming up"
    assert told
    assert told[-1].ratios[1][0] == pytest.approx(0.5, rel=0.05)
    assert one.latency is not None
    assert one.latency.ratio == 1.0


def test_time_that_was_taken_from_it_shows_as_load(tmp_path):
    class Held(FakeClock):
        def advance(self, seconds, ran=None):
            super().advance(2 * seconds, seconds if ran is None else ran)

    target = FakeTarget(cost=lambda _: 1e-3, clock=Held())
    (one,) = target.measure([reference_model(tmp_path / "a.onnx")], protocol=Protocol(seconds=1.0))
    assert one.latency is not None
    assert one.latency.load == pytest.approx(0.5)


def test_what_cannot_be_had_of_it_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"^no model to measure$"):
        FakeTarget().measure([])
    with pytest.raises(ModelError, match=r"absent\.onnx: no such file$"):
        FakeTarget().run(tmp_path / "absent.onnx", {})
    path = conv_model(tmp_path / "lacking.onnx", 8)
    lacking = onnx.load(path)
    del lacking.graph.node[0].input[1:]
    onnx.save(lacking, path)
    with pytest.raises(ModelError, match=r"lacking\.onnx: operator Conv \(\) lacks inputs or dimensions"):
        FakeTarget().measure([path])


def test_a_conformance_suite_must_say_what_it_is_about():
    with pytest.raises(TypeError, match=r"^TargetConformance must say in make\(\) which target it is about$"):
        targets.testing.TargetConformance().make()

"""ARM in an emulator: conformance, counts that repeat, kernels that are the emulated CPU's."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest

from processes import alive, wait_for
from targets.emulated_arm import arm_installation
from targets.emulated_arm.arm_emulated import ArmEmulated, explain_start
from targets.emulated_arm.arm_installation import COMMAND
from targets.errors import MeasurementError, ModelError, TargetError, TargetUnavailable, TransientError
from targets.registry import get
from targets.settings import Setting
from targets.target import Estimate, Target
from targets.testing import TargetConformance, reference_output, samples
from targets.workers.process import Launch

onnx = pytest.importorskip("onnx")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

RUNTIMES = Path(__file__).resolve().parents[1] / "faulty_runtimes"
LACKING = arm_installation.missing()
REPEATS = 1e-3
"""Counts of one model differ by this share at most."""

installed = pytest.mark.skipif(LACKING is not None, reason=f"needs {LACKING}; run: {COMMAND}")


class Kept(ArmEmulated):
    """Its emulated process outlives the tests that close it: starting one takes seconds."""

    def close(self) -> None:
        pass


class Crashing(ArmEmulated):
    """Goes wrong as ``how`` says, inside the emulator."""

    runtime = "misbehaving_guest:Misbehaving"
    settings = {**ArmEmulated.settings, "how": Setting("segfault")}  # noqa: RUF012

    def launch(self) -> Launch:
        ours = super().launch()
        path = f"{ours.environment['PYTHONPATH']}:{RUNTIMES}"
        return replace(ours, environment={**ours.environment, "PYTHONPATH": path})


@pytest.fixture(scope="module")
def kept() -> Iterator[Callable[[str], ArmEmulated]]:
    """One target for each CPU."""
    made: dict[str, Kept] = {}
    yield lambda cpu: made.setdefault(cpu, Kept(cpu=cpu))
    for one in made.values():
        ArmEmulated.close(one)


@installed
class TestConformance(TargetConformance):
    @pytest.fixture(autouse=True)
    def _shared(self, kept: Callable[[str], ArmEmulated]) -> None:
        self._kept = kept

    def make(self) -> Target:
        return self._kept("cortex-a72")

    def make_crashing(self) -> Target | None:
        return Crashing(how="segfault")


def convolution(path: Path, activation: Any, channels: int = 32) -> Path:
    """A 3x3 convolution on 16x16 in QDQ form: activations of that type, int8 weights, a scale a channel."""
    random = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.05),
        "z": activation(128 if activation is np.uint8 else 0),
        "w": random.integers(-127, 128, (channels, channels, 3, 3)).astype(np.int8),
        "ws": np.full(channels, 0.01, np.float32),
        "wz": np.zeros(channels, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 16, 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def count(target: Target, path: Path) -> int:
    [found] = target.measure([path])
    assert found.instructions is not None
    return found.instructions


@installed
def test_counts_repeat_between_calls_and_processes(kept, model, tmp_path):
    """The smallest model is the hardest: what Python does around it weighs most."""
    target, large = kept("cortex-a72"), convolution(tmp_path / "a-file-with-a-longer-name.onnx", np.uint8)
    first = [count(target, model), count(target, large)]
    target.run(model, {"x": samples(64)})  # what it leaves in memory once moved the counts of a tiny model by 0.2 %
    again = [one.instructions for one in target.measure([large, model, large, model])]
    fresh = ArmEmulated(cpu="cortex-a72")
    other = [one.instructions for one in fresh.measure([model, large])]
    fresh.close()
    assert [again[1], again[3], other[0]] == pytest.approx([first[0]] * 3, rel=REPEATS)
    assert [again[0], again[2], other[1]] == pytest.approx([first[1]] * 3, rel=REPEATS)


@installed
def test_a_count_is_that_of_the_model(kept, tmp_path):
    """Twice the channels are four times the products; nothing around them hides it."""
    target = kept("cortex-a72")
    narrow = count(target, convolution(tmp_path / "32.onnx", np.uint8, 32))
    wide = count(target, convolution(tmp_path / "64.onnx", np.uint8, 64))
    products = 32 * 32 * 9 * 256
    # Sixteen of them at most are one instruction.
    assert products / 16 < narrow < products
    assert 2.5 < wide / narrow < 4.1


@installed
def test_dot_products_make_int8_cheaper_and_s8s8_the_cheapest(kept, tmp_path):
    unsigned, signed = convolution(tmp_path / "u.onnx", np.uint8), convolution(tmp_path / "s.onnx", np.int8)
    old, new = kept("cortex-a72"), kept("cortex-a76")
    assert count(new, unsigned) < 0.7 * count(old, unsigned)
    assert count(new, signed) < count(new, unsigned)
    assert (old.capabilities().int8_format, new.capabilities().int8_format) == ("u8s8", "s8s8")


@installed
@pytest.mark.parametrize("dtype", [TensorProto.STRING, TensorProto.INT64])
def test_inputs_of_any_type_are_counted(kept, tmp_path, dtype):
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    ends = [[helper.make_tensor_value_info(name, dtype, ["n", 3])] for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path / "identity.onnx"
    path.write_bytes(model.SerializeToString())
    assert 0 < count(kept("cortex-a72"), path) < 200_000


@installed
def test_outputs_in_the_emulator_are_those_of_the_model(kept, model):
    x = samples(3)
    (y,) = kept("cortex-a76").run(model, {"x": x})
    np.testing.assert_allclose(y, reference_output(x), atol=1e-4)


@installed
def test_cost_is_a_count_and_nothing_else(kept, model):
    heard: list[Estimate] = []
    [found] = kept("cortex-a72").measure([model], watch=heard.append)
    assert (found.latency, found.memory, found.samples, found.settled) == (None, None, (), True)
    assert any("counting" in one.stage for one in heard)


@installed
def test_the_graph_that_runs_is_shown(kept, tmp_path):
    layers = kept("cortex-a72").audit(convolution(tmp_path / "u.onnx", np.uint8))
    assert [layer.integer for layer in layers] == [True]


@installed
def test_a_description_names_cpu_emulator_and_installation(kept):
    old, new = kept("cortex-a72").describe(), kept("cortex-a76").describe()
    assert old["target"] == "arm-emulated"
    assert new["target"] == "arm-emulated:cpu=cortex-a76"
    assert "cortex-a76" in new["machine"]["cpu"]
    assert new["machine"]["emulator"].startswith("qemu ")
    assert set(new["packages"]) == {"numpy", "onnxruntime"}
    assert old["installation"] == new["installation"]
    assert "asimddp" in new["machine"]["features"]
    assert "asimddp" not in old["machine"]["features"]


@installed
def test_unknown_inputs_and_shapes_are_refused(kept, model):
    target = kept("cortex-a72")
    with pytest.raises(ModelError, match="no model has that input; inputs are x"):
        target.measure([model], inputs={"nonsense": samples(1)})
    with pytest.raises(TargetError, match="no model has that input"):
        target.measure([model], shapes={"nonsense": (1, 3)})
    with pytest.raises(ModelError, match="no model to measure"):
        target.measure([])


@installed
def test_a_hanging_guest_is_given_up_and_leaves_nothing(model):
    target = Crashing(how="hang")
    try:
        target.counter = target.start_worker(afresh=True)
        target.counter.ask({"operation": "facts"})  # it has started
        target.counter.patience = 0.5
        with pytest.raises(MeasurementError, match=r"hung: no answer in 0\.5 s while counting instructions"):
            target.measure([model])
    finally:
        target.close()
    pid = int(model.with_suffix(".pid").read_text())
    wait_for(lambda: not alive(pid), seconds=10)


@installed
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("segfault", "killed by SIGSEGV while counting"),
        pytest.param("exit", "ended with status 7", marks=pytest.mark.slow),
        pytest.param(
            "raise", "RuntimeError while counting instructions: first line second line", marks=pytest.mark.slow
        ),
    ],
)
def test_what_goes_wrong_while_counting_is_said(model, how, said):
    target = Crashing(how=how)
    try:
        with pytest.raises(MeasurementError, match=said):
            target.measure([model])
    finally:
        target.close()


@installed
def test_a_model_that_eats_memory_is_stopped(model):
    target = Crashing(how="eat")
    target.memory_limit = 1_500_000_000
    try:
        with pytest.raises(TransientError, match=r"GB of memory, more than the limit of 1\.50 GB"):
            target.measure([model])
    finally:
        target.close()


@installed
@pytest.mark.slow
def test_an_emulator_that_was_killed_is_started_again(model):
    target = ArmEmulated()
    try:
        before = count(target, model)
        assert target.counter is not None
        os.kill(target.counter.pid, signal.SIGKILL)
        wait_for(lambda: not target.counter.alive)
        assert count(target, model) == pytest.approx(before, rel=REPEATS)
    finally:
        target.close()


@installed
@pytest.mark.slow
def test_a_fresh_installation_counts_the_same(kept, model, tmp_path, monkeypatch):
    before, identity = count(kept("cortex-a72"), model), kept("cortex-a72").describe()["installation"]
    monkeypatch.setenv(arm_installation.VARIABLE, str(tmp_path / "a" / "longer" / "path" / "to" / "another-system"))
    try:
        arm_installation.install_system()
    except TargetUnavailable as error:
        # A server that answers, but not with what was asked for, is no excuse.
        if "this needs the network" in str(error) and not isinstance(error.__context__, HTTPError):
            pytest.skip(f"{error}; connect this machine to Debian's mirror and run this test again")
        raise
    other = ArmEmulated()
    try:
        assert count(other, model) == pytest.approx(before, rel=REPEATS)
        assert len(other.describe()["installation"]) == len(identity)
    finally:
        other.close()


def test_the_cpu_is_one_that_is_known():
    with pytest.raises(TargetError, match="cpu=i486 is not allowed; cpu is one of cortex-a35"):
        get("arm-emulated:cpu=i486") if LACKING is None else ArmEmulated(cpu="i486")


def test_without_an_installation_the_command_is_named(monkeypatch, tmp_path, model):
    monkeypatch.setenv(arm_installation.VARIABLE, str(tmp_path / "none"))
    for ask in (ArmEmulated().describe, ArmEmulated().capabilities, lambda: ArmEmulated().measure([model])):
        with pytest.raises(TargetUnavailable, match=f"run: {COMMAND}"):
            ask()


def test_a_plugin_that_does_not_fit_names_what_to_delete():
    words = "qemu-aarch64: Could not load plugin /x/counting_plugin.so: plugin requires API version 1"
    assert "delete" in str(explain_start(1, "starting", words))
    assert explain_start(1, "starting", "something else") is None

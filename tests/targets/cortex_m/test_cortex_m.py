"""A microcontroller in an emulator: conformance, counts to the digit, memory that adds up, files that are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from golden_files import golden_file
from targets.cortex_m import cortex_installation
from targets.cortex_m.chips import CHIPS
from targets.cortex_m.cores import CORES
from targets.cortex_m.cortex_m import CortexM
from targets.cortex_m.emulator import Emulator, Run, execute
from targets.errors import MeasurementError, ModelError, TargetError
from targets.registry import get
from targets.target import Target
from targets.testing import TargetConformance, reference_model, samples
from targets.tflite import installation
from targets.tflite.conversion import convert

onnx = pytest.importorskip("onnx")
EMULATOR = cortex_installation.missing()
CONVERTER = installation.missing_tflm()
emulated = pytest.mark.skipif(EMULATOR is not None, reason=f"needs {EMULATOR}; run: {cortex_installation.COMMAND}")
converted = pytest.mark.skipif(CONVERTER is not None, reason=f"needs {CONVERTER}; run: {installation.COMMAND}")

COMPILER = "12.2.1 20221205"
"""Another compiler makes other code, which executes another number of instructions."""
GOLDEN = {"m4": (7_696_775, 7_697_256, 22_820), "m7": (7_696_775, 7_697_256, 22_820), "m55": (1_812_477, None, 27_348)}
"""Instructions of MLPerf Tiny's keyword spotter on its first two samples, and its arena in bytes."""


class Scripted(CortexM):
    """A shell script runs in the emulator's place."""

    script: Path

    def _emulator(self) -> Emulator:
        return replace(super()._emulator(), command=self.script)


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[[str], Scripted]:
    """Makes targets whose emulator is a shell script of these lines."""

    def make(lines: str) -> Scripted:
        made = Scripted()
        made.script = tmp_path / "emulator"
        made.script.write_text(f"#!/bin/sh\n{lines}\n")
        made.script.chmod(0o755)
        return made

    return make


@emulated
@converted
class TestM4(TargetConformance):
    @pytest.fixture(autouse=True)
    def _keep(self, scripted: Callable[[str], Scripted]) -> None:
        self._scripted = scripted

    def make(self) -> Target:
        return get("cortex-m:cpu=m4")

    def make_crashing(self) -> Target | None:
        return self._scripted("kill -SEGV $$")


@emulated
@converted
class TestM55(TargetConformance):
    def make(self) -> Target:
        return get("cortex-m:cpu=m55")


def _emulator_of(cpu: str) -> Emulator:
    return CortexM(cpu=cpu)._emulator()


def _golden_run(cpu: str, number: int, **how: bool) -> Run:
    x = np.load(golden_file("kws_ref_model.in.npy"))[:number]
    return execute(_emulator_of(cpu), golden_file("kws_ref_model.tflite"), x.tobytes(), **how)


@emulated
@pytest.mark.parametrize("cpu", CORES)
def test_counts_of_the_reference_model_are_known_to_the_digit(cpu):
    first, second, arena = GOLDEN[cpu]
    run = _golden_run(cpu, 2)
    assert run.arena == arena
    if COMPILER in cortex_installation.installed()["compiler"]:
        assert run.instructions[0] == first
        assert run.instructions[1] == (second or run.instructions[1])
    assert abs(run.instructions[0] / first - 1) < 0.05  # whichever compiler


@emulated
@pytest.mark.parametrize("cpu", CORES)
def test_outputs_are_those_of_the_interpreter_on_this_machine(cpu):
    """What the wheel of ``tflite-micro`` gives for these samples, bit for bit."""
    wanted = np.load(golden_file("kws_ref_model.out.npy"))
    found = np.frombuffer(_golden_run(cpu, len(wanted), count=False).output, wanted.dtype)
    np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)


@emulated
def test_operators_add_up_to_the_inference():
    run = _golden_run("m4", 1, watch=True)
    products = [one for one in run.operators if one.operator in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    assert [one.operator for one in run.operators][-4:] == ["AVERAGE_POOL_2D", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX"]
    assert len(products) == 9
    total = _golden_run("m4", 1).instructions[0]
    # The interpreter's own steps between operators are all that is missing.
    assert 0.999 * total < sum(one.instructions for one in run.operators) < total


@emulated
def test_memory_and_flash_are_more_than_arena_and_file_and_repeat():
    model = golden_file("kws_ref_model.tflite")
    target = get("cortex-m")
    first, second = (target.measure([model])[0] for _ in range(2))
    assert (first.instructions, first.memory, first.flash) == (second.instructions, second.memory, second.flash)
    # Some hundred bytes of stack and of static data; some ten thousand of code.
    assert 22_820 + 500 < first.memory < 22_820 + 8_000
    assert model.stat().st_size + 20_000 < first.flash < model.stat().st_size + 200_000
    [*layers] = target.audit(model)
    assert len(layers) == 10
    assert all(layer.integer and layer.instructions > 1_000 for layer in layers)


@emulated
@converted
def test_int8_takes_fewer_instructions_and_less_memory(tmp_path):
    source = reference_model(tmp_path / "m.onnx")
    int8 = convert(source, "int8", {"x": samples(64)}, tmp_path / "int8.tflite").path
    target = get("cortex-m")
    float_, small = target.measure([source, int8])
    assert small.instructions < 0.6 * float_.instructions
    assert small.memory < float_.memory
    wanted = get("tflm").run(int8, {"x": samples(16)})[0]
    np.testing.assert_array_equal(target.run(int8, {"x": samples(16)})[0], wanted)


@emulated
@converted
@pytest.mark.parametrize("kind", ["fp16", "int8-dynamic"])
def test_stored_weights_are_refused_by_the_operator(tmp_path, kind):
    made = convert(reference_model(tmp_path / "m.onnx"), kind, {"x": samples(64)}, tmp_path / "m.tflite").path
    with pytest.raises(ModelError, match=r"floats meet stored weights in (CONV_2D|DEQUANTIZE), .* fp32 or in int8"):
        get("cortex-m").measure([made])


@emulated
@converted
def test_an_operator_that_is_not_there_is_named(tmp_path):
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=1)]
    graph = onnx.helper.make_graph(
        nodes, "top", [value("x", onnx.TensorProto.FLOAT, [1, 8])], [value("y", onnx.TensorProto.FLOAT, [1, 2])],
        [onnx.numpy_helper.from_array(np.array([2]), "k")],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "top.onnx")
    with pytest.raises(ModelError, match=r"top\.onnx: TensorFlow Lite Micro has no TOPK_V2; use operators it has"):
        get("cortex-m").measure([tmp_path / "top.onnx"])


@emulated
@pytest.mark.parametrize(
    ("lines", "kind", "words"),
    [
        ("kill -SEGV $$", MeasurementError, r"the emulated Cortex-M4 failed \(SIGSEGV\)"),
        ("echo 'fault at 00000bad'; exit 70", MeasurementError, r"failed \(status 70\): fault at 00000bad"),
        ("echo 'Failed to resize buffer'; echo 'refused its tensors cannot be allocated'; exit 2", ModelError,
         r"refuses it on Cortex-M4: its tensors cannot be allocated \(Failed to resize buffer\)"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_the_emulator_is_one_line(scripted, lines, kind, words):
    with pytest.raises(kind, match=words) as raised:
        scripted(lines).measure([golden_file("kws_ref_model.tflite")])
    assert "\n" not in str(raised.value)
    assert "kws_ref_model.tflite" in str(raised.value)


@emulated
def test_a_model_larger_than_any_arena_is_refused(tmp_path):
    whole = _emulator_of("m4")
    start, _ = whole.core.big
    # The model's place alone is taken; the arena gets what is left of the board's memory.
    data = golden_file("kws_ref_model.tflite").read_bytes()
    assert start % 16 == 0
    padded = data + bytes(whole.core.big[1] - len(data) - 8192)
    path = tmp_path / "padded.tflite"
    path.write_bytes(padded)
    with pytest.raises(ModelError, match=r"padded\.tflite: TensorFlow Lite Micro refuses it on Cortex-M4: its tensors"):
        get("cortex-m").measure([path])


def test_a_chip_brings_its_core_and_its_limits():
    target = CortexM(chip="stm32f746")
    assert target.name == "cortex-m:chip=stm32f746,cpu=m7"
    assert dict(target.limits) == {"memory": 320 * 1024, "size": 1024 * 1024}
    assert dict(CortexM().limits) == {}
    with pytest.raises(TargetError, match="stm32f746 has the core m7, not m55; leave cpu out"):
        CortexM(chip="stm32f746", cpu="m55")


@pytest.mark.parametrize("name", CHIPS)
def test_chips_are_plausible(name):
    chip = CHIPS[name]
    assert chip.cpu in CORES
    assert chip.source
    assert 16 * 1024 <= chip.ram < chip.flash <= 16 * 1024 * 1024

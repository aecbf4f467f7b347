"""Steps and formats are found by measuring, whatever the noise; they are kept, and a failure changes nothing."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.errors import MeasurementError, ModelError
from targets.machine.folders import cache_folder
from targets.probing import probing
from targets.probing.probing import FEW_WIDTHS, WIDTHS, find_step, probe, probed
from targets.runtimes.fake import costs
from targets.runtimes.fake.fake_target import FakeTarget
from targets.runtimes.ort.ort_cpu import OrtCpu
from targets.target import Capabilities, Protocol

pytest.importorskip("onnx")


class Probed(FakeTarget):
    """Costs from a formula, and asked for them."""

    probed = True


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PARETOPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kind(path: Path) -> str:
    return path.name.partition("-")[0]


def staircase(step: int, width: int) -> float:
    """What two square convolutions cost where channels come in blocks, above a fixed cost."""
    up = -(-width // step) * step
    return 300.0 + up * up


@given(step=st.sampled_from([1, 4, 8, 16, 32]), seed=st.integers(0, 10**6), noise=st.floats(0.0, 0.02))
@settings(deadline=None, max_examples=200)
def test_the_step_of_a_staircase_is_found(step, seed, noise):
    draw = random.Random(seed)
    assert find_step({width: staircase(step, width) * draw.uniform(1 - noise, 1 + noise) for width in WIDTHS}) == step
    assert find_step({width: staircase(step, width) for width in FEW_WIDTHS}) == step


@given(step=st.sampled_from([1, 4, 8, 16, 32]), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=300)
def test_much_noise_makes_the_step_smaller_and_never_larger(step, seed):
    draw = random.Random(seed)
    found = find_step({width: staircase(step, width) * draw.uniform(0.95, 1.05) for width in WIDTHS})
    assert found is not None
    assert found <= step


@given(step=st.sampled_from([1, 4, 8, 16]), extra=st.floats(0.0, 2.0), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=200)
def test_a_slow_path_beside_the_steps_does_not_hide_them(step, extra, seed):
    """What is no multiple falls out of the fast path, as on ONNX Runtime, where 31 channels cost twice 32."""
    draw = random.Random(seed)
    slow = {
        width: staircase(step, width) * (1 + extra * (width % step != 0)) * draw.uniform(0.98, 1.02) for width in WIDTHS
    }
    assert find_step(slow) == step


@given(seed=st.integers(0, 10**6), step=st.sampled_from([8, 16, 32]), level=st.floats(0.0, 0.1))
@settings(deadline=None, max_examples=100)
def test_a_little_slope_between_the_steps_is_no_finer_step(seed, step, level):
    draw = random.Random(seed)
    mixed = {
        width: ((1 - level) * staircase(step, width) + level * staircase(1, width)) * draw.uniform(0.99, 1.01)
        for width in WIDTHS
    }
    assert find_step(mixed) == step


def test_real_measurements_of_an_avx512_machine():
    """Milliseconds of 3x3 convolutions with ONNX Runtime: blocks of 16 in fp32, fine steps in int8."""
    fp32 = {24: 0.372, 31: 0.711, 32: 0.374, 33: 0.754, 36: 0.748, 48: 0.753, 64: 1.30}
    int8 = {24: 0.159, 31: 0.215, 32: 0.183, 33: 0.223, 36: 0.243, 48: 0.291, 64: 0.433}
    assert find_step(fp32) == 16
    found = find_step(int8)
    assert found is not None
    assert found <= 16


@pytest.mark.parametrize("factor", [1.5, 3.0, 10.0])
@pytest.mark.parametrize("step", [1, 4, 8, 16])
def test_one_measurement_gone_wrong_never_makes_the_step_larger(step, factor):
    for wrong in WIDTHS:
        found = find_step({width: staircase(step, width) * (factor if width == wrong else 1) for width in WIDTHS})
        assert found is not None
        assert found <= step


def test_a_step_of_two_is_not_told_from_none():
    assert find_step({width: staircase(2, width) for width in WIDTHS}) == 1


def test_costs_that_do_not_change_tell_nothing():
    assert find_step(dict.fromkeys(WIDTHS, 1.0)) is None
    assert find_step({32: 1.0}) is None
    assert find_step({}) is None


@pytest.mark.parametrize("step", [4, 8, 16])
@pytest.mark.parametrize("counted", [False, True])
def test_a_target_is_measured(step, counted):
    target = Probed(channel_step=step, noise=0.05, instructions=counted, capabilities=Capabilities(channel_step=2))
    target.slow_to_load = counted
    can = probed(target)
    assert (can.channel_step, can.int8_step, can.int8_format) == (step, step, "u8s8")
    found = probe(target)
    assert found is not None
    assert set(found.fp32) == set(found.int8) == set(FEW_WIDTHS if counted else WIDTHS)
    assert found.fp32[32] < found.fp32[64]
    assert found.int8_ratio is not None
    assert not found.int8_is_slower
    # The rest is as declared.
    assert can.precisions == target.capabilities().precisions


def test_precisions_have_steps_of_their_own():
    def cost(path: Path) -> float:
        return costs.inference_seconds(path, step=16 if kind(path) == "fp32" else 4)

    can = probed(Probed(cost=cost))
    assert (can.channel_step, can.int8_step) == (16, 4)


@pytest.mark.parametrize(
    ("factors", "declared", "chosen"),
    [
        ({"u8s8": 0.7, "s8s8": 0.5}, "u8s8", "s8s8"),
        ({"u8s8": 0.5, "s8s8": 0.7}, "s8s8", "u8s8"),
        ({"u8s8": 0.51, "s8s8": 0.5}, "u8s8", "u8s8"),
        ({"u8s8": 0.5, "s8s8": 0.51}, "s8s8", "s8s8"),
    ],
)
def test_the_faster_format_is_chosen_and_a_tie_changes_nothing(factors, declared, chosen):
    def cost(path: Path) -> float:
        return {"fp32": 1.0, **factors}[kind(path)] * costs.inference_seconds(path)

    target = Probed(cost=cost, capabilities=Capabilities(int8_format=declared))
    assert probed(target).int8_format == chosen


def test_a_format_must_win_twice():
    """Something else on the CPU, while the declared format was measured, is no reason to leave it."""
    target = Probed()

    def cost(path: Path) -> float:
        slower = 2.0 if kind(path) == "u8s8" and len(target.calls) == 1 else 1.0
        return slower * costs.inference_seconds(path)

    target.cost = cost
    found = probe(target)
    assert found is not None
    assert found.formats["s8s8"] < 0.6 * found.formats["u8s8"]
    assert (found.int8_format, set(found.int8), len(target.calls)) == ("u8s8", set(WIDTHS), 2)


def test_counts_need_less_of_a_margin():
    def cost(path: Path) -> float:
        return {"fp32": 1.0, "u8s8": 0.54, "s8s8": 0.5}[kind(path)] * costs.inference_seconds(path)

    assert probed(Probed("counted", cost=cost, instructions=True)).int8_format == "s8s8"
    assert probed(Probed("timed", cost=cost)).int8_format == "u8s8"


def test_int8_that_is_slower_is_told():
    slow = Probed(cost=lambda path: (3.0 if kind(path) != "fp32" else 1.0) * costs.inference_seconds(path))
    found = probe(slow)
    assert found is not None
    assert found.int8_is_slower
    assert found.int8_ratio == pytest.approx(1.5, rel=0.1)


def test_where_floats_do_not_run_the_step_is_that_of_int8():
    def cost(path: Path) -> float:
        assert kind(path) != "fp32"
        return costs.inference_seconds(path, step=16)

    found = probe(Probed(cost=cost, cycles=True, capabilities=Capabilities(precisions=("int8",), refuses=("fp32",))))
    assert found is not None
    assert (found.channel_step, found.int8_step, found.fp32, found.int8_ratio) == (16, 16, {}, None)


def test_a_format_that_is_refused_leaves_the_other():
    def cost(path: Path) -> float:
        if kind(path) == "u8s8":
            raise ModelError(f"{path}: not supported")
        return costs.inference_seconds(path)

    found = probe(Probed(cost=cost))
    assert found is not None
    assert (found.int8_format, set(found.formats), found.int8_step) == ("s8s8", {"s8s8"}, 8)


def test_where_int8_is_not_run_it_is_not_measured():
    target = Probed(capabilities=Capabilities(precisions=("fp32",), int8_step=3))
    found = probe(target)
    assert found is not None
    assert (found.channel_step, found.int8_step, found.int8, found.formats) == (8, 3, {}, {})
    assert {kind(path) for _, paths in target.calls for path in paths} == {"fp32"}


def test_what_was_found_is_kept_and_looked_up():
    target = Probed(channel_step=16)
    assert probe(target, measure=False) is None
    assert probed(target, measure=False) == target.capabilities()
    assert target.calls == []
    found = probe(target)
    calls = len(target.calls)
    again = Probed(channel_step=16)
    assert probe(again) == found
    assert probe(again, measure=False) == found
    assert probed(again, measure=False).channel_step == 16
    assert again.calls == []
    assert len(target.calls) == calls


def test_another_target_and_another_method_are_measured_anew(monkeypatch):
    probe(Probed(channel_step=16))
    other = Probed("other")
    assert probe(other, measure=False) is None
    monkeypatch.setattr(probing, "VERSION", probing.VERSION + 1)
    assert probe(Probed(channel_step=16), measure=False) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"probe": 3}', '{"probe": {"channel_step": 8}}', "\x00"])
def test_an_unreadable_file_is_measured_anew(folder, text):
    target = Probed()
    found = probe(target)
    (path,) = (folder / "probes").iterdir()
    path.write_text(text)
    assert probe(target, measure=False) is None
    again = probe(target)
    assert again is not None
    assert found is not None
    assert again.fp32 == found.fp32
    assert probe(target, measure=False) == again


@pytest.mark.parametrize(("key", "value"), [("channel_step", 0), ("int8_format", "u4u4"), ("fp32", {"x": 1})])
def test_a_file_that_makes_no_sense_is_measured_anew(folder, key, value):
    probe(Probed())
    (path,) = (folder / "probes").iterdir()
    document = json.loads(path.read_text())
    document["probe"][key] = value
    path.write_text(json.dumps(document))
    assert probe(Probed(), measure=False) is None


def test_only_whole_files_are_left(folder):
    probe(Probed())
    assert [bool(re.fullmatch(r"[0-9a-f]{32}\.json", path.name)) for path in (folder / "probes").iterdir()] == [True]


def test_a_folder_that_cannot_be_written_loses_nothing_but_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PARETOPRESS_CACHE", str(tmp_path / "file"))
    assert probed(Probed(channel_step=16)).channel_step == 16


def test_where_measuring_fails_the_declared_holds(folder):
    target = Probed(faults={"measure": MeasurementError("crashed")}, capabilities=Capabilities(channel_step=5))
    assert probed(target) == target.capabilities()
    assert not folder.exists()


def test_measurements_without_a_cost_find_nothing(folder):
    class Costless(Probed):
        def measure(self, *given, **asked):
            return [replace(one, samples=(), latency=None) for one in super().measure(*given, **asked)]

    target = Costless(capabilities=Capabilities(channel_step=5))
    assert probed(target) == target.capabilities()
    assert {operation for operation, _ in target.calls} == {"measure"}
    assert not folder.exists()


def test_where_onnx_is_missing_the_declared_holds(monkeypatch):
    monkeypatch.setattr(probing.importlib.util, "find_spec", lambda _: None)
    target = Probed(capabilities=Capabilities(channel_step=5))
    assert probed(target) == target.capabilities()
    assert target.calls == []


def test_what_is_not_probed_is_left_alone():
    target = FakeTarget()
    assert probe(target) is None
    assert probed(target) == target.capabilities()
    assert target.calls == []


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PARETOPRESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "paretopress"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "paretopress"


def test_onnx_runtime_is_probed(monkeypatch):
    """Structure only: which steps it has depends on the CPU."""
    quick = Protocol(width=0.5, seconds=0.05, rounds=3, block=0.001, warmup=0.001)
    monkeypatch.setattr(probing, "PROTOCOL", quick)
    target = OrtCpu()
    try:
        found = probe(target)
        looked_up = probed(target, measure=False)
    finally:
        target.close()
    assert found is not None
    assert set(found.formats) == {"u8s8", "s8s8"}
    assert set(found.fp32) == set(found.int8) == set(WIDTHS)
    assert (looked_up.channel_step, looked_up.int8_step) == (found.channel_step, found.int8_step)
    # 64 channels compute 64 times what 8 do.
    assert found.fp32[64] > found.fp32[8]
    assert found.int8[64] > found.int8[8]

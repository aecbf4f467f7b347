"""How the interpreter is built: which sources, which options, which calls, and what is said where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from targets.cortex_m import cortex_installation, firmware
from targets.cortex_m.cores import CORES
from targets.cortex_m.operators import REGISTERED, registration
from targets.cortex_m.toolchain import COMPILER, Toolchain
from targets.errors import TargetError, TargetUnavailable
from targets.registry import install
from targets.tflite.operators import OPERATORS


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_every_registered_operator_is_one_of_the_format():
    assert len(set(REGISTERED)) == len(REGISTERED) > 90
    assert set(REGISTERED) <= set(OPERATORS)


@pytest.mark.parametrize(
    ("operator", "call"),
    [
        ("CONV_2D", "AddConv2D"),
        ("L2_POOL_2D", "AddL2Pool2D"),
        ("PADV2", "AddPadV2"),
        ("BATCH_MATMUL", "AddBatchMatMul"),
        ("CUMSUM", "AddCumSum"),
        ("SPACE_TO_BATCH_ND", "AddSpaceToBatchNd"),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", "AddUnidirectionalSequenceLSTM"),
        ("RELU6", "AddRelu6"),
    ],
)
def test_registrations_are_called_as_the_library_calls_them(operator, call):
    assert registration(operator) == f"operators.{call}();"


def test_fast_kernels_stand_in_for_portable_ones_and_tests_are_left_out(tmp_path):
    micro = "tflm/tensorflow/lite/micro"
    _touch(
        tmp_path, f"{micro}/kernels/conv.cc", f"{micro}/kernels/cmsis_nn/conv.cc", f"{micro}/kernels/abs.cc",
        f"{micro}/kernels/abs_test.cc", f"{micro}/micro_allocator.cc", f"{micro}/debug_log.cc",
        "tflm/tensorflow/lite/core/c/common.cc", "tflm/tensorflow/lite/experimental/x.cc",
        "cmsis_nn/Source/Conv/arm_conv.c", "cmsis_nn/Source/Conv/arm_conv_f16.c",
    )  # fmt: skip
    found = {unit.source: unit.optimized for unit in firmware.units(tmp_path)}
    assert found == {
        f"{micro}/kernels/cmsis_nn/conv.cc": "-O2",
        f"{micro}/kernels/abs.cc": "-O2",
        "cmsis_nn/Source/Conv/arm_conv.c": "-O2",
        f"{micro}/micro_allocator.cc": "-Os",
        "tflm/tensorflow/lite/core/c/common.cc": "-Os",
    }


def test_the_linker_script_names_the_memory_of_the_core():
    text = firmware._memory(CORES["m55"])
    assert "FLASH (rx) : ORIGIN = 0x10000000, LENGTH = 524288" in text
    assert "@" not in text.partition("*/")[2]


def test_an_unpacked_compiler_is_told_where_everything_is(tmp_path):
    program = tmp_path / "usr/bin" / COMPILER
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\ncase $* in *multi*) echo thumb/v7e-m+fp/hard;; *) echo 12.2.1;; esac\n")
    program.chmod(0o755)
    tools = Toolchain(tmp_path)
    headers = tools.headers(CORES["m4"].options, cxx=True)
    newlib = tmp_path / "usr/include/newlib"
    assert headers[1::2] == [
        f"{newlib}/c++/12.2.1", f"{newlib}/c++/12.2.1/arm-none-eabi/thumb/v7e-m+fp/hard", str(newlib),
    ]  # fmt: skip
    assert tools.libraries(CORES["m4"].options)[1].endswith("newlib/thumb/v7e-m+fp/hard")
    assert str(tmp_path / "usr/lib/x86_64-linux-gnu") in tools.environment()["LD_LIBRARY_PATH"]
    assert Toolchain().headers(CORES["m4"].options, cxx=True) == Toolchain().libraries(CORES["m4"].options) == []


def test_the_compiler_s_own_words_are_said(tmp_path):
    fails = tmp_path / "cc"
    fails.write_text("#!/bin/sh\necho 'x.c: In function f' >&2; echo 'x.c:1: error: no such   thing' >&2; exit 1\n")
    fails.chmod(0o755)
    with pytest.raises(TargetUnavailable, match=r"^cc fails: x\.c:1: error: no such thing$"):
        firmware.run([str(fails)], Toolchain())
    with pytest.raises(TargetUnavailable, match=r"nowhere cannot be started \(No such file or directory\)"):
        firmware.run(["/nowhere"], Toolchain())


def test_what_is_missing_is_said_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv(cortex_installation.VARIABLE, str(tmp_path / "root"))
    assert cortex_installation.missing() == f"an interpreter of this version in {tmp_path / 'root'}"
    with pytest.raises(TargetUnavailable, match="run: paretopress targets --install cortex-m"):
        cortex_installation.installed()
    monkeypatch.setattr(cortex_installation, "_host_compiler", lambda: None)
    with pytest.raises(TargetUnavailable, match="without a C compiler for this machine"):
        install("cortex-m", print)
    assert not (tmp_path / "root").exists()


def test_half_an_installation_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv(cortex_installation.VARIABLE, str(tmp_path / "root"))
    with pytest.raises(TargetUnavailable, match=r"the archive of sources '.*none\.tar' cannot be read"):
        install("cortex-m", print, tmp_path / "none.tar")
    assert list(tmp_path.iterdir()) == []


def test_sources_are_for_what_is_built_of_them(tmp_path):
    with pytest.raises(TargetError, match="'arm-emulated' is not built of sources; leave --sources out"):
        install("arm-emulated", print, tmp_path / "s.tar.xz")

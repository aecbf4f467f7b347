"""Counting where nobody counts, and programs that are not there or do not end."""

from __future__ import annotations

import sys

import pytest

from targets.emulated_arm import arm_installation, counting, debian
from targets.errors import MeasurementError, TargetUnavailable


def test_outside_the_emulator_nobody_counts():
    with pytest.raises(MeasurementError, match=r"^this process does not run under the emulator that counts$"):
        counting.open_counters()


class Silent(counting.CountingRuntime):
    """With a plugin that counts what it is told."""

    def __init__(self, each: int) -> None:
        self._counters, self._each = memoryview(bytearray(8)).cast("Q"), each

    def count_once(self) -> int:
        def call(_: object, __: object) -> None:
            self._counters[0] += self._each

        return self._counted((call, None, None), lambda _: None)


def test_a_plugin_that_counts_nothing_does_not_fit():
    assert Silent(7).count_once() == 7
    with pytest.raises(
        MeasurementError, match="the emulator counts nothing; its plugin does not fit this version of qemu"
    ):
        Silent(0).count_once()


def test_programs_that_are_missing_or_do_not_end_are_named(monkeypatch):
    with pytest.raises(
        TargetUnavailable, match=r"^/no/such/gcc is missing; run: paretopress targets --install arm-emulated$"
    ):
        arm_installation._output(["/no/such/gcc"], "the plugin")
    monkeypatch.setattr(arm_installation, "_SECONDS", 0.05)
    said = rf"^the plugin: {arm_installation.Path(sys.executable).name} took more than 0\.05 s$"
    with pytest.raises(TargetUnavailable, match=said):
        arm_installation._output([sys.executable, "-c", "import time; time.sleep(9)"], "the plugin")


def test_a_release_that_lacks_an_index_is_refused():
    release = f"Suite: stable\nSHA256:\n {'a' * 64}  12 main/binary-arm64/Packages.xz\n"
    assert debian._hash_of(release, "main/binary-arm64/Packages.xz") == "a" * 64
    with pytest.raises(TargetUnavailable, match=r"^the release file lists no main/binary-arm64/Packages\.gz$"):
        debian._hash_of(release, "main/binary-arm64/Packages.gz")

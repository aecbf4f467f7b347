"""The machine a number was taken on, as JSON: written beside every number, and part of every measurement's key.

``machine()`` is the stable part; ``moment()`` is what changes from minute to minute and must not enter a key.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from targets.machine import memory

RELEVANT = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw", "avx512vl",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "amx_tile",
    "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "sme",
)  # fmt: skip
"""CPU features that decide which kernels a runtime picks."""


def cpu_architecture() -> str:
    """The CPU's architecture as Linux spells it: ``x86_64``, ``aarch64``, and so on."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first value of every key in /proc/cpuinfo."""
    found: dict[str, str] = {}
    for line in _text("/proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip().lower(), value.strip())
    return found


def cpu_features() -> frozenset[str]:
    """The CPU's feature flags, as the kernel spells them."""
    info = _cpuinfo()
    return frozenset((info.get("flags") or info.get("features") or "").split())


def machine() -> dict[str, Any]:
    """CPU, cores, memory and system: the same from one measurement to the next."""
    info = _cpuinfo()
    known = cpu_features()
    return {
        "cpu": info.get("model name") or info.get("hardware") or platform.processor() or cpu_architecture(),
        "architecture": cpu_architecture(),
        "features": [name for name in RELEVANT if name in known],
        "cores": os.cpu_count(),
        "memory": _memory(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def moment() -> dict[str, Any]:
    """Now: load averages, free memory, ``temperature`` (the hottest zone, degrees Celsius) and ``frequency`` (of the
    first CPU, Hz); None where the system does not say.
    """
    zones = [_text(str(zone)).strip() for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
    degrees = [int(zone) / 1000 for zone in zones if zone.lstrip("-").isdigit()]
    frequency = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").strip()
    return {
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "memory_available": memory.available_bytes(),
        "temperature": max(degrees) if degrees else None,
        "frequency": int(frequency) * 1000 if frequency.isdigit() else None,
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions, without importing anything; what is not installed is left out."""
    from importlib import metadata

    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_environment(packages: Sequence[str] = ("paretopress", "numpy", "onnxruntime", "onnx")) -> dict[str, Any]:
    """The machine, installed versions of ``packages``, and the moment: what reports carry as ``environment``."""
    return {**machine(), "packages": installed_versions(packages), "now": moment()}


def _memory() -> int | None:
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""

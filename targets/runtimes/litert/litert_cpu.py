"""LiteRT on this machine's CPU: what runs ``.tflite`` files on Android, on a Raspberry Pi, and here.

Kernels are those of XNNPACK, its default, unless ``kernels`` says otherwise. It does not read ``.onnx`` files: float
ones are converted (``targets/tflite``), and int8 is made for it with calibration samples, never of an ``.onnx`` file
that is quantized already. It runs in an environment of its own, with one sample at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from targets.runtimes.litert.litert_runtime import SETTINGS, litert_capabilities
from targets.settings import Setting
from targets.target import Capabilities
from targets.tflite.tflite_target import TfliteTarget


class LitertCpu(TfliteTarget):
    """LiteRT on this machine's CPU.

    Files are converted and run in worker processes; settings are ``threads``, ``kernels``, and ``io``: whether int8
    files take and give integers, as microcontrollers do, or floats.
    """

    base = "litert-cpu"
    runtime = "targets.runtimes.litert.litert_runtime:LitertRuntime"
    packages = ("ai-edge-litert", "onnx2tf", "ai-edge-quantizer")
    settings: ClassVar[Mapping[str, Setting]] = SETTINGS

    def capabilities(self) -> Capabilities:
        """What LiteRT can do; steps of channels are declared, and measured by ``probing.py``."""
        return litert_capabilities(self.values)

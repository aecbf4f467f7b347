"""LiteRT on a board: it gets ``.tflite`` files that were converted on the machine that asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from targets.runtimes.litert.litert_runtime import SETTINGS, litert_capabilities
from targets.settings import Setting
from targets.target import Capabilities
from targets.workers.local import LocalTarget


class LitertBoard(LocalTarget):
    """LiteRT in the Python of the machine it runs on; it converts nothing."""

    base = "litert-cpu"
    runtime = "targets.runtimes.litert.litert_runtime:LitertRuntime"
    settings: ClassVar[Mapping[str, Setting]] = SETTINGS
    requires = ("ai_edge_litert",)
    packages = ("ai-edge-litert", "numpy")
    install = "pip install ai-edge-litert"
    takes = (".onnx", ".tflite")

    def capabilities(self) -> Capabilities:
        """What LiteRT can do."""
        return litert_capabilities(self.values)

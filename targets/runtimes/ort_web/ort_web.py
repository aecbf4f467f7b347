"""ONNX Runtime Web on this machine: what runs ``.onnx`` files in pages and in programs for Node, as WebAssembly.

The same files as for ``ort-cpu``, with other kernels: 128-bit SIMD whatever the CPU has, and no blocked layout. Times
are taken by the clock of the host, in blocks (``program/sessions.mjs``), and only once the engine, which compiles
functions anew when it has seen that they are hot, has done so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from targets.runtimes.ort_web import web_installation
from targets.settings import Setting
from targets.target import Capabilities
from targets.workers.local import LocalTarget


class OrtWeb(LocalTarget):
    """ONNX Runtime Web as WebAssembly, in Node on this machine.

    Files are loaded and run in worker processes; settings are ``threads`` and ``backend``.
    """

    base = "ort-web"
    runtime = "targets.runtimes.ort_web.web_runtime:WebRuntime"
    settings: ClassVar[Mapping[str, Setting]] = {
        "backend": Setting("wasm", words=("wasm",), help="what computes"),
        "threads": Setting(1, least=1, help="threads of one inference"),
    }
    install: ClassVar[str | None] = web_installation.COMMAND

    @staticmethod
    def missing() -> str | None:
        """What has to be installed before this target can be used, in words; None where nothing is missing."""
        return web_installation.missing()

    @staticmethod
    def bring(say: web_installation.Say) -> Path:
        """Install what pip alone cannot bring; returns where it is. Raises TargetUnavailable."""
        return web_installation.install_library(say)

    def capabilities(self) -> Capabilities:
        """From the library; ``channel_step`` is declared: the 4 floats of a SIMD register."""
        facts = self.facts()
        return Capabilities(
            precisions=("fp32", "int8", "int8-dynamic", "mixed"),
            channel_step=4,
            opset=facts["opset"],
            ir_version=facts["ir_version"],
        )

    def describe(self) -> dict[str, Any]:
        """Settings, the machine, and the versions of library and host, which a measurement depends on."""
        return {**super().describe(), "packages": web_installation.versions()}

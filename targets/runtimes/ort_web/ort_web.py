"""ONNX Runtime Web on this machine: what runs ``.onnx`` files in pages and in programs for Node, as WebAssembly.

The same files as for ``ort-cpu``, with other kernels: 128-bit SIMD whatever the CPU has, and no blocked layout. Times
are taken by the clock of the host, in blocks (``program/sessions.mjs``), and only once the engine, which compiles
functions anew when it has seen that they are hot, has done so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from targets.errors import TargetUnavailable
from targets.runtimes.ort_web import web_installation
from targets.settings import Setting
from targets.target import Capabilities
from targets.workers.local import LocalTarget


class OrtWeb(LocalTarget):
    """ONNX Runtime Web as WebAssembly on this machine, in Node or in a page.

    Files are loaded and run in worker processes; settings are ``host``, ``threads`` and ``backend``.
    """

    base = "ort-web"
    slow_to_load = True
    """A file is run for a tenth of a second at least, until the engine has compiled what is hot."""
    runtime = "targets.runtimes.ort_web.web_runtime:WebRuntime"
    settings: ClassVar[Mapping[str, Setting]] = {
        "backend": Setting("wasm", words=("wasm",), help="what computes"),
        "host": Setting("node", words=("node", "chromium"), help="what it runs in"),
        "threads": Setting(1, least=1, help="threads of one inference", counts_cores=True),
    }
    install: ClassVar[str | None] = web_installation.COMMAND

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.values["host"] == "chromium" and web_installation.browser_version() is None:
            raise TargetUnavailable(
                f"target {self.name!r} needs Chromium, which is not installed; run: apt-get install chromium"
            )

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
        host = {"chromium": web_installation.browser_version()} if self.values["host"] == "chromium" else {}
        return {**super().describe(), "packages": {**web_installation.versions(), **host}}

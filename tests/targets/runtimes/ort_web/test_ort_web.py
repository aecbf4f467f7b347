"""ONNX Runtime Web in Node: conformance, every precision, and what happens where something is missing or goes wrong."""

from __future__ import annotations

import pytest

from local_runtimes import ThreadsSeenWorking
from targets.registry import get
from targets.runtimes.ort_web import web_installation
from targets.target import Target

pytest.importorskip("onnx")
LACKING = web_installation.missing()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=f"needs {LACKING}; run: {web_installation.COMMAND}")


class TestOrtWeb(ThreadsSeenWorking):
    def make(self) -> Target:
        return get("ort-web")

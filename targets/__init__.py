"""Run and time ONNX models on a device: ``targets.compare(["a.onnx", "b.onnx"], target="ort-cpu")``.

Usable alone, with numpy and one runtime. Names are imported when they are first used, so that importing the
package is quick.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from targets.packages import check_not_shadowed

if TYPE_CHECKING:
    from targets.benches.bench_results import Bench
    from targets.benches.benching import bench
    from targets.benches.comparing import Comparison, Ratio, compare
    from targets.benches.tuning import tune
    from targets.errors import (
        CompressError,
        MeasurementError,
        ModelError,
        RequestError,
        ShadowedError,
        TargetError,
        TargetUnavailable,
        TransientError,
    )
    from targets.registry import available, get
    from targets.runtimes.fake.fake_target import FakeClock, FakeTarget
    from targets.target import Capabilities, Latency, Measurement, Protocol, Samples, Target
    from targets.workers.local import LocalTarget

check_not_shadowed()

# ONNX Runtime's wheels report usage to their maker unless told not to, and ask once, when the library is loaded,
# which other packages of ours may do as well: so it is said here, before any of them. What the user has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOME = {
    "Bench": "benches.bench_results",
    "Capabilities": "target",
    "Comparison": "benches.comparing",
    "CompressError": "errors",
    "FakeClock": "runtimes.fake.fake_target",
    "FakeTarget": "runtimes.fake.fake_target",
    "Latency": "target",
    "LocalTarget": "workers.local",
    "Measurement": "target",
    "MeasurementError": "errors",
    "ModelError": "errors",
    "Protocol": "target",
    "Ratio": "benches.comparing",
    "RequestError": "errors",
    "Samples": "target",
    "ShadowedError": "errors",
    "Target": "target",
    "TargetError": "errors",
    "TargetUnavailable": "errors",
    "TransientError": "errors",
    "available": "registry",
    "bench": "benches.benching",
    "compare": "benches.comparing",
    "get": "registry",
    "tune": "benches.tuning",
}

__all__ = [
    "Bench",
    "Capabilities",
    "Comparison",
    "CompressError",
    "FakeClock",
    "FakeTarget",
    "Latency",
    "LocalTarget",
    "Measurement",
    "MeasurementError",
    "ModelError",
    "Protocol",
    "Ratio",
    "RequestError",
    "Samples",
    "ShadowedError",
    "Target",
    "TargetError",
    "TargetUnavailable",
    "TransientError",
    "available",
    "bench",
    "compare",
    "get",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'targets' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"targets.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})

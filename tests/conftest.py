"""Where everything is said to be installed, a test of a target that is skipped for want of it has failed."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

_REASONS = ("apt-get install", "pip install", "targets --install")
"""A skip whose reason names a command says that something is missing."""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """With ``PARETOPRESS_NO_SKIPS`` set, turn such skips into failures."""
    outcome = yield
    report = outcome.get_result()
    if not os.environ.get("PARETOPRESS_NO_SKIPS") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if any(command in reason for command in _REASONS):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} must not be skipped here: {reason}"

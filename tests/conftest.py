"""For all tests: a cache of their own, and skips that are failures where everything is said to be installed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from typing import Any

import pytest

_REASONS = ("apt-get install", "pip install", "targets --install")
"""A skip whose reason names a command says that something is missing."""


def pytest_configure(config: pytest.Config) -> None:
    """What targets are found to do is kept in a folder that is gone afterwards, one for all processes of the tests."""
    if hasattr(config, "workerinput"):
        return  # the process that started this one has made it, and named it in the environment
    folder = os.environ["PARETOPRESS_CACHE"] = tempfile.mkdtemp(prefix="paretopress-cache-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


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

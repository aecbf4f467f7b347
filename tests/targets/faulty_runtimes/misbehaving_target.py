"""The target of ``misbehaving.py`` for a device, where the tests' own modules are not known."""

from __future__ import annotations

from targets.settings import Setting
from targets.target import Capabilities
from targets.workers.local import LocalTarget


class Misbehaving(LocalTarget):
    """Goes wrong as ``how`` says."""

    base = "misbehaving"
    runtime = "misbehaving:Misbehaving"
    settings = {"how": Setting("segfault"), "threads": Setting(1, least=1)}  # noqa: RUF012  as a third party writes it

    def capabilities(self) -> Capabilities:
        return Capabilities()

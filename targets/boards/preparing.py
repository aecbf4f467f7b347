"""Making a board ready: Python and numpy are looked for there, and the runner is sent if it is not there yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from targets.boards import bundle
from targets.boards.boot import MARK
from targets.boards.device_cache import no_space
from targets.boards.ssh_line import CommandResult, SshLine, quoted
from targets.errors import TargetUnavailable, TransientError


@dataclass(frozen=True)
class Preparation:
    """What a board has to have: an interpreter with some modules, and a cache folder that can be written to."""

    line: SshLine
    name: str
    """Of the target, as it is called in messages."""
    python: str
    cache: str
    modules: Sequence[str]
    seconds: float
    """That the board may take for its first answer."""

    def done(self) -> str:
        """See that all of it is there, and the runner; gives the cache folder as it is called there.

        Raises TargetUnavailable saying what is missing, TransientError where the connection or the disk fails.
        """
        runner = bundle.make()
        found = self._look(b"")
        if not found["there"]:
            found = self._look(runner.data)
        if not found["there"]:
            raise TransientError(f"the runner did not arrive whole in {found['folder']} on {self.line.host}")
        return str(found["folder"])

    def _look(self, data: bytes) -> dict[str, Any]:
        runner = bundle.make()
        asked = {
            "cache": self.cache,
            "runner": runner.name,
            "sha256": runner.sha256,
            "modules": list(self.modules),
        }
        words = [quoted(self.python), "-c", quoted(bundle.boot_code()), quoted(json.dumps(asked))]
        done = self.line.run(f"exec {' '.join(words)}", data, self.seconds)
        found = self._understood(done)
        self._check_python(found)
        if "problem" in found:
            number, text = found["problem"]
            if "there" not in found and "no space" in text.lower():
                raise TransientError(no_space(found["folder"], len(runner.data), found["free"]))
            raise TargetUnavailable(
                f"{self.name}: cannot use {found['folder']} on {self.line.host} ({text}, error {number}); "
                "choose another folder with cache=FOLDER"
            )
        return found

    def _understood(self, done: CommandResult) -> dict[str, Any]:
        """What ``boot.py`` answered; raises TargetUnavailable where something else came."""
        host, python = self.line.host, self.python
        if done.status in (126, 127):
            raise TargetUnavailable(
                f"{self.name}: there is no {python} on {host} ({done.words}); "
                "install Python 3.9 or newer there, or name it with python=PATH"
            )
        before, mark, said = done.output.decode(errors="replace").rpartition(MARK)
        if not mark:
            raise TargetUnavailable(
                f"{self.name}: {python} on {host} ended with status {done.status}: {done.words or 'nothing was said'}"
            )
        if before.strip():
            raise TargetUnavailable(
                f"{self.name}: the shell on {host} prints {before.strip().splitlines()[0][:80]!r} when it starts; "
                "make its startup files silent for programs"
            )
        return dict(json.loads(said))

    def _check_python(self, found: Mapping[str, Any]) -> None:
        host, python = self.line.host, self.python
        version = ".".join(map(str, found["python"]))
        if tuple(found["python"]) < bundle.OLDEST:
            raise TargetUnavailable(
                f"{self.name}: {python} on {host} is {version}, Python 3.9 or newer is needed; "
                "name another with python=PATH"
            )
        if found["missing"]:
            raise TargetUnavailable(
                f"{self.name}: {', '.join(found['missing'])} is missing for {python} ({version}) on {host}; "
                f"run there: {python} -m pip install {' '.join(found['missing'])}"
            )
        if found["broken"]:
            raise TargetUnavailable(f"{self.name}: numpy cannot be loaded on {host}: {found['broken']}")

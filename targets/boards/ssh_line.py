"""Commands on another machine with plain ``ssh``: the user's own configuration and keys, one connection for all.

The first command opens a master connection (``ControlMaster``), the others go through it. Its socket lies in a private
folder; ``drop`` ends the connection, so that what comes next begins from scratch.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from targets.errors import CompressError, Disconnected, TargetError, TargetUnavailable

FAILED = 255
"""ssh's exit status where the connection, and not the command, is at fault."""
_HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.:%-]*")
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "4",
    "ControlMaster": "auto",
    "ControlPersist": "60",
    # What a user may have set for working by hand, and what would stand in the way here.
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "LogLevel": "INFO",
}
_LONGEST = 60
"""Of the folder's path: a socket's may have 104 characters, of which ssh takes some for itself."""
_REFUSED = (
    ("Host key verification failed", "its host key is not known or has changed: connect by hand once and check it"),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key has changed: connect by hand once and check it"),
    ("Permission denied", "it does not let us in without a password: set up a key (ssh-copy-id)"),
    ("Too many authentication failures", "it does not let us in: name the key in ~/.ssh/config (IdentitiesOnly)"),
    ("Name or service not known", "there is no such host: check the name, or ~/.ssh/config"),
    ("nodename nor servname", "there is no such host: check the name, or ~/.ssh/config"),
    ("No address associated", "there is no such host: check the name, or ~/.ssh/config"),
    ("onfiguration option", "the ssh configuration cannot be read"),
    ("Can't open user config file", "the ssh configuration cannot be read"),
)
"""What ssh says, and what it means, where trying again does not help."""


@dataclass(frozen=True)
class CommandResult:
    """How a command ended: exit status, what it wrote, and its last words on stderr."""

    status: int
    output: bytes
    words: str


class SshLine:
    """The way to one host. Raises TargetError where ``host`` or ``config`` is none."""

    def __init__(self, host: str, port: int = 0, config: str = "") -> None:
        if not _HOST.fullmatch(host):
            raise TargetError(f"target 'ssh': host={host!r} is not allowed; it is HOST or USER@HOST")
        self.host = host
        self._chosen = [*(["-F", config] if config else []), *(["-p", str(port)] if port else [])]
        self.folder: Path | None = None
        self._release: Callable[[], object] = lambda: None

    def command(self, words: str) -> tuple[str, ...]:
        """The local command that runs ``words`` in the host's shell."""
        return (*self._ssh(), "-T", "--", self.host, words)

    def run(self, words: str, data: bytes, seconds: float) -> CommandResult:
        """Run ``words`` in the host's shell with ``data`` on stdin.

        Raises TargetUnavailable where the host does not let us in, Disconnected where it cannot be reached or
        does not answer in that time.
        """
        with tempfile.TemporaryFile() as errors:
            try:
                # A file, not a pipe: the master connection keeps it open.
                done = subprocess.run(
                    self.command(words), input=data, stdout=subprocess.PIPE, stderr=errors,
                    timeout=seconds, start_new_session=True, check=False,
                )  # fmt: skip
            except FileNotFoundError:
                raise TargetUnavailable(
                    "target 'ssh' needs the program ssh, which is not installed; run: apt-get install openssh-client"
                ) from None
            except subprocess.TimeoutExpired:
                self.drop()
                raise Disconnected(f"{self.host} did not answer in {seconds:g} s; is it busy or frozen?") from None
            errors.seek(0)
            found = CommandResult(done.returncode, done.stdout, _last(errors.read()))
            errors.seek(0)
            if found.status == FAILED:
                raise self._unreachable(errors.read().decode(errors="replace"), found.words)
            return found

    def drop(self) -> None:
        """End the connection; the next command opens another."""
        self._release()
        self.folder = None

    def _ssh(self) -> list[str]:
        if self.folder is None:
            usual = tempfile.gettempdir()
            self.folder = Path(tempfile.mkdtemp(prefix="pp-", dir=usual if len(usual) < _LONGEST else "/tmp"))
            self._release = weakref.finalize(self, _end, self.folder, ["ssh", *self._chosen, "--", self.host])
        socket = str(self.folder / "s").replace("%", "%%")
        options = [f"-o{key}={value}" for key, value in {**_OPTIONS, "ControlPath": socket}.items()]
        return ["ssh", *self._chosen, *options]

    def _unreachable(self, text: str, words: str) -> CompressError:
        for sign, meaning in _REFUSED:
            if sign in text:
                return TargetUnavailable(f"target 'ssh': cannot connect to {self.host}: {meaning} ({words})")
        said = words or "the connection was closed"
        return Disconnected(f"cannot connect to {self.host} ({said}); see whether `ssh {self.host}` does")


def _end(folder: Path, command: list[str]) -> None:
    socket = folder / "s"
    if socket.exists():
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [*command[:-2], f"-oControlPath={socket}", "-Oexit", *command[-2:]],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=5, check=False,
            )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)


def _last(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""


def quoted(path: str) -> str:
    """A path on the host as one word of its shell; ``~/`` at its beginning is the home folder there."""
    return '"$HOME"/' + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)

"""An sshd of the tests' own: own keys, own configuration, a free port on the loopback interface.

It runs as whoever runs the tests, so that its "device" is this machine and the same account.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from processes import descendants, name_of, wait_for

MISSING = "no sshd here: apt-get install openssh-server"


def find() -> str | None:
    """The program; it insists on being started by its whole path."""
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")


class Sshd:
    """An sshd that can be killed and started again at the same port; ``config`` is what ssh needs to reach it.

    ``environment`` is what every session gets there.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        folder.mkdir()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        public = (folder / "host.pub").read_text()
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {public}")
        said = " ".join(f'"{key}={value}"' for key, value in (environment or {}).items())
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder / 'authorized'}\nStrictModes no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin yes\nUseDNS no\n{f'SetEnv {said}' if said else ''}\n"
        )
        self.config = folder / "config"
        self.config.write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {folder / 'user'}\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder / 'known'}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Listen; returns when it does."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        program = find()
        assert program is not None
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(self._folder / "sshd_config")], stdout=log, stderr=log
        )
        log.close()

        def answers() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as line:
                return line.recv(3) == b"SSH"
            return False

        wait_for(answers, (self._folder / "log").read_text)

    def kill(self) -> None:
        """Kill the listener and every session, as a board that loses its power; what they started goes on."""
        if self._process is None:
            return
        ours = [self._process.pid, *(pid for pid in descendants(self._process.pid) if name_of(pid) == "sshd")]
        for pid in ours:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def sessions(self) -> list[int]:
        """Processes of the connections."""
        return [] if self._process is None else [p for p in descendants(self._process.pid) if name_of(p) == "sshd"]

"""A page with ONNX Runtime Web in it, in a headless Chromium that is served, and asked, from here.

The page asks for its next request, with its reply to the last one, on the loopback interface, at an address that other
pages cannot guess. It is served isolated from other origins: the browser's clock then has steps of 5 microseconds
instead of 100, and threads may share memory.
"""

from __future__ import annotations

import http.server
import json
import queue
import secrets
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from targets.errors import MeasurementError
from targets.machine.processes import command_line, descendants, ran
from targets.runtimes.ort_web import browser_keeper, web_installation
from targets.runtimes.ort_web.web_host import PROGRAM, Host
from targets.workers import pipes
from targets.workers.process import die_like, local_launch

_START = 60.0
"""Seconds that a browser may take to show the page."""
_LOOK = 0.5
"""Seconds between two looks at whether the browser is there."""
_SPIN = 0.1
"""Seconds that the page is kept busy to be recognised."""
_TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}


class PageHost(Host):
    """A browser with one page that holds sessions."""

    def __init__(self, threads: int) -> None:
        self._requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        library = web_installation.library()
        files = {path.name: path for folder in (PROGRAM, library) for path in folder.iterdir()}
        secret = secrets.token_urlsafe(16)
        server = _Server(("127.0.0.1", 0), _handler(f"/{secret}/", files, self._requests, self._replies))
        threading.Thread(target=server.serve_forever, daemon=True, name="pages").start()
        address = f"http://127.0.0.1:{server.server_address[1]}/{secret}/page.html?threads={threads}"
        launch = local_launch(1)
        self._keeper = subprocess.Popen(
            [*launch.command[:-1], browser_keeper.__name__, json.dumps(web_installation.browser_command(address))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=dict(launch.environment),
        )
        self._page: int | None = None
        self._answer(_START)  # that it is there
        self._page = self._find_page()

    @property
    def processes(self) -> tuple[int, ...]:
        """The id of the process that the page runs in."""
        return () if self._page is None else (self._page,)

    def _find_page(self) -> int | None:
        """The process of our page, among those kept for pages to come: it is the one that runs when asked to."""
        pages = [pid for pid in descendants(self._keeper.pid) if "--type=renderer" in command_line(pid)]
        before = {pid: ran(pid) for pid in pages}
        self.ask({"operation": "spin", "seconds": _SPIN})
        return max(pages, key=lambda pid: ran(pid) - before[pid], default=None)

    def exchange(self, chunks: Sequence[bytes]) -> pipes.Message:
        """Send one frame and wait for the one that answers it."""
        self._requests.put(b"".join(chunks))
        (message,) = pipes.Decoder().feed(self._answer(None))
        return message

    def _answer(self, seconds: float | None) -> bytes:
        """What the page says next; raises MeasurementError where it crashes, or says nothing in that time."""
        end = None if seconds is None else time.monotonic() + seconds
        while end is None or time.monotonic() < end:
            try:
                return self._replies.get(timeout=_LOOK)
            except queue.Empty:
                if self._keeper.poll() is not None:
                    die_like(self._keeper.returncode)
                if self._page is not None and not command_line(self._page):
                    print("the page's process is gone", file=sys.stderr, flush=True)
                    die_like(1)
        raise MeasurementError(f"Chromium did not show the page within {seconds:g} s")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


def _handler(
    folder: str,
    files: Mapping[str, Path],
    requests: queue.SimpleQueue[bytes],
    replies: queue.SimpleQueue[bytes],
) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].removeprefix(folder)
            if not self.path.startswith(folder) or name not in files:
                self.send_error(404)
                return
            self.give(files[name].read_bytes(), _TYPES.get(files[name].suffix, "application/octet-stream"))

        def do_POST(self) -> None:
            if self.path != f"{folder}next":
                self.send_error(404)
                return
            replies.put(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            self.give(requests.get(), "application/octet-stream")

        def give(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing: what is printed would be taken for why a worker died."""

    return Handler

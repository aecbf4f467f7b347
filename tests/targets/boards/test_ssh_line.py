"""A board behind ssh, without one: what is said of answers that come, and of those that do not."""

from __future__ import annotations

import hashlib
import json

import pytest

from targets.boards import bundle
from targets.boards.boot import MARK
from targets.boards.ssh import Ssh
from targets.boards.ssh_line import CommandResult, SshLine
from targets.errors import ModelError, QuantizeError, TargetError, TargetUnavailable, TransientError
from targets.testing import reference_model, samples


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a program of that text into the place of ssh."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(text: str) -> None:
        (tmp_path / "ssh").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "ssh").chmod(0o755)

    return put


def test_where_there_is_no_ssh_the_command_is_said(program):  # noqa: ARG001  an empty PATH
    with pytest.raises(TargetUnavailable, match="the program ssh, which is not installed; run: apt-get install"):
        SshLine("board").run("true", b"", 5.0)


def test_a_host_that_does_not_answer_is_busy_or_frozen(program):
    program("exec /bin/sleep 20")
    line = SshLine("board")
    with pytest.raises(TransientError, match=r"^board did not answer in 0\.2 s; is it busy or frozen\?$"):
        line.run("true", b"", 0.2)
    assert line.folder is None, "the connection is let go"


def test_what_the_host_says_and_how_it_ends_come_back(program):
    program("/bin/cat; echo odd >&2; echo words >&2; exit 3")
    found = SshLine("board").run("true", b"sent", 5.0)
    assert (found.status, found.output, found.words) == (3, b"sent", "words")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"host": "board", "runtime": "toaster"},
            "runtime=toaster is not allowed; runtime is one of ort-cpu",
        ),
        ({}, "target 'ssh' needs the name of a host: ssh:host=USER@HOST"),
        ({"host": "-oProxyCommand=x"}, "host='-oProxyCommand=x' is not allowed; it is HOST or USER@HOST"),
        ({"host": "board", "cache": "a,b"}, "cache='a,b' is not allowed; cache is a path without commas"),
        ({"host": "board", "python": "-c"}, "python='-c' is not allowed; python is a path without commas"),
    ],
)
def test_settings_that_are_none_are_refused(settings, said):
    with pytest.raises(TargetError, match=said):
        Ssh(**settings)


@pytest.fixture
def board(monkeypatch):
    """A board that is connected already."""
    monkeypatch.setattr(Ssh, "_connect", lambda _: None)
    return Ssh(host="board")


def test_a_batch_of_none_is_refused(board, tmp_path):
    with pytest.raises(TargetError, match="batch=0 is not allowed; it must be 1 or more"):
        board.run(tmp_path / "m.onnx", {}, batch=0)


def test_a_board_that_was_closed_meanwhile_is_said(board):
    with pytest.raises(TransientError, match=r"^ssh:host=board: closed while asking for the load$"):
        board.moment()


class Runner:
    """Has every model, and fails to run them."""

    alive = True

    def __init__(self, error):
        self.error = error

    def ask(self, header, arrays, heard):  # noqa: ARG002
        if header["operation"] == "run":
            raise self.error
        return type("Reply", (), {"header": {"missing": {key: [] for key in header["models"]}}, "arrays": {}})

    def close(self):
        pass


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ModelError("{there} cannot be run"), ModelError, r"^{here} cannot be run$"),
        (QuantizeError("of {there}"), QuantizeError, r"^of {here}$"),
        (TargetUnavailable("numpy is gone"), TargetUnavailable, r"^board: numpy is gone$"),
        (
            TransientError("ssh:host=board: {there} out of memory"),
            TransientError,
            r"^ssh:host=board: {here} out of",
        ),
        (QuantizeError("answered with garbage"), QuantizeError, "^answered"),
        (TransientError("answered with garbage"), TransientError, "^ssh:host=board: answered with garbage$"),
    ],
)
def test_errors_there_name_files_as_they_are_called_here(board, tmp_path, error, kind, said):
    path = reference_model(tmp_path / "m.onnx")
    board._folder = "/there"
    key = hashlib.sha256(path.read_bytes()).hexdigest()
    board.runner = Runner(kind(str(error).format(there=f"/there/models/{key}/model.onnx")))
    with pytest.raises(kind, match=said.format(here=path)):
        board.run(path, {"x": samples(1)})


@pytest.mark.parametrize(
    ("answers", "kind", "said"),
    [
        ([{"there": False}, {"there": False}], TransientError, "the runner did not arrive whole in /c on board"),
        (
            [{"problem": [13, "Permission denied"]}],
            TargetUnavailable,
            r"cannot use /c on board \(Permission denied, er",
        ),
        (
            [{"problem": [28, "No space left on device"], "free": 5}],
            TransientError,
            r"no space left on the device in /c",
        ),
    ],
)
def test_a_runner_that_does_not_arrive_is_said(monkeypatch, answers, kind, said):
    target = Ssh(host="board")
    told = iter(answers)
    whole = {"python": [3, 11, 2], "missing": [], "broken": "", "folder": "/c"}

    def run(_, data, __):
        sent.append(len(data))
        return CommandResult(0, (MARK + json.dumps({**whole, **next(told)})).encode(), "")

    sent: list[int] = []
    monkeypatch.setattr(target.line, "run", run)
    with pytest.raises(kind, match=said):
        target.moment()
    assert sent == [0, len(bundle.make().data)][: len(answers)]

"""A board behind ssh: everything that can go wrong with the connection, the device and the Python there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ssh_boards as devices
from processes import wait_for
from ssh_boards import RUNTIMES, Boards, external_model, needs_sshd
from targets.errors import MeasurementError, TargetUnavailable, TransientError
from targets.target import Estimate
from targets.testing import QUICK, reference_model, samples
from targets.workers import pipes

pytest.importorskip("onnx")
quiet, sshd, boards = devices.quiet, devices.sshd, devices.boards
pytestmark = needs_sshd


def test_an_sshd_that_is_gone_when_connecting(sshd, boards, model):
    target = boards(sshd)
    sshd.kill()
    with pytest.raises(TransientError, match=r"cannot connect to board \(.*Connection refused\)"):
        target.measure([model], protocol=QUICK)
    sshd.start()
    assert len(target.measure([model], protocol=QUICK)) == 1


def test_an_sshd_that_dies_while_a_file_is_copied(sshd, boards, tmp_path):
    big = reference_model(tmp_path / "big.onnx")
    # A field that protobuf does not know is stepped over.
    big.write_bytes(big.read_bytes() + b"\xfa\x7f\x80\x80\x80\x02" + bytes(4 << 20))
    target = boards(sshd)

    def kill(estimate: Estimate) -> None:
        if estimate.stage.startswith("copying"):
            sshd.kill()

    with pytest.raises(TransientError, match=r"lost the connection to board while copying .*big\.onnx to board"):
        target.measure([big], protocol=QUICK, watch=kill)
    boards.see_nothing_left()
    assert not list(boards.cache.rglob("model.onnx"))
    sshd.start()
    assert len(target.measure([big], protocol=QUICK)) == 1


def test_an_sshd_that_dies_while_measuring(sshd, boards, model):
    target = boards(sshd)

    def kill(estimate: Estimate) -> None:
        if estimate.ratios:
            sshd.kill()

    long = type(QUICK)(width=1e-9, seconds=60)
    with pytest.raises(TransientError, match="lost the connection to board while timing"):
        target.measure([model, model], protocol=long, watch=kill)
    boards.see_nothing_left()
    sshd.start()
    assert len(target.measure([model], protocol=QUICK)) == 1


def test_a_board_that_is_back_in_a_moment_costs_nothing(sshd, boards, model):
    target, said = boards(sshd), []
    target.pauses = (0.1, 0.1)

    def watch(estimate: Estimate) -> None:
        if estimate.ratios and not said:
            sshd.kill()
        elif "again in 0.1 s" in estimate.stage:
            said.append(estimate.stage)
            if len(said) == 2:
                sshd.start()

    long = type(QUICK)(width=1e-9, seconds=2)
    measured = target.measure([model, model], protocol=long, watch=watch)
    assert len(measured) == 2
    assert "lost the connection to board while timing" in said[0]
    assert "cannot connect to board" in said[1]


def test_an_sshd_that_dies_while_a_result_is_read(sshd, boards, tmp_path, monkeypatch):
    target, model = boards(sshd), external_model(tmp_path, "external.bin")
    x = np.zeros((4_000, 300), np.float32)  # 5 MB, which no pipe holds
    feed = pipes.Decoder.feed

    def kill(decoder: pipes.Decoder, data: bytes) -> list[pipes.Message]:
        if len(data) + len(decoder.buffer) > 100_000:
            sshd.kill()
        return feed(decoder, data)

    target.run(model, {"x": x[:1]})
    with monkeypatch.context() as patched:
        patched.setattr(pipes.Decoder, "feed", kill)
        with pytest.raises(TransientError, match=r"lost the connection to board while running .*external\.onnx"):
            target.run(model, {"x": x})
    wait_for(lambda: not boards.runners(), boards.runners)
    sshd.start()
    assert target.run(model, {"x": x})[0].shape == x.shape
    shutil.rmtree(boards.cache / "models")


def _full(folder: Path) -> Callable[[], None]:
    """Mount a file system of 3 MB at a folder; returns what frees half of it."""
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=3m,mode=700", "tmpfs", str(folder)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a file system cannot be mounted here: run as root, in a container with --cap-add SYS_ADMIN")
    filler = folder / "filler"
    filler.write_bytes(bytes(2_500_000))
    return filler.unlink


def test_a_full_disk_on_the_device(quiet, tmp_path):
    big = reference_model(tmp_path / "big.onnx")
    big.write_bytes(big.read_bytes() + b"\xfa\x7f\x80\x80\x80\x01" + bytes(2 << 20))
    boards = Boards(tmp_path / "device")
    free = _full(boards.cache)
    try:
        target = boards(quiet)
        said = (
            rf"no space left on the device in {boards.cache} \(needs 2\.1 MB, has 0\.\d MB\): free some, "
            "or choose another folder with cache=FOLDER"
        )
        for _ in range(2):
            with pytest.raises(TransientError, match=said):
                target.measure([big], protocol=QUICK)
        assert not list(boards.cache.rglob("part"))
        free()
        assert len(target.measure([big], protocol=QUICK)) == 1
        target.close()
        boards.see_nothing_left()
    finally:
        boards.close()
        wait_for(lambda: subprocess.run(["umount", str(boards.cache)], capture_output=True).returncode == 0)


def test_a_disk_too_full_for_the_runner(quiet, tmp_path, model):
    boards = Boards(tmp_path / "device")
    free = _full(boards.cache)
    try:
        more = boards.cache / "more"
        more.write_bytes(bytes(3_000_000 - 2_500_000))
        with pytest.raises(TransientError, match=r"no space left on the device in .* \(needs 0\.\d MB, has 0\.\d MB\)"):
            boards(quiet).measure([model], protocol=QUICK)
        assert not list(boards.cache.glob(".part-*"))
        free()
        assert len(boards(quiet).measure([model], protocol=QUICK)) == 1
    finally:
        boards.close()
        wait_for(lambda: subprocess.run(["umount", str(boards.cache)], capture_output=True).returncode == 0)


def test_a_runner_that_is_frozen_and_what_a_killed_one_leaves(sshd, boards, model):
    """Silence is said, nothing waits for ever; and a new runner clears up after one that could not."""
    target = boards(sshd)
    target.silence = 3.0
    target.run(model, {"x": samples(1)})
    (runner,) = (pid for pid, said in boards.runners().items() if "targets.workers.worker" not in said)
    os.kill(runner, signal.SIGSTOP)
    with pytest.raises(TransientError, match="hung: no answer in 3 s while looking which models are there"):
        target.measure([model], protocol=QUICK)
    os.kill(runner, signal.SIGKILL)
    wait_for(lambda: not boards.runners(), boards.runners)
    assert len(list(boards.cache.glob("session-*"))) == 1
    assert len(target.measure([model], protocol=QUICK)) == 1
    assert len(list(boards.cache.glob("session-*"))) == 1
    (runner,) = (pid for pid, said in boards.runners().items() if "targets.workers.worker" not in said)
    os.kill(runner, signal.SIGKILL)
    wait_for(lambda: not target.runner.alive)
    assert len(target.measure([model], protocol=QUICK)) == 1


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("abort", MeasurementError, r"killed by SIGABRT while running .*model\.onnx for the first time"),
        ("hang", MeasurementError, r"hung: no answer in 3 s while running .*model\.onnx for the first time"),
        ("eat", TransientError, r"more than the limit of 0\.\d\d GB, while running .*model\.onnx for the first time"),
        ("import", TargetUnavailable, r"board: target 'misbehaving': its runtime is missing"),
    ],
)
def test_a_runtime_that_goes_wrong_on_the_device(quiet, boards, model, monkeypatch, how, kind, said):
    monkeypatch.syspath_prepend(RUNTIMES)
    target = boards(quiet, runtime="misbehaving", how=how)
    if how == "hang":
        target.patience = 3.0
    if how == "eat":
        target.memory_limit = 300_000_000
    with pytest.raises(kind, match=said) as caught:
        target.measure([model], protocol=QUICK)
    assert type(caught.value) is kind
    assert str(caught.value).startswith("board" if kind is TargetUnavailable else target.name)
    assert str(boards.cache / "models") not in str(caught.value)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo 'paretopress:{\"python\": [3, 6, 9]}'", "is 3.6.9, Python 3.9 or newer is needed; name another with"),
        (f"exec {sys.executable} -S \"$@\"", "numpy, onnxruntime is missing for"),
        (f"exec {sys.executable} -S \"$@\"", "-m pip install numpy onnxruntime"),
        (f"echo Welcome; exec {sys.executable} \"$@\"", "prints 'Welcome' when it starts; make its startup files"),
        ("echo no way >&2; exit 3", "ended with status 3: no way"),
    ],
)  # fmt: skip
def test_an_interpreter_that_does_not_do(quiet, boards, model, tmp_path, text, said):
    target = boards(quiet, python=script(tmp_path / "python", text))
    with pytest.raises(TargetUnavailable) as caught:
        target.measure([model], protocol=QUICK)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interpreter_that_is_not_there(quiet, boards, model):
    with pytest.raises(TargetUnavailable, match=r"there is no no-such-python on board \(.*\); install Python"):
        boards(quiet, python="no-such-python").measure([model], protocol=QUICK)


def test_an_interpreter_in_the_home_folder(quiet, boards, model):
    """``~`` is the home folder there, not here."""
    with pytest.raises(TargetUnavailable, match=r"\(.*: /.*/no such/python: .*\)"):
        boards(quiet, python="~/no such/python").measure([model], protocol=QUICK)


def test_a_numpy_that_cannot_be_loaded(quiet, boards, model, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "numpy.py").write_text("raise OSError('libopenblas.so.0: cannot open shared object file')")
    python = script(tmp_path / "python", f'PYTHONPATH={tmp_path / "lib"} exec {sys.executable} "$@"')
    with pytest.raises(TargetUnavailable, match=r"numpy cannot be loaded on board: libopenblas\.so\.0"):
        boards(quiet, python=python).measure([model], protocol=QUICK)


def test_a_cache_that_cannot_be_used(quiet, tmp_path, model):
    (tmp_path / "file").write_text("")
    boards = Boards(tmp_path / "file" / "cache")
    with pytest.raises(TargetUnavailable, match=r"cannot use .*file/cache on board \(Not a directory, error 20\)"):
        boards(quiet).measure([model], protocol=QUICK)
    boards.close()


@pytest.mark.parametrize(
    ("name", "replaced", "said"),
    [
        ("user", None, "cannot connect to board: it does not let us in without a password: set up a key"),
        ("known", "", "cannot connect to board: its host key is not known or has changed"),
    ],
)
def test_a_host_that_refuses(sshd, boards, model, name, replaced, said):
    folder = sshd.config.parent
    (folder / name).unlink()
    if replaced is None:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, input=b"y"
        )
    else:
        (folder / name).write_text(replaced)
    with pytest.raises(TargetUnavailable) as caught:
        boards(sshd).measure([model], protocol=QUICK)
    assert said in str(caught.value)
